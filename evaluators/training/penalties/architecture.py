"""The pull of switches towards few neurons and few layers, and to 0 or 1 (Srinivas 2015, 1511.05497)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ..gates import gates_of
from .base import require_strength

RISE = 0.6
"""Share of the training at which the pull to 0 or 1 is at its full strength."""


@dataclass(frozen=True)
class Architecture:
    """``l3 sum w + l4 sum (1 - d) + l1 sum w (1 - w) + l2 sum d (1 - d)`` over a network's switches, see ``gates``.

    ``l1 = binary l3`` and ``l2 = binary l4`` rise from 0 in the first ``RISE`` of the training: at their full strength from the
    start, they would hold every neuron where it starts, at 1. A layer is charged for what its ReLU makes of it, ``1 - d``,
    since one with d = 1 is none of its own.

    Parameters
    ----------
    neurons
        ``l3``, what a neuron costs, at least 0.
    layers
        ``l4``, what a layer's ReLU costs, at least 0.
    binary
        Full strength of the pull to 0 or 1, in units of these two.
    """

    name: ClassVar[str] = "architecture"

    neurons: float
    layers: float = 0.0
    binary: float = 4.0

    def __post_init__(self) -> None:
        for strength in (self.neurons, self.layers, self.binary):
            require_strength(self.name, strength)

    def start(self, model: nn.Module) -> None:
        gates_of(model).progress.zero_()

    def value(self, model: nn.Module) -> Tensor:
        gates = gates_of(model)
        binary = self.binary * min(1.0, float(gates.progress) / RISE)
        w, d = gates.w, gates.d
        of_neurons = w.sum() + binary * (w * (1 - w)).sum()
        of_layers = (1 - d).sum() + binary * (d * (1 - d)).sum()
        return self.neurons * of_neurons + self.layers * of_layers

    def finish(self, model: nn.Module) -> None:
        gates_of(model).settle()
