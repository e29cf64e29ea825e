"""Merging neurons that are alike, without data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import PolicyError
from .base import About, LayerInfo, Phase


@dataclass(frozen=True)
class MergeNeurons:
    """Merge output neurons or filters of a layer into others whose weights are alike (1507.06149).

    Of the pair with the least ``a_j^2 |W_i - W_j|^2`` neuron j goes and the layers that read it add ``a_j`` to ``a_i``, and so
    on. Two neurons with the same weights and bias are merged without a loss, whatever activation follows. The layers become
    smaller and stay dense, as with ``prune_channels``.

    Parameters
    ----------
    sparsity
        Share of the neurons that go, in [0, 1).
    multiple
        The number kept is rounded to a multiple of this (never below one such multiple).
    """

    name: ClassVar[str] = "merge_neurons"
    about: ClassVar[About] = About(
        ("P9",),
        "merge neurons or filters whose weights are alike, without data",
        "convolutions and linear layers with nothing but an activation and pooling before their readers",
        ("stored bytes", "deployed bytes", "MACs", "latency"),
        "smaller layers",
        "Srinivas 2015, 1507.06149",
    )
    phase: ClassVar[Phase] = Phase.DROP
    chosen_by: ClassVar[str] = "merge"

    sparsity: float
    multiple: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise PolicyError(f"merge_neurons: sparsity is a share in [0, 1), got {self.sparsity}")
        if self.multiple < 1:
            raise PolicyError(f"merge_neurons: multiple is a whole number from 1, got {self.multiple}")

    def check(self, layer: LayerInfo) -> str | None:
        if layer.groups > 1:
            return "each of its filters reads other channels; only filters of one input can be alike"
        return None

    def is_identity(self, layer: LayerInfo) -> bool:
        return self.keep(layer.weight_shape[0]) >= layer.weight_shape[0]

    def keep(self, channels: int) -> int:
        """How many of the neurons are kept; all of them at sparsity 0, on the grid or not."""
        if self.sparsity == 0:
            return channels
        wanted = (1 - self.sparsity) * channels
        return min(channels, max(self.multiple, round(wanted / self.multiple) * self.multiple))
