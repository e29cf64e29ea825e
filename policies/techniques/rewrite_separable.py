"""A convolution rewritten as depthwise separable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import About, Calibration, LayerCost, LayerInfo
from .factors import conv_factor, conv_reason, dearer_reason, require_plain
from .rewriting import Rewrite, depthwise_clash, own_bias, require_count, rewritten, row_cost


@dataclass(frozen=True)
class RewriteSeparable(Rewrite):
    """A kh x kw convolution as a depthwise one and a 1 x 1 one (Chollet 2017, 1610.02357; Howard 2017, 1704.04861, eq. 3).

    With ``m`` filters for each of ``c`` channels and ``n`` outputs, ``c m kh kw + c m n`` weights stand for ``c n kh kw``:
    for m = 1 the share ``1 / n + 1 / (kh kw)``. Stride, padding and dilation go to the depthwise layer. Nothing stands
    between the two: ``W'[o, i] = sum_m p[o, i, m] d[i, m]``, which starts from the truncated SVD of each ``W[:, i]`` and is
    fitted by ``rewriting.fitted``.

    Parameters
    ----------
    multiplier
        Filters m for each channel, at least 1.
    """

    multiplier: int = 1

    name: ClassVar[str] = "rewrite_separable"
    about: ClassVar[About] = About(
        ("A5",),
        "a depthwise and a 1 x 1 convolution in place of one",
        "convolutions of one group, larger than 1 x 1",
        ("stored bytes", "deployed bytes", "MACs"),
        "smaller layers",
        "Chollet 2017, 1610.02357",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(self.name, "multiplier", self.multiplier, 1)

    def check(self, layer: LayerInfo) -> str | None:
        return conv_reason(layer) or dearer_reason(self, layer)

    def clash(self, other: object) -> str | None:
        """Depthwise layers have no single Hessian."""
        return depthwise_clash(self.name, other)

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        layer = require_plain(self.name, module, nn.Conv2d)
        start = _start(layer.weight, self.multiplier)
        return rewritten(self.name, layer, calibration, self.fit, composed, start, partial(_two_layers, layer))

    def outline(self, module: nn.Module) -> nn.Module:
        """The layers that ``apply`` makes, their weights of no account."""
        layer = require_plain(self.name, module, nn.Conv2d)
        out, channels, *kernel = layer.weight.shape
        zeros = layer.weight.new_zeros
        return _two_layers(layer, (zeros(channels, self.multiplier, *kernel), zeros(out, channels, self.multiplier)))

    def cost(self, layer: LayerInfo) -> LayerCost:
        out, channels, height, width = layer.weight_shape
        filters, size = channels * self.multiplier, layer.output_shape[1:]
        return row_cost([(filters * height * width, size), (filters * out, size)])


def composed(depthwise: Tensor, pointwise: Tensor) -> Tensor:
    """The weight (out, in, kh, kw) of filters (in, m, kh, kw) and what the outputs take of each, (out, in, m)."""
    return torch.einsum("imyx,oim->oiyx", depthwise, pointwise)


def _start(weight: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """The nearest to each channel's (out, kh * kw) weights of this rank."""
    channels, kernel = weight.shape[1], weight.shape[2:]
    u, s, vh = torch.linalg.svd(weight.detach().double().transpose(0, 1).flatten(2), full_matrices=False)
    root = s[:, :multiplier].sqrt()
    depthwise = (root[:, :, None] * vh[:, :multiplier]).view(channels, multiplier, *kernel)
    return depthwise, (u[:, :, :multiplier] * root[:, None]).transpose(0, 1)


def _two_layers(layer: nn.Conv2d, factors: Sequence[Tensor]) -> nn.Sequential:
    depthwise, pointwise = factors
    filters = depthwise.flatten(0, 1)[:, None]
    first = conv_factor(
        filters,
        layer,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.in_channels,
    )
    second = conv_factor(pointwise.flatten(1)[:, :, None, None], layer, own_bias(layer))
    return nn.Sequential(first, second).train(layer.training)
