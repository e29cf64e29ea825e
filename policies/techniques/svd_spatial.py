"""Spatial SVD of a convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from .base import About, Calibration, LayerCost, LayerInfo, Phase
from .factors import (
    FLOAT_BITS,
    column_and_row,
    conv_reason,
    dearer_reason,
    require_plain,
    require_rank,
    spatial_factors,
)

__all__ = ["SVDSpatial", "spatial_factors"]


@dataclass(frozen=True)
class SVDSpatial:
    """A kh x kw convolution as a kh x 1 and a 1 x kw one (Jaderberg 2014, 1405.3866, scheme 2, solved by SVD).

    Stride, padding and dilation go to the factor of their axis; between them the map has the output's height and the
    input's width.

    Parameters
    ----------
    rank
        Channels between the two, at least 1; from min(in * kh, kw * out) on the layer stays as it is.
    """

    rank: int

    name: ClassVar[str] = "svd_spatial"
    about: ClassVar[About] = About(
        ("R2",),
        "a column and a row in place of a kernel",
        "convolutions of one group and more than 1 x 1",
        (
            "stored bytes",
            "deployed bytes",
            "MACs",
        ),
        "smaller layers",
        "Jaderberg 2014, 1405.3866",
    )
    phase: ClassVar[Phase] = Phase.FACTORIZE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_rank(self.name, "rank", self.rank)

    def check(self, layer: LayerInfo) -> str | None:
        return conv_reason(layer) or dearer_reason(self, layer)

    def is_identity(self, layer: LayerInfo) -> bool:
        return layer.kind == "conv2d" and self.rank >= _full_rank(layer.weight_shape)

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        layer = require_plain(self.name, module, nn.Conv2d)
        if self.rank >= _full_rank(tuple(layer.weight.shape)):
            return layer
        vertical, horizontal = spatial_factors(layer.weight, self.rank)
        return column_and_row(layer, vertical, horizontal, layer.bias)

    def cost(self, layer: LayerInfo) -> LayerCost:
        if self.is_identity(layer):
            return LayerCost(layer.macs, float(FLOAT_BITS * layer.weights))
        out_channels, in_channels, kernel_y, kernel_x = layer.weight_shape
        _, height, width = layer.output_shape
        first, second = in_channels * kernel_y * self.rank, self.rank * kernel_x * out_channels
        macs = height * (first * layer.input_shape[2] + second * width)
        return LayerCost(macs, float(FLOAT_BITS * (first + second)))


def _full_rank(shape: tuple[int, ...]) -> int:
    out_channels, in_channels, kernel_y, kernel_x = shape
    return min(in_channels * kernel_y, kernel_x * out_channels)
