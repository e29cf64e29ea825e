"""ShuffleNet (1707.01083): grouped 1x1 convolutions, and channels shuffled between the groups."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .knobs import Knobs, Positive
from .parts import conv_bn, initialise, pooled_head, resizing

STEM, REPEATS, BOTTLENECK = 24, (4, 8, 4), 4
STAGE2 = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}


@dataclass(frozen=True, kw_only=True)
class ShuffleNetKnobs(Knobs):
    """The shape of a ShuffleNet.

    Parameters
    ----------
    groups
        Of the 1x1 convolutions; it sets the stages' channels too, so that the multiply-adds stay about the same (table 1).
    width
        Multiplier of all channel counts (``ShuffleNet s x``); they are rounded to what the groups divide.
    """

    groups: Literal[1, 2, 3, 4, 8] = 3
    width: Positive = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        stem, stage2, *_ = self.channels()
        if not stem or stage2 <= stem:
            raise ModelError(
                f"a width of {self.width} leaves nothing of a layer in {self.groups} groups; take a larger width or fewer groups"
            )

    def channels(self) -> list[int]:
        """Of the stem and the three stages."""

        def near(channels: int, multiple: int) -> int:
            return int(channels * self.width / multiple + 0.5) * multiple

        stage2 = near(STAGE2[self.groups], BOTTLENECK * self.groups)
        # The groups must divide what the second stage's first unit adds to the stem's channels, too.
        return [near(STEM, self.groups), stage2, 2 * stage2, 4 * stage2]


class Shuffle(nn.Module):
    """Channels (N, g n, H, W) taken as g rows of n, read column by column: each group gets some of every group before it."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleUnit(nn.Module):
    """Grouped 1x1, shuffle, 3x3 depthwise, grouped 1x1; added to its input, or joined to it where the shape changes (figure 2).

    Parameters
    ----------
    grows
        Whether it is the first of its stage: the input, pooled by the stride, makes the first of its output channels.
    first_groups
        Of the first 1x1: 1 at the network's start, where few channels come in.
    """

    def __init__(
        self, channels_in: int, channels_out: int, groups: int, *, grows: bool, stride: int = 1, first_groups: int
    ) -> None:
        super().__init__()
        inner = channels_out // BOTTLENECK
        branch = channels_out - channels_in if grows else channels_out
        parts = {
            "reduce": conv_bn(channels_in, inner, 1, groups=first_groups),
            "shuffle": nn.Identity() if groups == 1 else Shuffle(groups),
            "depthwise": conv_bn(inner, inner, 3, stride, groups=inner, activation=None),
            "expand": conv_bn(inner, branch, 1, groups=groups, activation=None),
        }
        self.branch = nn.Sequential(OrderedDict(parts))
        self.skip: nn.Module = nn.AvgPool2d(3, 2, 1) if stride == 2 else nn.Identity()
        self.relu = nn.ReLU()
        self.grows = grows

    def forward(self, x: Tensor) -> Tensor:
        if self.grows:
            return self.relu(torch.cat([self.skip(x), self.branch(x)], 1))
        return self.relu(self.skip(x) + self.branch(x))


class ShuffleNet(nn.Module):
    """ShuffleNet 1x with 3 groups: 136,500,672 multiply-adds at 3x224x224 before the classifier (137M of table 1)."""

    def __init__(self, knobs: ShuffleNetKnobs, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.resize = resizing(knobs)
        channels, *stages = knobs.channels()
        at_stem, at_pool, *strides = knobs.strides
        pool = [nn.MaxPool2d(3, 2, 1)] if at_pool == 2 else []
        self.stem = nn.Sequential(conv_bn(in_channels, channels, 3, at_stem), *pool)
        units: list[nn.Module] = []
        for width, stride, repeats in zip(stages, strides, REPEATS):
            for index in range(repeats):
                first = knobs.groups if units else 1
                units.append(
                    ShuffleUnit(
                        channels,
                        width,
                        knobs.groups,
                        grows=index == 0,
                        stride=stride if index == 0 else 1,
                        first_groups=first,
                    )
                )
                channels = width
        self.units = nn.Sequential(*units)
        self.head = pooled_head(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of pictures (N, in_channels, side, side)."""
        return self.head(self.units(self.stem(self.resize(x))))
