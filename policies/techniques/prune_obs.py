"""Unstructured pruning by the layer's Hessian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn

from .. import forms
from ..errors import PolicyError
from .base import About, Calibration, LayerCost, LayerInfo, Phase
from .hessians import hessian_reason, layer_hessians, pruned, set_weight


@dataclass(frozen=True)
class PruneOBS:
    """Drop the weights that the outputs miss least, and let the others make up for them (Hassibi 1993; 2208.11580).

    As ``prune_magnitude`` in what it leaves: each weight tensor of the module loses ``round(sparsity * N)`` of its N
    weights, which stay zero. The kept weights are the least-squares optimum for the calibration inputs, see
    ``second_order.prune``.

    Parameters
    ----------
    sparsity
        Share of the weights that become zero, 0 <= sparsity < 1.
    """

    sparsity: float

    name: ClassVar[str] = "prune_obs"
    about: ClassVar[About] = About(
        ("P5",),
        "drop the weights that the output misses least, the others make up for them",
        "convolutions of one group and linear layers",
        ("stored bytes",),
        "float32 with the effective weights",
        "Frantar 2022, 2208.11580",
    )
    phase: ClassVar[Phase] = Phase.PRUNE
    needs_calibration: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = False
    second_order: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise PolicyError(f"{self.name}: expected 0 <= sparsity < 1, got {self.sparsity!r}")

    def check(self, layer: LayerInfo) -> str | None:
        return hessian_reason(layer)

    def is_identity(self, layer: LayerInfo) -> bool:
        return self._pruned(layer.weights) == 0

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        layers = [layer for _, layer in forms.weighted_modules(module)]
        if not layers:
            raise PolicyError(f"{self.name}: expected a convolution or linear layer, got {type(module).__name__}")
        layers = [layer for layer in layers if self._pruned(cast(Tensor, layer.weight).numel()) > 0]
        if not layers:
            return module
        for layer, hessian in zip(layers, layer_hessians(self.name, module, layers, calibration)):
            weight = cast(Tensor, layer.weight)
            mask, solved = pruned(weight, hessian, weight.numel() - self._pruned(weight.numel()))
            set_weight(layer, solved)
            forms.set_form(layer, forms.MaskedWeight(mask))
        return module

    def cost(self, layer: LayerInfo) -> LayerCost:
        return LayerCost(layer.macs, 32.0 * (layer.weights - self._pruned(layer.weights)))

    def _pruned(self, weights: int) -> int:
        return round(self.sparsity * weights)
