"""Structured pruning of the depth: drop a whole residual branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import About, LayerInfo, Phase


@dataclass(frozen=True)
class DropBranch:
    """Drop the residual branch that starts with the layer; what the branch was added to goes on alone.

    All layers of the branch are gone, in every runtime. The step stands on the branch's first layer.

    References
    ----------
    Huang 2016, "Deep networks with stochastic depth", arXiv 1603.09382; Veit 2016, arXiv 1605.06431, section 4.1: a
    residual network loses little with any one of its blocks.
    """

    name: ClassVar[str] = "drop_branch"
    about: ClassVar[About] = About(
        ("P10",),
        "drop residual blocks",
        "layers that start a residual branch",
        (
            "stored bytes",
            "deployed bytes",
            "MACs",
            "latency",
        ),
        "without the branch",
        "Huang 2016, 1603.09382",
    )
    phase: ClassVar[Phase] = Phase.REARCHITECT

    def check(self, layer: LayerInfo) -> str | None:
        """Whether a layer starts a branch is known to the network's graph alone."""
        return None

    def is_identity(self, layer: LayerInfo) -> bool:
        return False
