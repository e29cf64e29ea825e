"""Block-Toeplitz weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from .base import About, Calibration, LayerCost, LayerInfo, Phase, Technique
from .structured import count_reason, generate, generated_cost, project, quantization_clash, require_whole


@dataclass(frozen=True)
class Toeplitz:
    """Blocks of a weight become Toeplitz, ``W[i, j] = r[i - j]`` (Sindhwani 2015, 1510.01722: displacement rank at most 2).

    ``r`` is the mean over the diagonals, the nearest Toeplitz block; it is what trains and what is stored, about 2 / b of
    the weights. A convolution has a block for each place of its kernel. It saves size alone: the exported layer multiplies
    by the dense weight.

    Parameters
    ----------
    block
        Size b, at least 2; the last blocks of a row and of a column may be smaller. From max(out, in) on there is one block.
    """

    block: int

    name: ClassVar[str] = "toeplitz"
    about: ClassVar[About] = About(
        ("R4",),
        "Toeplitz blocks",
        "convolutions and linear layers",
        ("stored bytes",),
        "float32 with the effective weights",
        "Sindhwani 2015, 1510.01722",
    )
    phase: ClassVar[Phase] = Phase.PRUNE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_whole(self.name, "block", self.block, 2)

    def check(self, layer: LayerInfo) -> str | None:
        return count_reason(self.name, layer, self.block)

    def clash(self, other: Technique) -> str | None:
        """Why another technique cannot follow on the same layer."""
        return quantization_clash(self.name, other)

    def is_identity(self, layer: LayerInfo) -> bool:
        return False

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        def fit(weight: Tensor) -> Tensor:
            return project(self.name, weight, self.block, 0)

        return generate(module, self.name, self.block, 0, fit)

    def cost(self, layer: LayerInfo) -> LayerCost:
        return generated_cost(self.name, layer, self.block)
