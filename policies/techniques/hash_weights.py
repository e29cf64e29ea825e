"""Weights that share values by a hash of their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from .. import forms
from ..coding.tensors import hashed_places
from ..errors import PolicyError
from .base import About, Calibration, LayerCost, LayerInfo, Phase


@dataclass(frozen=True)
class HashWeights:
    """Every weight is one of K shared values times a sign, both by a hash of its place (HashedNets: Chen 2015, 1504.04788).

    Only the values and the hash's seed are stored. Each value starts as the mean of the signed weights that share it, which
    is their least squares fit; that is far from the weights, so that the layer must be trained. Weights that were pruned
    stay zero and take no part.

    Parameters
    ----------
    share
        K over the number of weights, above 0 and below 1.
    seed
        Of the hash, in [0, 2^31 - 1).
    """

    share: float
    seed: int = 0

    name: ClassVar[str] = "hash_weights"
    about: ClassVar[About] = About(
        ("Q15",),
        "places share values by a hash",
        "convolutions and linear layers",
        ("stored bytes",),
        "float32 with the effective weights",
        "Chen 2015, 1504.04788",
    )
    phase: ClassVar[Phase] = Phase.QUANTIZE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise PolicyError(f"{self.name}: expected 0 < share < 1, got {self.share!r}")
        if not 0 <= self.seed < 2**31 - 1:
            raise PolicyError(f"{self.name}: expected a seed from 0 to 2^31 - 2, got {self.seed!r}")

    def check(self, layer: LayerInfo) -> str | None:
        return None

    def is_identity(self, layer: LayerInfo) -> bool:
        return self._values(layer.weights) >= layer.weights

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        layers = [layer for _, layer in forms.weighted_modules(module)]
        if not layers:
            raise PolicyError(f"{self.name}: expected a convolution or linear layer, got {type(module).__name__}")
        for layer in layers:
            weight, mask = cast(Tensor, layer.weight).detach(), forms.mask_of(layer)
            if self._values(weight.numel()) >= weight.numel():
                continue
            values = mean_of_shares(weight, self._values(weight.numel()), self.seed, mask)
            forms.set_form(layer, forms.HashedWeight(values, tuple(weight.shape), self.seed, mask))
        return module

    def cost(self, layer: LayerInfo) -> LayerCost:
        return LayerCost(layer.macs, 32.0 * self._values(layer.weights))

    def _values(self, weights: int) -> int:
        return max(1, round(self.share * weights))


def mean_of_shares(weight: Tensor, size: int, seed: int, mask: Tensor | None) -> Tensor:
    """The values (size,) of least squared error: means of ``sign(i) w_i`` over the kept places that share each; 0 for none."""
    found, signs = (
        torch.from_numpy(part).to(weight.device).flatten() for part in hashed_places(tuple(weight.shape), size, seed)
    )
    kept = torch.ones_like(signs, dtype=torch.float64) if mask is None else mask.flatten().double()
    sums = torch.zeros(size, dtype=torch.float64).index_add_(0, found, kept * signs * weight.flatten())
    counts = torch.zeros(size, dtype=torch.float64).index_add_(0, found, kept)
    return (sums / counts.clamp_min(1)).to(weight.dtype)
