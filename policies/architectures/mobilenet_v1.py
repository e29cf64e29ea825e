"""MobileNet V1 (1704.04861): depthwise separable convolutions, with a width and a resolution multiplier."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from .knobs import Count, Extra, scaled
from .mobilenet import MobileNetKnobs
from .parts import conv_bn, initialise, pooled_head, resizing


@dataclass(frozen=True, kw_only=True)
class MobileNetV1Knobs(MobileNetKnobs):
    """The shape of a MobileNet V1.

    Parameters
    ----------
    width
        Multiplier of all channel counts (section 3.3).
    multiple
        Channel counts are multiples of this; the paper rounds to whole channels.
    repeats
        Blocks of 512 channels at one size: the paper's 5, and 0 for its shallow network (table 5).
    """

    multiple: Count = 1
    repeats: Extra = 5

    def blocks(self) -> list[tuple[int, int]]:
        """(channels, stride) of each block (table 1, whose last stride of 2 is a slip: its map stays 7x7)."""
        return list(self.named_blocks().values())

    def named_blocks(self) -> dict[str, tuple[int, int]]:
        """The same by name: the paper's channels and the place among those that have as many, whatever ``repeats`` is."""
        _, to_128, to_256, to_512, to_1024 = self.strides
        plan = {64: [1], 128: [to_128, 1], 256: [to_256, 1], 512: [to_512] + [1] * self.repeats, 1024: [to_1024, 1]}
        return {
            f"{channels}_{place}": (scaled(channels, self.width, self.multiple), stride)
            for channels, strides in plan.items()
            for place, stride in enumerate(strides)
        }


def separable(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """3x3 depthwise and 1x1 convolution, each with batch norm and ReLU (figure 3)."""
    depthwise = conv_bn(channels_in, channels_in, 3, stride, groups=channels_in)
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=conv_bn(channels_in, channels_out, 1)))


class MobileNetV1(nn.Module):
    """MobileNet V1: 4,231,976 parameters and 568,740,352 multiply-adds at 3x224x224 and 1000 classes."""

    def __init__(self, knobs: MobileNetV1Knobs, num_classes: int = 1000, in_channels: int = 3) -> None:
        super().__init__()
        self.resize = resizing(knobs)
        self.stem = conv_bn(in_channels, knobs.stem, 3, knobs.strides[0])
        channels = knobs.stem
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        for name, (channels_out, stride) in knobs.named_blocks().items():
            blocks[name] = separable(channels, channels_out, stride)
            channels = channels_out
        self.blocks = nn.Sequential(blocks)
        self.head = pooled_head(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of pictures (N, in_channels, side, side)."""
        return self.head(self.blocks(self.stem(self.resize(x))))
