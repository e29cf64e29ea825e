"""Unstructured pruning by the diagonal of a second derivative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from .. import forms
from ..errors import PolicyError
from .base import About, Calibration, LayerCost, LayerInfo, Phase
from .fisher import weight_fisher
from .hessians import hessian_reason, layer_hessians

Curvature = Literal["fisher", "inputs"]


@dataclass(frozen=True)
class PruneOBD:
    """Drop the weights of smallest ``1/2 h_ii w_i^2`` and leave the others as they are (LeCun 1990, "Optimal Brain Damage").

    That is what the loss rises by when one weight goes, where it is quadratic and its second derivatives are diagonal. As
    ``prune_magnitude`` in what it leaves: each weight tensor of the module loses ``round(sparsity * N)`` of its N weights; of
    equal saliencies the smallest weights go first.

    Parameters
    ----------
    sparsity
        Share of the weights that become zero, 0 <= sparsity < 1.
    curvature
        What stands for ``h_ii``: ``fisher``, the mean squared gradient of the network's loss (1801.05787, eq. 5), labels
        being drawn from its own prediction; or
        ``inputs``, the mean square of what the weight multiplies, which is the diagonal of the layer's own squared error.
    """

    sparsity: float
    curvature: Curvature = "fisher"

    name: ClassVar[str] = "prune_obd"
    about: ClassVar[About] = About(
        ("P5",),
        "drop the weights of least curvature times square (optimal brain damage)",
        "convolutions and linear layers; of one group where the curvature is the inputs'",
        ("stored bytes",),
        "float32 with the effective weights",
        "LeCun 1990; Theis 2018, 1801.05787",
    )
    phase: ClassVar[Phase] = Phase.PRUNE
    needs_calibration: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise PolicyError(f"{self.name}: expected 0 <= sparsity < 1, got {self.sparsity!r}")
        if self.curvature not in get_args(Curvature):
            raise PolicyError(
                f"{self.name}: expected curvature {' or '.join(get_args(Curvature))}, got {self.curvature!r}"
            )

    def check(self, layer: LayerInfo) -> str | None:
        return hessian_reason(layer) if self.curvature == "inputs" else None

    def is_identity(self, layer: LayerInfo) -> bool:
        return self._pruned(layer.weights) == 0

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        layers = [layer for _, layer in forms.weighted_modules(module)]
        if not layers:
            raise PolicyError(f"{self.name}: expected a convolution or linear layer, got {type(module).__name__}")
        layers = [layer for layer in layers if self._pruned(cast(Tensor, layer.weight).numel()) > 0]
        if not layers:
            return module
        for layer, curvature in zip(layers, self._curvatures(module, layers, calibration)):
            weight = cast(Tensor, layer.weight).detach()
            keep = weight.numel() - self._pruned(weight.numel())
            forms.set_form(layer, forms.MaskedWeight(most_salient(weight, curvature, keep)))
        return module

    def cost(self, layer: LayerInfo) -> LayerCost:
        return LayerCost(layer.macs, 32.0 * (layer.weights - self._pruned(layer.weights)))

    def _curvatures(
        self, module: nn.Module, layers: Sequence[nn.Module], calibration: Calibration | None
    ) -> list[Tensor]:
        """Of the weight's shape, or (1, d): alike for all outputs."""
        if self.curvature == "fisher":
            return weight_fisher(module, layers, calibration)
        hessians = layer_hessians(self.name, module, layers, calibration)
        return [hessian.diagonal()[None].float() for hessian in hessians]

    def _pruned(self, weights: int) -> int:
        return round(self.sparsity * weights)


def most_salient(weight: Tensor, curvature: Tensor, keep: int) -> Tensor:
    """Mask (bool, the weight's shape) of the ``keep`` weights with the highest ``curvature * weight^2``.

    Parameters
    ----------
    weight
        (out, ...).
    curvature
        Of a shape that multiplies the weight's rows (out, d).
    """
    saliency = (curvature.reshape(len(curvature), -1) * weight.flatten(1).square()).flatten()
    order = weight.abs().flatten().argsort(stable=True)
    order = order[saliency[order].argsort(stable=True)]
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[order[weight.numel() - keep :]] = True
    return mask.view_as(weight)
