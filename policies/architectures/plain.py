"""A plain network for small pictures whose convolutions are full, factorized, flattened or separable, by one knob."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from .factorized import Kind, factorized_conv
from .knobs import Count, Knobs, Positive, scaled
from .parts import conv_bn, initialise, pooled_head, resizing

STAGES = (64, 128, 256)
HIDDEN = 512


@dataclass(frozen=True, kw_only=True)
class PlainKnobs(Knobs):
    """The shape of a plain network.

    Parameters
    ----------
    downsampling
        8 pools after each of the three stages, 4 after the last two.
    width
        Multiplier of the stages' 64, 128 and 256 channels.
    blocks
        Convolutions a stage.
    kernel
        Side of every kernel.
    convolution
        How convolutions but the first are written; see ``factorized``.
    head
        ``pooled``: global average pooling (1312.4400); ``linear``: a hidden layer of 512 on all that the last map holds.
    """

    side: Count = 32
    downsampling: Count = 8
    width: Positive = 1.0
    blocks: Count = 2
    kernel: Literal[3, 5, 7] = 3
    convolution: Kind = "full"
    head: Literal["pooled", "linear"] = "pooled"

    @property
    def strides_in_paper(self) -> int:
        return 3

    def __post_init__(self) -> None:
        super().__post_init__()
        self.channels()

    def channels(self) -> list[int]:
        """Of each stage."""
        return [scaled(channels, self.width) for channels in STAGES]


class PlainNet(nn.Module):
    """Three stages of convolutions with batch norm and ReLU, each pooled by 2, and a head."""

    def __init__(self, knobs: PlainKnobs, num_classes: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.resize = resizing(knobs)
        widths = knobs.channels()
        self.stem = conv_bn(in_channels, widths[0], knobs.kernel)
        layers: list[nn.Module] = []
        channels = widths[0]
        for stage, (width, stride) in enumerate(zip(widths, knobs.strides)):
            for _ in range(knobs.blocks if stage else knobs.blocks - 1):
                layers.append(factorized_conv(knobs.convolution, channels, width, knobs.kernel))
                channels = width
            layers += [nn.MaxPool2d(2)] if stride == 2 else []
        self.layers = nn.Sequential(*layers)
        pixels = (knobs.pixels // knobs.downsampling) ** 2
        self.head = (
            pooled_head(channels, num_classes)
            if knobs.head == "pooled"
            else linear_head(channels * pixels, HIDDEN, num_classes)
        )
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of pictures (N, in_channels, side, side)."""
        return self.head(self.layers(self.stem(self.resize(x))))


def linear_head(features: int, hidden: int, num_classes: int) -> nn.Sequential:
    """A hidden layer and the classifier on all numbers of the last map, as AlexNet and VGG have."""
    parts = {
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(features, hidden),
        "relu": nn.ReLU(),
        "fc2": nn.Linear(hidden, num_classes),
    }
    return nn.Sequential(OrderedDict(parts))
