"""A residual network whose blocks share their weights: tied before training, each stored and counted once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from .knobs import Count, Knobs, Positive, scaled
from .parts import conv_bn, initialise, pooled_head, resizing

STAGES = (16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class TiedResNetKnobs(Knobs):
    """The shape of a residual network with tied blocks.

    Parameters
    ----------
    width
        Multiplier of the three stages' 16, 32 and 64 channels.
    blocks
        A stage; ``6 blocks + 2`` layers in all (1512.03385, section 4.2).
    share
        ``none``: each block has its own convolutions; ``stage``: a stage's blocks after its first, which changes the shape,
        have one pair between them. Batch norm is each block's own: it holds what differs from block to block.
    """

    side: Count = 32
    downsampling: Count = 4
    width: Positive = 1.0
    blocks: Count = 3
    share: Literal["none", "stage"] = "stage"

    @property
    def strides_in_paper(self) -> int:
        return 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.channels()

    def channels(self) -> list[int]:
        """Of each stage."""
        return [scaled(channels, self.width) for channels in STAGES]


class FirstBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; a 1x1 projection where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(channels_in, channels_out, 3, stride)
        self.second = conv_bn(channels_out, channels_out, 3, activation=None)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.skip = conv_bn(channels_in, channels_out, 1, stride, activation=None)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.skip(x) + self.second(self.first(x)))


class BlockNorms(nn.Module):
    """What a tied block has of its own: the batch norms around convolutions that it is lent."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn1, self.relu1 = nn.BatchNorm2d(channels), nn.ReLU()
        self.bn2, self.relu2 = nn.BatchNorm2d(channels), nn.ReLU()

    def forward(self, x: Tensor, first: nn.Module, second: nn.Module) -> Tensor:
        return self.relu2(x + self.bn2(second(self.relu1(self.bn1(first(x))))))


class TiedBlocks(nn.Module):
    """Residual blocks of one shape that run the same two 3x3 convolutions one after the other."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.blocks = nn.ModuleList(BlockNorms(channels) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, self.conv1, self.conv2)
        return x


class TiedResNet(nn.Module):
    """A ResNet for small pictures with tied blocks; untied it is ResNet-20 with 272,474 parameters at 10 classes."""

    def __init__(self, knobs: TiedResNetKnobs, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.resize = resizing(knobs)
        widths = knobs.channels()
        channels = widths[0]
        self.stem = conv_bn(in_channels, channels, 3)
        stages: list[nn.Module] = []
        for width, stride in zip(widths, (1, *knobs.strides)):
            more = knobs.blocks - 1
            stage: list[nn.Module] = [FirstBlock(channels, width, stride)]
            if more and knobs.share == "stage":
                stage.append(TiedBlocks(width, more))
            else:
                stage += [FirstBlock(width, width, 1) for _ in range(more)]
            stages.append(nn.Sequential(*stage))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.head = pooled_head(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of pictures (N, in_channels, side, side)."""
        return self.head(self.stages(self.stem(self.resize(x))))
