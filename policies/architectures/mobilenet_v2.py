"""MobileNet V2 (1801.04381): inverted residuals with linear bottlenecks, with a width and a resolution multiplier."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from .knobs import Count, scaled
from .mobilenet import MobileNetKnobs
from .parts import conv_bn, initialise, pooled_head, resizing

LAST = 1280


@dataclass(frozen=True, kw_only=True)
class MobileNetV2Knobs(MobileNetKnobs):
    """The shape of a MobileNet V2.

    Parameters
    ----------
    width
        Multiplier of all channel counts; the last convolution is not made narrower by one below 1 (section 4).
    multiple
        Channel counts are multiples of this.
    expansion
        Of each block but the first, whose expansion is 1.
    """

    expansion: Count = 6

    @property
    def last(self) -> int:
        """Channels of the last convolution."""
        return scaled(LAST, max(1.0, self.width), self.multiple)

    def blocks(self) -> list[tuple[int, int, int]]:
        """(expansion, channels, stride) of each block (table 2)."""
        _, to_24, to_32, to_64, to_160 = self.strides
        rows = [(16, 1, 1), (24, 2, to_24), (32, 3, to_32), (64, 4, to_64), (96, 3, 1), (160, 3, to_160), (320, 1, 1)]
        blocks = []
        for row, (channels, repeats, stride) in enumerate(rows):
            out = scaled(channels, self.width, self.multiple)
            expansion = self.expansion if row else 1
            blocks += [(expansion, out, stride if first else 1) for first in [True] + [False] * (repeats - 1)]
        return blocks


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without activation; added to its input where the shape stays."""

    def __init__(self, channels_in: int, expansion: int, channels_out: int, stride: int) -> None:
        super().__init__()
        inner = channels_in * expansion
        parts: dict[str, nn.Module] = {}
        if expansion != 1:
            parts["expand"] = conv_bn(channels_in, inner, 1, activation=nn.ReLU6)
        parts["depthwise"] = conv_bn(inner, inner, 3, stride, groups=inner, activation=nn.ReLU6)
        parts["project"] = conv_bn(inner, channels_out, 1, activation=None)
        self.branch = nn.Sequential(OrderedDict(parts))
        self.adds = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.adds else self.branch(x)


class MobileNetV2(nn.Module):
    """MobileNet V2: 3,504,872 parameters and 300,774,272 multiply-adds at 3x224x224 and 1000 classes."""

    def __init__(self, knobs: MobileNetV2Knobs, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.resize = resizing(knobs)
        self.stem = conv_bn(in_channels, knobs.stem, 3, knobs.strides[0], activation=nn.ReLU6)
        channels = knobs.stem
        blocks = []
        for expansion, channels_out, stride in knobs.blocks():
            blocks.append(InvertedResidual(channels, expansion, channels_out, stride))
            channels = channels_out
        self.blocks = nn.Sequential(*blocks)
        self.last = conv_bn(channels, knobs.last, 1, activation=nn.ReLU6)
        self.head = pooled_head(knobs.last, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of pictures (N, in_channels, side, side)."""
        return self.head(self.last(self.blocks(self.stem(self.resize(x)))))
