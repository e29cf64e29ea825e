"""The rung on which architectures are learned: one training with switches, and what it leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..policies.export.onnx import export_onnx
from .accuracy import bounds, error_interval, file_error
from .counts import dense_counts
from .stopwatch import Stopwatch
from .training.checkpoints import UNKEPT, Checkpoints
from .training.ensemble import as_one
from .training.learned import Learning, learn
from .training.methods import make_teaching
from .workbench import Workbench

POLICY_FILE = "learned.json"
WIDTH = "neurons_left/"
"""Metrics of this name, one a group of channels, say how many are left; the group's root follows."""


def learn_architecture(
    bench: Workbench, learning: Learning, seed: int, halvings: int = 0, checkpoints: Checkpoints = UNKEPT
) -> dict[str, Any]:
    """Learn one architecture from the dense network, with the teachers that recoveries have.

    Figures are those of the network that the training left, exported, on all validation pictures; its policy is a file beside
    them.

    Parameters
    ----------
    halvings
        How often the batch is halved, for a training that ran out of memory.
    checkpoints
        Where a training that may be killed keeps its state.

    Raises
    ------
    CandidateError
        Where no network is left, or the training diverges.
    """
    watch, settings = Stopwatch(), bench.settings
    recipe = replace(learning.recipe, batch_size=max(2, learning.recipe.batch_size >> halvings))
    teaching = make_teaching(settings.teach, settings.temperature, settings.teacher_weight, settings.hint)
    loss = teaching.loss(as_one(bench.teachers or (bench.model,)), recipe.label_smoothing)
    with watch("train"):
        found = learn(
            bench.model,
            bench.graph,
            bench.data,
            replace(learning, recipe=recipe),
            seed=seed,
            loss=loss,
            checkpoint=checkpoints.of(0),
            on_epoch=lambda epoch, mean: checkpoints.heard(epoch, {"loss": mean}),
        )
    example = bench.data.preprocess(bench.data.calibration.images[:1])
    with watch("export"):
        onnx = export_onnx(found.model, example, calibration=None)
    with watch("forward"):
        error = file_error(onnx, bench.data, bench.data.validation, bench.threads)
    widths = {f"{WIDTH}{root}": float(left) for root, left in found.widths.items()}
    metrics = {
        "error_pct": error,
        **bounds("error_ci95", error_interval(error, len(bench.data.validation))),
        "onnx_bytes": len(onnx),
        **dense_counts(found.model, example, len(onnx)),
        **widths,
    }
    return {"metrics": metrics, "seconds": watch.seconds, "artefacts": {POLICY_FILE: found.policy.to_json().encode()}}
