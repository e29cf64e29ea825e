"""Networks of one to three thousand weights for small pictures: a convolution, depthwise separable blocks, global pooling."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor, nn

from .knobs import Count, Knobs, Rule
from .parts import conv_bn, initialise, pooled_head, resizing

_WIDTHS = re.compile(r"[1-9]\d{0,3}(-[1-9]\d{0,3})*", re.ASCII)
Widths = Annotated[
    str, Rule("channels of each block such as 16-24-32", lambda v: isinstance(v, str) and bool(_WIDTHS.fullmatch(v)))
]


@dataclass(frozen=True, kw_only=True)
class PocketKnobs(Knobs):
    """The shape of a pocket network.

    Parameters
    ----------
    downsampling
        4: strides of 2 in the stem and the second block, where there is one; 2: in the second block alone.
    stem, stem_kernel
        Filters of the first convolution, and their side.
    blocks
        Channels of each block.
    kernel
        Side of the depthwise kernels.
    norms
        ``pointwise``: a block is linear up to its end, so that its depthwise filters need no batch norm of their own and less
        is stored (no activation inside is also what 1610.02357, figure 10, finds best); ``each``: both convolutions of a block
        have batch norm and ReLU (1704.04861).
    """

    side: Count = 28
    downsampling: Count = 4
    stem: Count = 12
    stem_kernel: Literal[3, 5, 7] = 5
    blocks: Widths = "16-24-32"
    kernel: Literal[3, 5, 7] = 3
    norms: Literal["pointwise", "each"] = "pointwise"

    @property
    def strides_in_paper(self) -> int:
        return 2

    def plan(self) -> list[tuple[int, int]]:
        """(channels, stride) of each block."""
        widths = [int(width) for width in self.blocks.split("-")]
        return [(width, self.strides[1] if place == 1 else 1) for place, width in enumerate(widths)]


class PocketNet(nn.Module):
    """2,610 parameters as its knobs are, for 10 classes and one channel."""

    def __init__(self, knobs: PocketKnobs, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.resize = resizing(knobs)
        self.stem = conv_bn(in_channels, knobs.stem, knobs.stem_kernel, knobs.strides[0])
        channels, blocks = knobs.stem, []
        for width, stride in knobs.plan():
            blocks.append(_block(channels, width, knobs.kernel, stride, knobs.norms == "each"))
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.head = pooled_head(channels, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes) of pictures (N, in_channels, side, side)."""
        return self.head(self.blocks(self.stem(self.resize(x))))


def _block(channels_in: int, channels_out: int, kernel: int, stride: int, normed: bool) -> nn.Sequential:
    depthwise: nn.Module = (
        conv_bn(channels_in, channels_in, kernel, stride, groups=channels_in)
        if normed
        else nn.Conv2d(channels_in, channels_in, kernel, stride, kernel // 2, groups=channels_in, bias=False)
    )
    return nn.Sequential(OrderedDict(depthwise=depthwise, pointwise=conv_bn(channels_in, channels_out, 1)))
