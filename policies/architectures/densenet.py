"""DenseNet (1608.06993): each layer reads all that came before it in its block, and adds ``growth`` channels."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .knobs import Count, Knobs, Ratio
from .parts import conv_bn, initialise, pooled_head, resizing

WIDE = 4
PLAIN_STEM = 16
IMAGENET = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32), 264: (6, 12, 64, 48)}


@dataclass(frozen=True, kw_only=True)
class DenseNetKnobs(Knobs):
    """The shape of a DenseNet.

    Parameters
    ----------
    downsampling
        The paper's is 4 in the layout for small pictures and 32 in that for ImageNet.
    layout
        ``cifar``: three equal blocks; ``imagenet``: four, and a stem of 7x7 and pooling (table 1).
    depth
        Layers in all (L): 4 more than a multiple of 3, of 6 with bottlenecks; 121, 169, 201 or 264 on ``imagenet``.
    growth
        Channels that each layer adds (k).
    bottleneck
        A 1x1 convolution to 4 k channels before each 3x3 (DenseNet-B).
    compression
        Share of the channels that the layers between blocks keep (theta; below 1: DenseNet-C).
    """

    side: Count = 32
    downsampling: Count = 4
    layout: Literal["cifar", "imagenet"] = "cifar"
    depth: Count = 40
    growth: Count = 12
    bottleneck: bool = False
    compression: Ratio = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layout == "imagenet" and self.depth not in IMAGENET:
            raise ModelError(f"depth: on the imagenet layout one of {', '.join(map(str, IMAGENET))}; got {self.depth}")
        step = 6 if self.bottleneck else 3
        if self.layout == "cifar" and (self.depth - 4 < step or (self.depth - 4) % step):
            raise ModelError(f"depth: expected 4 more than a multiple of {step}, as {4 + 6 * step}; got {self.depth}")
        self.transitions()

    @property
    def strides_in_paper(self) -> int:
        return 5 if self.layout == "imagenet" else 2

    @property
    def stem(self) -> int:
        """Channels of the first convolution (section 3, implementation details)."""
        compressed = self.bottleneck and self.compression < 1
        return 2 * self.growth if compressed or self.layout == "imagenet" else PLAIN_STEM

    @property
    def blocks(self) -> tuple[int, ...]:
        """Layers of each dense block."""
        if self.layout == "imagenet":
            return IMAGENET[self.depth]
        return ((self.depth - 4) // (6 if self.bottleneck else 3),) * 3

    def transitions(self) -> list[int]:
        """Channels after each layer between two blocks."""
        channels, found = self.stem, []
        for layers in self.blocks[:-1]:
            channels = int((channels + layers * self.growth) * self.compression)
            if not channels:
                raise ModelError(f"compression: {self.compression} leaves no channel between blocks; take more")
            found.append(channels)
        return found


def _norm_conv(channels_in: int, channels_out: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(channels_in), act=nn.ReLU(), conv=conv))


class DenseLayer(nn.Module):
    """Batch norm, ReLU and convolution, once or with a bottleneck twice; joined behind its input."""

    def __init__(self, channels_in: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        parts: dict[str, nn.Module] = {}
        if bottleneck:
            parts["reduce"] = _norm_conv(channels_in, WIDE * growth, 1)
        parts["spatial"] = _norm_conv(WIDE * growth if bottleneck else channels_in, growth, 3)
        self.branch = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.branch(x)], 1)


def _transition(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    pool = [nn.AvgPool2d(2)] if stride == 2 else []
    return nn.Sequential(_norm_conv(channels_in, channels_out, 1), *pool)


class DenseNet(nn.Module):
    """DenseNet: 1,019,722 parameters at L=40, k=12, 3 channels and 10 classes (1.0M of table 2)."""

    def __init__(self, knobs: DenseNetKnobs, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.resize = resizing(knobs)
        strides, channels = list(knobs.strides), knobs.stem
        self.stem = self._stem(in_channels, channels, strides, knobs.layout == "imagenet")
        layers: list[nn.Module] = []
        for index, repeats in enumerate(knobs.blocks):
            for _ in range(repeats):
                layers.append(DenseLayer(channels, knobs.growth, knobs.bottleneck))
                channels += knobs.growth
            if index < len(knobs.transitions()):
                layers.append(_transition(channels, knobs.transitions()[index], strides.pop(0)))
                channels = knobs.transitions()[index]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.head = pooled_head(channels, num_classes)
        initialise(self)

    @staticmethod
    def _stem(in_channels: int, channels: int, strides: list[int], imagenet: bool) -> nn.Module:
        if not imagenet:
            return nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        at_stem, at_pool = strides.pop(0), strides.pop(0)
        pool = [nn.MaxPool2d(3, 2, 1)] if at_pool == 2 else []
        return nn.Sequential(conv_bn(in_channels, channels, 7 if at_stem == 2 else 3, at_stem), *pool)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of pictures (N, in_channels, side, side)."""
        x = self.layers(self.stem(self.resize(x)))
        return self.head(self.relu(self.norm(x)))
