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
        return [block for stage in self.stages() for block in stage]

    def stages(self) -> list[list[tuple[int, int]]]:
        """The same by stages of as many channels, so that a block has its name whatever ``repeats`` is."""
        _, to_128, to_256, to_512, to_1024 = self.strides
        repeated = [(512, 1)] * self.repeats
        plan = [[(64, 1)], [(128, to_128), (128, 1)], [(256, to_256), (256, 1)], [(512, to_512), *repeated]]
        plan += [[(1024, to_1024), (1024, 1)]]
        return [[(scaled(channels, self.width, self.multiple), stride) for channels, stride in stage] for stage in plan]


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
        stages = []
        for stage in knobs.stages():
            blocks = []
            for channels_out, stride in stage:
                blocks.append(separable(channels, channels_out, stride))
                channels = channels_out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = pooled_head(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of pictures (N, in_channels, side, side)."""
        return self.head(self.stages(self.stem(self.resize(x))))
