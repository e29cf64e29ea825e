"""Depth: a layer without its activation is linear, and one layer with the next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import About, LayerInfo, Phase


@dataclass(frozen=True)
class Collapse:
    """Leave out the ReLU behind a layer; the layer and the only one that reads it become one.

    The new layer's weights are the product of the two, ``W2 W1`` with the bias ``W2 b1 + b2``; it stands where the second one
    stood and computes the same. Where convolutions have no exact product, or the product is larger than the two, ``merge: false``
    keeps both.

    Parameters
    ----------
    merge
        Whether the two become one; otherwise the ReLU alone goes.
    """

    name: ClassVar[str] = "collapse"
    about: ClassVar[About] = About(
        ("A8",),
        "leave out a ReLU and make the layers before and behind it one",
        "a layer whose ReLU alone reads it, and alone is read by one other layer",
        ("stored bytes", "deployed bytes", "MACs", "latency"),
        "one layer in place of two",
        "Srinivas 2015, 1511.05497",
    )
    phase: ClassVar[Phase] = Phase.REARCHITECT

    merge: bool = True

    def check(self, layer: LayerInfo) -> str | None:
        """What stands behind a layer is known to the network's graph alone."""
        return None

    def is_identity(self, layer: LayerInfo) -> bool:
        return False
