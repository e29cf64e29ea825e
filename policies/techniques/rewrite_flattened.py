"""A convolution rewritten as one across channels, one along columns and one along rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .base import About, Calibration, LayerCost, LayerInfo
from .factors import conv_factor, conv_reason, dearer_reason, require_plain
from .rewriting import Rewrite, depthwise_clash, own_bias, rewritten, row_cost


@dataclass(frozen=True)
class RewriteFlattened(Rewrite):
    """A kh x kw convolution as c x 1 x 1, 1 x kh x 1 and 1 x 1 x kw filters in a row (Jin 2015, 1412.5474, section 3).

    With ``c`` channels and ``n`` outputs, ``n (c + kh + kw)`` weights stand for ``n c kh kw``. Each output has one filter of
    each kind: the last two convolutions are depthwise, stride, padding and dilation go to the one of their axis. Nothing
    stands between them: ``W'[o, i, y, x] = l[o, i] v[o, y] h[o, x]`` starts from the SVD of each ``W[o]`` as ``i`` by
    ``(y, x)``, then as ``y`` by ``x``, and is fitted by ``rewriting.fitted``.
    """

    name: ClassVar[str] = "rewrite_flattened"
    about: ClassVar[About] = About(
        ("A4",),
        "filters across channels, along columns and along rows",
        "convolutions of one group, larger than 1 x 1",
        ("stored bytes", "deployed bytes", "MACs"),
        "smaller layers",
        "Jin 2015, 1412.5474",
    )

    def check(self, layer: LayerInfo) -> str | None:
        return conv_reason(layer) or dearer_reason(self, layer)

    def clash(self, other: object) -> str | None:
        """Depthwise layers have no single Hessian."""
        return depthwise_clash(self.name, other)

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        layer = require_plain(self.name, module, nn.Conv2d)
        start = _start(layer.weight)
        return rewritten(self.name, layer, calibration, self.fit, composed, start, partial(_three_layers, layer))

    def outline(self, module: nn.Module) -> nn.Module:
        """The layers that ``apply`` makes, their weights of no account."""
        layer = require_plain(self.name, module, nn.Conv2d)
        out, *others = layer.weight.shape
        return _three_layers(layer, [layer.weight.new_zeros(out, size) for size in others])

    def cost(self, layer: LayerInfo) -> LayerCost:
        out, channels, kernel_y, kernel_x = layer.weight_shape
        height, width = layer.output_shape[1:]
        _, height_in, width_in = layer.input_shape
        return row_cost(
            [
                (out * channels, (height_in, width_in)),
                (out * kernel_y, (height, width_in)),
                (out * kernel_x, (height, width)),
            ]
        )


def composed(lateral: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """The weight (out, in, kh, kw) of filters (out, in), (out, kh) and (out, kw)."""
    return torch.einsum("oi,oy,ox->oiyx", lateral, vertical, horizontal)


def _start(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest product of channels and places of each filter, its places split in the same way."""
    lateral, places = _halves(weight.detach().double().flatten(2))
    return lateral, *_halves(places.view(len(weight), *weight.shape[2:]))


def _halves(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (b, m) and (b, n) whose products are nearest to matrices (b, m, n)."""
    u, s, vh = torch.linalg.svd(matrices, full_matrices=False)
    root = s[:, :1].sqrt()
    return root * u[:, :, 0], root * vh[:, 0]


def _three_layers(layer: nn.Conv2d, factors: Sequence[Tensor]) -> nn.Sequential:
    lateral, vertical, horizontal = factors
    (stride_y, stride_x), (dilation_y, dilation_x) = layer.stride, layer.dilation
    # The words "same" and "valid" mean the same for each axis alone.
    padding = layer.padding
    pad_y, pad_x = (padding, padding) if isinstance(padding, str) else ((padding[0], 0), (0, padding[1]))
    out = layer.out_channels
    down: dict[str, Any] = {"stride": (stride_y, 1), "padding": pad_y, "dilation": (dilation_y, 1), "groups": out}
    across: dict[str, Any] = {"stride": (1, stride_x), "padding": pad_x, "dilation": (1, dilation_x), "groups": out}
    return nn.Sequential(
        conv_factor(lateral[:, :, None, None], layer),
        conv_factor(vertical[:, None, :, None], layer, **down),
        conv_factor(horizontal[:, None, None, :], layer, own_bias(layer), **across),
    ).train(layer.training)
