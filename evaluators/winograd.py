"""Multiplications of convolutions when they are computed by Winograd's minimal filtering (1509.09308). Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..policies.techniques.base import LayerInfo

KERNEL = 3


@dataclass(frozen=True)
class Winograd:
    """The algorithm F(m x m, 3 x 3): a tile of m x m outputs of a 3x3 convolution takes (m + 2)^2 multiplications a channel.

    Parameters
    ----------
    outputs
        m, the side of a tile: 2 or 4 in the paper.
    """

    outputs: int

    @property
    def tile(self) -> int:
        """Multiplications for one tile, one channel and one filter (equation 4)."""
        return (self.outputs + KERNEL - 1) ** 2

    @property
    def saving(self) -> float:
        """How many times fewer multiplications than a direct convolution where tiles fit the map: 2.25 for m = 2, 4 for 4."""
        return (self.outputs * KERNEL) ** 2 / self.tile

    def why_not(self, layer: LayerInfo) -> str | None:
        """Why it cannot compute the layer, or ``None``."""
        if layer.kind != "conv2d" or layer.weight_shape[2:] != (KERNEL, KERNEL):
            return f"'{layer.name}' is no 3x3 convolution"
        if layer.stride != (1, 1) or layer.dilation != (1, 1):
            return f"'{layer.name}' has a stride or a dilation"
        return None

    def multiplications(self, layer: LayerInfo) -> int:
        """Of one call for one picture; those of a direct convolution where the algorithm cannot compute the layer.

        The elementwise products alone, as the paper counts: the transforms of data, filters and outputs are additions and
        scalings by constants. Tiles that reach over the map's edge are computed whole.
        """
        if self.why_not(layer) is not None:
            return layer.macs
        _, height, width = layer.output_shape
        tiles = math.ceil(height / self.outputs) * math.ceil(width / self.outputs)
        filters, channels, *_ = layer.weight_shape
        return tiles * self.tile * filters * channels


F2, F4 = Winograd(2), Winograd(4)
DIRECT = "direct"
ALGORITHMS = {"winograd_2x2": F2, "winograd_4x4": F4}


def by_algorithm(layers: Iterable[LayerInfo]) -> dict[str, int]:
    """Multiplications of a network's layers for one picture, by each algorithm: ``direct`` and those of ``ALGORITHMS``.

    Layers that an algorithm cannot compute are counted direct. Which of them a runtime uses, and where, is its own choice:
    these are counts, not predictions of latency.
    """
    calls = [call for layer in layers for call in layer.each_call()]
    counts = {DIRECT: sum(call.macs for call in calls)}
    for name, algorithm in ALGORITHMS.items():
        counts[name] = sum(algorithm.multiplications(call) for call in calls)
    return counts
