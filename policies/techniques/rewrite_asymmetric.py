"""A convolution rewritten as a column and a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import About, Calibration, LayerCost, LayerInfo
from .factors import column_and_row, conv_reason, dearer_reason, require_plain, spatial_factors
from .rewriting import Rewrite, between, own_bias, require_count, rewritten, row_cost


@dataclass(frozen=True)
class RewriteAsymmetric(Rewrite):
    """A kh x kw convolution as a kh x 1 and a 1 x kw one (Szegedy 2016, 1512.00567, section 3.2).

    With ``c`` channels, ``n`` outputs and ``w`` between, ``w (c kh + n kw)`` weights stand for ``c n kh kw``: where all are
    alike, 2 / 3 of those of 3 x 3. The layers are those of ``svd_spatial`` at this rank; here no nonlinearity stands between
    them either. ``W'[o, i, y, x] = sum_r h[o, r, x] v[r, i, y]`` starts from the truncated SVD of
    ``W[(i, y), (x, o)]`` and is fitted by ``rewriting.fitted``.

    Parameters
    ----------
    width
        Channels between the two; 0: as many as the fewer of those that come in and go out.
    """

    width: int = 0

    name: ClassVar[str] = "rewrite_asymmetric"
    about: ClassVar[About] = About(
        ("A4",),
        "a column and a row of full width in place of a kernel",
        "convolutions of one group, larger than 1 x 1",
        ("stored bytes", "deployed bytes", "MACs"),
        "smaller layers",
        "Szegedy 2016, 1512.00567",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(self.name, "width", self.width, 0)

    def check(self, layer: LayerInfo) -> str | None:
        reason = conv_reason(layer)
        if reason is not None:
            return reason
        width, full = between(layer, self.width), _full_rank(layer.weight_shape)
        if width > full:
            return f"'{layer.name}' needs no more than {full} channels between a column and a row; got width {width}"
        return dearer_reason(replace(self, width=width), layer)

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        layer = require_plain(self.name, module, nn.Conv2d)
        vertical, horizontal = spatial_factors(layer.weight, between(layer, self.width))
        start = vertical[..., 0], horizontal[:, :, 0]
        return rewritten(self.name, layer, calibration, self.fit, composed, start, partial(_two_layers, layer))

    def outline(self, module: nn.Module) -> nn.Module:
        """The layers that ``apply`` makes, their weights of no account."""
        layer = require_plain(self.name, module, nn.Conv2d)
        out, channels, height, across = layer.weight.shape
        width, zeros = between(layer, self.width), layer.weight.new_zeros
        return _two_layers(layer, (zeros(width, channels, height), zeros(out, width, across)))

    def cost(self, layer: LayerInfo) -> LayerCost:
        out, channels, kernel_y, kernel_x = layer.weight_shape
        width, (height, across) = between(layer, self.width), layer.output_shape[1:]
        first, second = channels * kernel_y * width, width * kernel_x * out
        return row_cost([(first, (height, layer.input_shape[2])), (second, (height, across))])


def composed(vertical: Tensor, horizontal: Tensor) -> Tensor:
    """The weight (out, in, kh, kw) of columns (w, in, kh) and rows (out, w, kw)."""
    return torch.einsum("riy,orx->oiyx", vertical, horizontal)


def _full_rank(shape: tuple[int, ...]) -> int:
    out, channels, kernel_y, kernel_x = shape
    return min(channels * kernel_y, kernel_x * out)


def _two_layers(layer: nn.Conv2d, factors: Sequence[Tensor]) -> nn.Sequential:
    vertical, horizontal = factors
    return column_and_row(layer, vertical[..., None], horizontal[:, :, None], own_bias(layer))
