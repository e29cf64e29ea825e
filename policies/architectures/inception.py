"""Inception modules and GoogLeNet (1409.4842) with bottleneck widths, and their factorized forms (1512.00567)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from .factorized import Kind, factorized_conv
from .knobs import Knobs, Positive, scaled
from .parts import conv_bn, initialise, pooled_head, resizing

STEM, STEM_REDUCE, STEM_OUT = 64, 64, 192


@dataclass(frozen=True)
class InceptionWidths:
    """Filters of one module's four branches, side by side.

    Parameters
    ----------
    one, three, five
        Of the 1x1, 3x3 and 5x5 convolutions.
    reduce_three, reduce_five
        Of the 1x1 bottlenecks before them; 0: none, the naive module (1409.4842, figure 2a).
    pool
        Of the 1x1 after pooling; 0: no branch that pools.
    """

    one: int
    reduce_three: int
    three: int
    reduce_five: int
    five: int
    pool: int

    @property
    def channels(self) -> int:
        """That come out."""
        return self.one + self.three + self.five + self.pool


# Table 1 of 1409.4842; a new size starts with each inner list.
TABLE = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


@dataclass(frozen=True, kw_only=True)
class InceptionKnobs(Knobs):
    """The shape of a GoogLeNet.

    Parameters
    ----------
    downsampling
        Below the paper's 32 the stem is a 3x3 convolution.
    width
        Multiplier of all channel counts.
    bottleneck
        Multiplier of the bottlenecks' widths on top of it.
    spatial
        How the 3x3 and 5x5 convolutions are written: ``stacked`` makes the 5x5 two 3x3, ``asymmetric`` makes both n x 1
        and 1 x n, ``extreme`` and ``separable`` make them depthwise; see ``factorized``.
    """

    width: Positive = 1.0
    bottleneck: Positive = 1.0
    spatial: Literal["full", "stacked", "asymmetric", "separable", "extreme"] = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.stem()
        self.modules()

    def stem(self) -> tuple[int, int, int]:
        """Channels of the three convolutions before the first module."""
        return scaled(STEM, self.width), scaled(STEM_REDUCE, self.width), scaled(STEM_OUT, self.width)

    def modules(self) -> list[list[InceptionWidths]]:
        """Of each size."""
        return [[self._module(InceptionWidths(*row)) for row in stage] for stage in TABLE]

    def _module(self, widths: InceptionWidths) -> InceptionWidths:
        reduced = self.width * self.bottleneck
        names = {"one": self.width, "three": self.width, "five": self.width, "pool": self.width}
        names |= {"reduce_three": reduced, "reduce_five": reduced}
        return replace(widths, **{name: scaled(getattr(widths, name), factor) for name, factor in names.items()})


class Inception(nn.Module):
    """Branches of 1x1, 3x3, 5x5 and pooling, joined: (N, channels_in, H, W) to (N, widths.channels, H, W)."""

    def __init__(self, channels_in: int, widths: InceptionWidths, spatial: Kind = "full") -> None:
        super().__init__()
        self.one = conv_bn(channels_in, widths.one, 1)
        self.three = _reduced(channels_in, widths.reduce_three, widths.three, 3, spatial)
        self.five = _reduced(channels_in, widths.reduce_five, widths.five, 5, spatial)
        self.pool: nn.Module | None = None
        if widths.pool:
            pool = nn.MaxPool2d(3, 1, 1)
            self.pool = nn.Sequential(OrderedDict(pool=pool, project=conv_bn(channels_in, widths.pool, 1)))

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.one(x), self.three(x), self.five(x)]
        if self.pool is not None:
            branches.append(self.pool(x))
        return torch.cat(branches, 1)


def _reduced(channels_in: int, reduce: int, channels_out: int, kernel: int, spatial: Kind) -> nn.Sequential:
    if not reduce:
        return nn.Sequential(OrderedDict(spatial=factorized_conv(spatial, channels_in, channels_out, kernel)))
    convolution = factorized_conv(spatial, reduce, channels_out, kernel)
    return nn.Sequential(OrderedDict(reduce=conv_bn(channels_in, reduce, 1), spatial=convolution))


class GoogLeNet(nn.Module):
    """GoogLeNet with batch norm, without auxiliary classifiers: 7,005,832 parameters at 3x224x224 and 1000 classes."""

    def __init__(self, knobs: InceptionKnobs, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.resize = resizing(knobs)
        stem, reduce, channels = knobs.stem()
        at_stem, *pools = knobs.strides
        self.stem = nn.Sequential(
            conv_bn(in_channels, stem, 7 if at_stem == 2 else 3, at_stem),
            *_pool(pools[0]),
            conv_bn(stem, reduce, 1),
            conv_bn(reduce, channels, 3),
            *_pool(pools[1]),
        )
        layers: list[nn.Module] = []
        for stage, stride in zip(knobs.modules(), (*pools[2:], 1)):
            for widths in stage:
                layers.append(Inception(channels, widths, knobs.spatial))
                channels = widths.channels
            layers += _pool(stride)
        self.layers = nn.Sequential(*layers)
        self.head = pooled_head(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of pictures (N, in_channels, side, side)."""
        return self.head(self.layers(self.stem(self.resize(x))))


def _pool(stride: int) -> list[nn.Module]:
    return [nn.MaxPool2d(3, 2, 1)] if stride == 2 else []
