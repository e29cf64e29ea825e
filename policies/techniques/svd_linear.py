"""Truncated SVD of a linear layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from .base import About, Calibration, LayerCost, LayerInfo, Phase
from .factors import FLOAT_BITS, linear_factor, require_plain, require_rank, truncated_svd


@dataclass(frozen=True)
class SVDLinear:
    """A linear layer (in -> out) as two (in -> rank -> out), by truncated SVD (Denton 2014, 1404.0736, section 3.2).

    The Frobenius error is the root sum of the squared singular values that were dropped: the least at this rank.

    Parameters
    ----------
    rank
        Width between the two layers, at least 1; from min(in, out) on the layer stays as it is.
    """

    rank: int

    name: ClassVar[str] = "svd"
    about: ClassVar[About] = About(
        ("R1",),
        "two thin layers in place of one",
        "linear layers",
        (
            "stored bytes",
            "deployed bytes",
            "MACs",
        ),
        "smaller layers",
        "Denton 2014, 1404.0736",
    )
    phase: ClassVar[Phase] = Phase.FACTORIZE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_rank(self.name, "rank", self.rank)

    def check(self, layer: LayerInfo) -> str | None:
        if layer.kind != "linear":
            return f"'{layer.name}' is a {layer.kind} layer; svd takes linear layers (svd_spatial or tucker2 may fit)"
        return None

    def is_identity(self, layer: LayerInfo) -> bool:
        return self.rank >= min(layer.weight_shape)

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        layer = require_plain(self.name, module, nn.Linear)
        if self.rank >= min(layer.weight.shape):
            return layer
        left, right = truncated_svd(layer.weight, self.rank)
        return nn.Sequential(linear_factor(right, layer), linear_factor(left, layer, layer.bias)).train(layer.training)

    def cost(self, layer: LayerInfo) -> LayerCost:
        if self.is_identity(layer):
            return LayerCost(layer.macs, float(FLOAT_BITS * layer.weights))
        weights = self.rank * sum(layer.weight_shape)
        return LayerCost(layer.macs // layer.weights * weights, float(FLOAT_BITS * weights))
