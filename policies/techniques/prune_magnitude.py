"""Unstructured magnitude pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from .. import forms
from ..errors import PolicyError
from .base import About, Calibration, LayerCost, LayerInfo, Phase


@dataclass(frozen=True)
class PruneMagnitude:
    """Set the weights of smallest magnitude to zero and keep them there (Han 2015, 1506.02626, section 3).

    Each weight tensor of the module loses ``round(sparsity * N)`` of its N weights; of equal magnitudes the first in C
    order go first. It saves size alone: a dense kernel multiplies by the zeros.

    Parameters
    ----------
    sparsity
        Share of the weights that become zero, 0 <= sparsity < 1.
    """

    sparsity: float

    name: ClassVar[str] = "prune_magnitude"
    about: ClassVar[About] = About(
        (
            "P1",
            "P2",
        ),
        "drop the smallest weights",
        "convolutions and linear layers",
        ("stored bytes",),
        "float32 with the effective weights",
        "Han 2015, 1506.02626",
    )
    phase: ClassVar[Phase] = Phase.PRUNE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise PolicyError(f"{self.name}: expected 0 <= sparsity < 1, got {self.sparsity!r}")

    def check(self, layer: LayerInfo) -> str | None:
        return None

    def is_identity(self, layer: LayerInfo) -> bool:
        return self._pruned(layer.weights) == 0

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        layers = [layer for _, layer in forms.weighted_modules(module)]
        if not layers:
            raise PolicyError(f"{self.name}: expected a convolution or linear layer, got {type(module).__name__}")
        for layer in layers:
            weight = cast(Tensor, layer.weight).detach()
            count = self._pruned(weight.numel())
            if count > 0:
                forms.set_form(layer, forms.MaskedWeight(largest(weight, weight.numel() - count)))
        return module

    def cost(self, layer: LayerInfo) -> LayerCost:
        return LayerCost(layer.macs, 32.0 * (layer.weights - self._pruned(layer.weights)))

    def _pruned(self, weights: int) -> int:
        return round(self.sparsity * weights)


def largest(weight: Tensor, keep: int) -> Tensor:
    """Mask (bool, the weight's shape) of the ``keep`` largest magnitudes; of equal ones the last in C order."""
    magnitude = weight.abs().flatten()
    drop = magnitude.numel() - keep
    if drop == 0:
        return torch.ones_like(weight, dtype=torch.bool)
    threshold = magnitude.kthvalue(drop).values
    mask = magnitude > threshold
    tied = (magnitude == threshold).nonzero().flatten()
    missing = keep - int(mask.sum())
    mask[tied[len(tied) - missing :]] = True
    return mask.view_as(weight)
