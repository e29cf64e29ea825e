"""SqueezeNet (1602.07360): fire modules with a squeeze ratio, a share of 3x3 filters, and three kinds of bypass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .knobs import Count, Knobs, Part, Positive, Ratio, scaled
from .parts import HEAD_STD, conv_bn, initialise, resizing

STEM, EXPAND, FIRES, EVERY = 96, 128, 8, 2
POOLS_AFTER = (2, 6)
DROPOUT = 0.5


@dataclass(frozen=True, kw_only=True)
class SqueezeNetKnobs(Knobs):
    """The shape of a SqueezeNet.

    Parameters
    ----------
    downsampling
        At the paper's 16 the stem is its unpadded 7x7 of stride 2 and any picture of 21 pixels or more will do.
    width
        Multiplier of the stem's 96 and the expand layers' 128 to 512 filters.
    squeeze_ratio
        Filters of a squeeze layer for each of its expand layers' (SR of section 5.2).
    share_3x3
        Share of the expand filters that are 3x3 (pct3x3 of section 5.3).
    bypass
        ``simple``: around modules whose channels stay; ``complex``: a 1x1 convolution around the others too (section 6).
    batch_norm
        After each convolution, those of bypasses too, but the classifier, which then has no ReLU either. The paper has
        none; without it the network learns at small rates alone: a classifier whose outputs are all below 0 stays there.
    """

    downsampling: Count = 16
    width: Positive = 1.0
    squeeze_ratio: Ratio = 0.125
    share_3x3: Part = 0.5
    bypass: Literal["none", "simple", "complex"] = "none"
    batch_norm: bool = False

    @property
    def strides_in_paper(self) -> int:
        return 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.must_divide and self.pixels < 21:
            raise ModelError(
                f"resolution: the paper's stem and pools need 21 pixels; got {self.pixels}; take a downsampling of 8 or less"
            )
        scaled(STEM, self.width)
        self.fires()

    @property
    def must_divide(self) -> bool:
        return self.downsampling < 2**self.strides_in_paper

    @property
    def stem(self) -> int:
        """Channels of the first convolution."""
        return scaled(STEM, self.width)

    def fires(self) -> list[tuple[int, int, int]]:
        """Filters of each fire module: (squeeze, expand 1x1, expand 3x3)."""
        plan = []
        for index in range(FIRES):
            expand = scaled(EXPAND * (1 + index // EVERY), self.width)
            squeeze, three = int(self.squeeze_ratio * expand + 0.5), int(self.share_3x3 * expand + 0.5)
            if not squeeze or not 0 < three < expand:
                raise ModelError(
                    f"fire module {index + 2} of {expand} filters: squeeze_ratio {self.squeeze_ratio} and share_3x3"
                    f" {self.share_3x3} leave a layer empty; take a larger width or shares nearer to a half"
                )
            plan.append((squeeze, expand - three, three))
        return plan


def _conv(channels_in: int, channels_out: int, kernel: int, batch_norm: bool) -> nn.Sequential:
    if batch_norm:
        return conv_bn(channels_in, channels_out, kernel)
    return nn.Sequential(nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2), nn.ReLU())


class Fire(nn.Module):
    """A squeeze layer of 1x1 filters, then 1x1 and 3x3 filters side by side (section 3.2).

    Parameters
    ----------
    widths
        (squeeze, expand 1x1, expand 3x3).
    bypass
        What is added to the module's output: ``None``, or made of its input by this.
    """

    def __init__(self, channels_in: int, widths: tuple[int, int, int], bypass: nn.Module | None, norm: bool) -> None:
        super().__init__()
        squeeze, one, three = widths
        self.squeeze = _conv(channels_in, squeeze, 1, norm)
        self.expand1x1 = _conv(squeeze, one, 1, norm)
        self.expand3x3 = _conv(squeeze, three, 3, norm)
        self.bypass = bypass

    def forward(self, x: Tensor) -> Tensor:
        squeezed = self.squeeze(x)
        out = torch.cat([self.expand1x1(squeezed), self.expand3x3(squeezed)], 1)
        return out if self.bypass is None else out + self.bypass(x)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.0: 1,248,424 parameters at 3 channels and 1000 classes; its classifier is a pooled convolution."""

    def __init__(self, knobs: SqueezeNetKnobs, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.resize = resizing(knobs)
        stride, *pools = knobs.strides
        # The paper's network is unpadded; a stem without a stride is that of a small picture.
        kernel, padding = (7, 0) if stride == 2 else (3, 1)
        conv = nn.Conv2d(in_channels, knobs.stem, kernel, stride, padding, bias=not knobs.batch_norm)
        norm = [nn.BatchNorm2d(knobs.stem)] if knobs.batch_norm else []
        self.stem = nn.Sequential(conv, *norm, nn.ReLU(), *_pool(pools[0]))
        self.fires, channels = self._body(knobs, pools[1:])
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        self.relu: nn.Module = nn.Identity() if knobs.batch_norm else nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        initialise(self)
        nn.init.normal_(self.classifier.weight, std=HEAD_STD)

    @staticmethod
    def _body(knobs: SqueezeNetKnobs, pools: list[int]) -> tuple[nn.Sequential, int]:
        strides = dict(zip(POOLS_AFTER, pools))
        layers: list[nn.Module] = []
        channels = knobs.stem
        for index, widths in enumerate(knobs.fires()):
            out = widths[1] + widths[2]
            layers.append(Fire(channels, widths, _bypass(knobs, channels, out), knobs.batch_norm))
            layers += _pool(strides.get(index, 1))
            channels = out
        return nn.Sequential(*layers), channels

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of pictures (N, in_channels, side, side)."""
        x = self.dropout(self.fires(self.stem(self.resize(x))))
        return self.flatten(self.pool(self.relu(self.classifier(x))))


def _pool(stride: int) -> list[nn.Module]:
    return [nn.MaxPool2d(3, 2, ceil_mode=True)] if stride == 2 else []


def _bypass(knobs: SqueezeNetKnobs, channels_in: int, channels_out: int) -> nn.Module | None:
    if knobs.bypass == "none":
        return None
    if channels_in == channels_out:
        return nn.Identity()
    if knobs.bypass == "simple":
        return None
    if knobs.batch_norm:
        return conv_bn(channels_in, channels_out, 1, activation=None)
    return nn.Conv2d(channels_in, channels_out, 1)
