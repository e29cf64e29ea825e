"""How a space is searched, measured and carried out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ...policies.coding.stream import Coder
from ..budgets import BUDGET_METRICS
from .base import Count, Positive, Section, Share, nearest

OBJECTIVES = {**BUDGET_METRICS, "latency": "latency_ratio"}


class SearchConfig(Section):
    """How the space is searched."""

    sampler: Literal["bank", "nsga2", "tpe", "gp", "random"] = Field(
        "bank", description="bank: solve a bank of measured layer variants; the others are Optuna's"
    )
    evaluations: Count = Field(100, description="candidates screened")
    minutes: Positive | None = Field(
        None, description="time that the workers may spend on bank and screening, however many were screened by then"
    )
    batch: Count = Field(8, description="candidates asked for at a time")
    objectives: tuple[str, ...] = Field(("error", "stored", "latency"), min_length=1)
    stitch_pictures: Count = Field(
        128,
        description="training pictures of the lowest rung, on which the sampler 'bank' tries thrice as many candidates",
    )
    screen_pictures: Count = Field(1000, description="validation pictures a candidate is screened on")
    screen_error: Positive = Field(
        10.0, description="points of error above the dense network that recovery is trusted to win back"
    )
    screen_growth: Share = Field(
        0.0,
        description="share by which recovery is expected to lengthen stored files (weights spread over their codes, mostly by"
        " 0.01 to 0.04): candidates are held to a budget of stored bytes that leaves room for it",
    )
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = Field(
        0.9,
        description="how sure a budget on the error is to be kept on other pictures: finalists are held to it by the upper bound"
        " of their error at this level, and members of the front that keep it by the estimate alone are marked as not certain",
    )
    finalists: Count = Field(8, description="candidates that are recovered, exported and tested")

    @field_validator("objectives")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in OBJECTIVES:
                raise ValueError(f"unknown objective '{name}'{nearest(name, OBJECTIVES)}")
        return value


class LatencyConfig(Section):
    """How latency is measured: ONNX Runtime, interleaved with the dense network."""

    threads: Count = 1
    screen_seconds: Positive = Field(0.6, description="time a candidate's probe may take while screening")
    pairs: Annotated[int, Field(ge=50)] = Field(100, description="candidate/reference pairs of a final measurement")


class StorageConfig(Section):
    """How compressed networks are stored."""

    coder: Coder = Field("ans", description="ans for the fewest bytes, or huffman for codes of whole bits (1510.00149)")
    compact: bool = Field(
        False,
        description="for networks of a few thousand weights: files leave out what network and policy tell (names, settled"
        " statistics), small layers share probability tables, and scales are folded into batch norms",
    )
    vector_bits: Annotated[int, Field(ge=2, le=8)] = Field(
        8, description="significant bits of biases and of the batch norms' scales and shifts"
    )


class PoolConfig(Section):
    """Where candidates are evaluated."""

    kind: Literal["ray", "in-process"] = "ray"
    train: Literal["pool", "tune"] = Field(
        "pool",
        description="where networks are trained: on the pool like all else, or as trials of Ray Tune, which keep their state"
        " after every epoch and go on from it where a process or the run dies; on a cluster, every node must reach the run"
        " directory",
    )
    workers: Count | None = Field(None, description="default: one a core")
    address: str | None = Field(None, description="of a Ray cluster; local by default")
    min_timeout_s: Positive = Field(60.0, description="least time before an evaluation is taken for hung")
