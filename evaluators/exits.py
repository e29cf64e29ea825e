"""What a network with early exits costs and errs on average over pictures, by the thresholds at which they leave it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from ..policies.errors import CandidateError
from ..policies.exits import ExitNetwork, candidates_for_exits
from .accuracy import error_pct
from .macs import profile

NEVER, ALWAYS = 2.0, 0.0
"""Thresholds that no certainty reaches, and that every one does."""


@dataclass(frozen=True)
class Average:
    """Over pictures.

    Parameters
    ----------
    error_pct
        In per cent.
    shares
        (exits,) of the pictures that leave at each exit, the last being the network's own end.
    macs, latency_ratio
        Expected multiply-accumulates, and expected latency against the dense network.
    """

    error_pct: float
    shares: tuple[float, ...]
    macs: float
    latency_ratio: float


@dataclass(frozen=True)
class Exits:
    """Outputs of every exit on the same pictures, and what each way out costs.

    Parameters
    ----------
    logits
        (exits, N, K).
    labels
        (N,).
    macs, latency_ratio
        (exits,) of a picture that leaves there, the heads on its way among them.
    """

    logits: np.ndarray
    labels: np.ndarray
    macs: np.ndarray
    latency_ratio: np.ndarray

    @cached_property
    def certainty(self) -> np.ndarray:
        """(exits - 1, N) the largest softmax probability at each exit but the last."""
        early = self.logits[:-1]
        powers = np.exp(early - early.max(2, keepdims=True))
        return np.asarray((powers / powers.sum(2, keepdims=True)).max(2))

    def at(self, thresholds: Sequence[float]) -> Average:
        """The averages where a picture leaves at the first exit whose certainty is at least its threshold."""
        sure = self.certainty >= np.asarray(thresholds, np.float32)[:, None]
        taken = np.where(sure.any(0), sure.argmax(0), len(sure))
        shares = np.bincount(taken, minlength=len(self.logits)) / len(taken)
        outputs = self.logits[taken, np.arange(len(taken))]
        return Average(
            error_pct(outputs, self.labels),
            tuple(shares.tolist()),
            float(shares @ self.macs),
            float(shares @ self.latency_ratio),
        )


def macs_by_exit(network: ExitNetwork, example: Tensor) -> np.ndarray:
    """(exits,) multiply-accumulates of a picture that leaves at each, heads that it has passed included."""
    heads = [profile(_Exit(network, k), example).macs for k in range(len(network.after))]
    alone = [profile(_UpTo(network, name), example).macs for name in network.after]
    before = np.concatenate([[0.0], np.cumsum(np.array(heads) - np.array(alone))])
    return np.array([*(np.array(alone) + before[1:]), profile(network.backbone, example).macs + before[-1]])


def cost_before(backbone: torch.nn.Module, example: Tensor) -> dict[str, float]:
    """Multiply-accumulates until a module's output stands, for modules that an exit can stand behind."""
    names = candidates_for_exits(backbone, example)
    return {name: float(profile(_UpTo(ExitNetwork(backbone, [name], example), name), example).macs) for name in names}


def run_exits(session: onnxruntime.InferenceSession, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, K) and the exit (N,) that each picture (N, C, H, W) took in the exported file, one at a time.

    Raises
    ------
    CandidateError
        Where the runtime cannot carry the network out.
    """
    source = session.get_inputs()[0].name
    try:
        parts = [session.run(["logits", "exit"], {source: pictures[i : i + 1]}) for i in range(len(pictures))]
    except Exception as error:
        raise CandidateError(f"ONNX Runtime cannot run this network with exits: {error}") from error
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


class _Exit(torch.nn.Module):
    """A network up to one exit, its head included."""

    def __init__(self, network: ExitNetwork, number: int) -> None:
        super().__init__()
        self.network, self.number = network, number

    def forward(self, x: Tensor) -> Tensor:
        return self.network.exits(x, self.number)[0]


class _UpTo(torch.nn.Module):
    """A network up to one exit, without its head."""

    def __init__(self, network: ExitNetwork, name: str) -> None:
        super().__init__()
        self.network, self.number = network, network.after.index(name)

    def forward(self, x: Tensor) -> Tensor:
        return self.network.features(x, self.number)
