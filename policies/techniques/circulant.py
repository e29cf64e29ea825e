"""Block-circulant weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from .base import About, Calibration, LayerCost, LayerInfo, Phase, Technique
from .structured import count_reason, generate, generated_cost, project, quantization_clash, require_whole


@dataclass(frozen=True)
class Circulant:
    """Blocks of a weight become circulant, ``W[i, j] = r[(i - j) mod b] s_j`` (Cheng 2015, 1502.03436, eq. 2 and 3).

    ``r`` is the mean over the wrapped diagonals, the nearest circulant block (section 3.3 there projects gradients in the
    same way); it is what trains and what is stored, 1 / b of the weights. A convolution has a block for each place of its
    kernel (1708.08917). It saves size alone: the exported layer multiplies by the dense weight.

    Parameters
    ----------
    block
        Size b, at least 2; the last blocks of a row and of a column may be smaller. From max(out, in) on there is one block.
    seed
        Of the random signs ``s_j`` of the inputs (section 3.1); 0 leaves all signs as they are.
    """

    block: int
    seed: int = 0

    name: ClassVar[str] = "circulant"
    about: ClassVar[About] = About(
        ("R3",),
        "circulant blocks",
        "convolutions and linear layers",
        ("stored bytes",),
        "float32 with the effective weights",
        "Cheng 2015, 1502.03436; blocks: Ding 2017, 1708.08917",
    )
    phase: ClassVar[Phase] = Phase.PRUNE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_whole(self.name, "block", self.block, 2)
        require_whole(self.name, "seed", self.seed, 0)

    def check(self, layer: LayerInfo) -> str | None:
        return count_reason(self.name, layer, self.block)

    def clash(self, other: Technique) -> str | None:
        """Why another technique cannot follow on the same layer."""
        return quantization_clash(self.name, other)

    def is_identity(self, layer: LayerInfo) -> bool:
        return False

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        def fit(weight: Tensor) -> Tensor:
            return project(self.name, weight, self.block, self.seed)

        return generate(module, self.name, self.block, self.seed, fit)

    def cost(self, layer: LayerInfo) -> LayerCost:
        return generated_cost(self.name, layer, self.block)
