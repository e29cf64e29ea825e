"""Xception (1610.02357): residual blocks of depthwise separable convolutions, the extreme form of Inception."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from ..errors import ModelError
from .knobs import Count, Extra, Knobs, Positive, scaled
from .parts import conv_bn, initialise, pooled_head, resizing


@dataclass(frozen=True, kw_only=True)
class XceptionKnobs(Knobs):
    """The shape of an Xception.

    Parameters
    ----------
    downsampling
        At the paper's 32 the two convolutions of the stem are unpadded and any picture of 7 pixels or more will do.
    width
        Multiplier of all channel counts.
    middle
        Blocks of the middle flow.
    """

    side: Count = 299
    width: Positive = 1.0
    middle: Extra = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.must_divide and self.pixels < 7:
            raise ModelError(f"resolution: the paper's stem needs 7 pixels; got {self.pixels}; take less downsampling")
        for channels in (32, 64, 128):
            scaled(channels, self.width)

    @property
    def must_divide(self) -> bool:
        return self.downsampling < 2**self.strides_in_paper


def separable(channels_in: int, channels_out: int) -> nn.Sequential:
    """3x3 depthwise, 1x1 and batch norm; unlike MobileNet's, nothing stands between the two convolutions."""
    parts = {
        "depthwise": nn.Conv2d(channels_in, channels_in, 3, padding=1, groups=channels_in, bias=False),
        "pointwise": nn.Conv2d(channels_in, channels_out, 1, bias=False),
        "bn": nn.BatchNorm2d(channels_out),
    }
    return nn.Sequential(OrderedDict(parts))


class XceptionBlock(nn.Module):
    """Separable convolutions of these widths, each behind a ReLU, with a shortcut: projected where the shape changes.

    Parameters
    ----------
    channels
        What comes in, then what each separable convolution gives.
    stride
        Of the pooling at the end.
    relu_first
        Not in the first block, whose input has just passed one.
    """

    def __init__(self, channels: tuple[int, ...], stride: int, *, relu_first: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(itertools.pairwise(channels)):
            layers += [nn.ReLU()] if index or relu_first else []
            layers.append(separable(before, after))
        layers += [nn.MaxPool2d(3, 2, 1)] if stride == 2 else []
        self.branch = nn.Sequential(*layers)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or channels[0] != channels[-1]:
            self.skip = conv_bn(channels[0], channels[-1], 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.skip(x)


class Xception(nn.Module):
    """Xception: 22,855,952 parameters at 3 channels and 1000 classes (table 3)."""

    def __init__(self, knobs: XceptionKnobs, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.resize = resizing(knobs)
        c32, c64, c128, c256, c728, c1024, c1536, c2048 = (
            scaled(channels, knobs.width) for channels in (32, 64, 128, 256, 728, 1024, 1536, 2048)
        )
        at_stem, to_128, to_256, to_728, to_1024 = knobs.strides
        padded = knobs.must_divide
        self.stem = nn.Sequential(
            conv_bn(in_channels, c32, 3, at_stem, padded=padded), conv_bn(c32, c64, 3, padded=padded)
        )
        self.blocks = nn.Sequential(
            XceptionBlock((c64, c128, c128), to_128, relu_first=False),
            XceptionBlock((c128, c256, c256), to_256),
            XceptionBlock((c256, c728, c728), to_728),
            *(XceptionBlock((c728,) * 4, 1) for _ in range(knobs.middle)),
            XceptionBlock((c728, c728, c1024), to_1024),
        )
        self.last = nn.Sequential(separable(c1024, c1536), nn.ReLU(), separable(c1536, c2048), nn.ReLU())
        self.head = pooled_head(c2048, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of pictures (N, in_channels, side, side)."""
        return self.head(self.last(self.blocks(self.stem(self.resize(x)))))
