"""A large convolution rewritten as several of 3 x 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import About, Calibration, LayerCost, LayerInfo
from .factors import conv_factor, conv_reason, dearer_reason, require_plain
from .rewriting import Rewrite, between, own_bias, require_count, rewritten, row_cost

SIDE = 3
NOISE = 0.1
"""Of the centre's size, in the start: what is zero in two neighbouring factors would stay so."""

Padding = tuple[int, int] | str


@dataclass(frozen=True)
class RewriteStacked(Rewrite):
    """A k x k convolution as ``s = (k - 1) / 2`` of 3 x 3 in a row (Szegedy 2016, 1512.00567, section 3.1).

    With ``c`` channels, ``n`` outputs and ``w`` between, ``9 (c w + w n + (s - 2) w^2)`` weights stand for ``k^2 c n``: where
    all are alike, two in place of 5 x 5 take 28 % less. Padding is shared out evenly where it can be, as there, and goes to
    the first layer otherwise; the last one has the stride. Nothing stands between them: ``W'`` is the full convolution of
    their kernels, which starts from a delta in all but the last and is fitted by ``rewriting.fitted``; for the outputs the last
    layer is then regressed on what the first ones really give, borders included.

    Parameters
    ----------
    width
        Channels between the layers; 0: as many as the fewer of those that come in and go out.
    """

    width: int = 0

    name: ClassVar[str] = "rewrite_stacked"
    about: ClassVar[About] = About(
        ("A4",),
        "3 x 3 convolutions in a row in place of a larger one",
        "convolutions of one group with a square odd kernel from 5 x 5 on",
        ("stored bytes", "deployed bytes", "MACs"),
        "smaller layers",
        "Szegedy 2016, 1512.00567",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(self.name, "width", self.width, 0)

    def check(self, layer: LayerInfo) -> str | None:
        reason = conv_reason(layer)
        if reason is not None:
            return reason
        height, width = layer.weight_shape[2:]
        if height != width or height < 5 or height % 2 == 0:
            return (
                f"'{layer.name}' has a {height} x {width} kernel; 3 x 3 ones in a row make square odd kernels from 5 x 5"
                " on (rewrite_separable, rewrite_asymmetric or rewrite_flattened may fit)"
            )
        return dearer_reason(replace(self, width=between(layer, self.width)), layer)

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        layer = require_plain(self.name, module, nn.Conv2d)
        start = _start(layer.weight, between(layer, self.width))
        return rewritten(self.name, layer, calibration, self.fit, composed, start, partial(_row, layer))

    def outline(self, module: nn.Module) -> nn.Module:
        """The layers that ``apply`` makes, their weights of no account."""
        layer = require_plain(self.name, module, nn.Conv2d)
        shapes = _shapes(tuple(layer.weight.shape), between(layer, self.width))
        return _row(layer, [layer.weight.new_zeros(shape) for shape in shapes])

    def cost(self, layer: LayerInfo) -> LayerCost:
        shapes = _shapes(layer.weight_shape, between(layer, self.width))
        sizes, size = [], layer.input_shape[1:]
        for padding in _paddings(layer.padding, len(shapes))[:-1]:
            size = tuple(map(_after, size, layer.dilation, _margins(padding, layer.dilation)))
            sizes.append((size[0], size[1]))
        sizes.append((layer.output_shape[1], layer.output_shape[2]))
        return row_cost([(shape[0] * shape[1] * SIDE * SIDE, size) for shape, size in zip(shapes, sizes)])


def composed(*kernels: Tensor) -> Tensor:
    """The weight (out, in, k, k) of kernels (w, in, 3, 3), ..., (out, w, 3, 3) that follow one another."""
    whole = kernels[-1]
    for kernel in reversed(kernels[:-1]):
        whole = functional.conv_transpose2d(whole, kernel)
    return whole


def _shapes(shape: tuple[int, ...], width: int) -> list[tuple[int, int, int, int]]:
    count = (shape[2] - 1) // 2
    channels = [shape[1], *[width] * (count - 1), shape[0]]
    return [(channels[place + 1], channels[place], SIDE, SIDE) for place in range(count)]


def _start(weight: Tensor, width: int) -> list[Tensor]:
    """Deltas that pass on the leading directions of the inputs, a little noise in them, and zeros for the last kernel."""
    shapes, generator = _shapes(tuple(weight.shape), width), torch.Generator().manual_seed(0)
    factors = []
    for place, shape in enumerate(shapes[:-1]):
        kernel = NOISE / SIDE * shape[1] ** -0.5 * torch.randn(shape, dtype=torch.float64, generator=generator)
        directions = torch.eye(width, dtype=torch.float64)
        if place == 0:
            unfolded = weight.detach().double().transpose(0, 1).flatten(1)
            directions = torch.linalg.eigh(unfolded @ unfolded.T).eigenvectors.flip(1).T[:width]
        kernel[: len(directions), :, 1, 1] += directions
        factors.append(kernel)
    return [*factors, torch.zeros(shapes[-1], dtype=torch.float64)]


def _paddings(padding: Padding, count: int) -> list[Padding]:
    """Of each layer: the word, an even share of the numbers, or all for the first."""
    if isinstance(padding, str):
        return [padding] * count
    if all(side % count == 0 for side in padding):
        return [(padding[0] // count, padding[1] // count)] * count
    return [padding, *[(0, 0)] * (count - 1)]


def _margins(padding: Padding, dilation: tuple[int, int]) -> tuple[int, int]:
    """What a layer's padding adds to both sides of each axis together."""
    if isinstance(padding, str):
        return (2 * dilation[0], 2 * dilation[1]) if padding == "same" else (0, 0)
    return 2 * padding[0], 2 * padding[1]


def _after(size: int, dilation: int, margin: int) -> int:
    return size + margin - dilation * (SIDE - 1)


def _row(layer: nn.Conv2d, kernels: Sequence[Tensor]) -> nn.Sequential:
    last = len(kernels) - 1
    paddings = _paddings(cast(Padding, layer.padding), len(kernels))
    return nn.Sequential(
        *(
            conv_factor(
                kernel,
                layer,
                own_bias(layer) if place == last else None,
                stride=layer.stride if place == last else (1, 1),
                padding=paddings[place],
                dilation=layer.dilation,
            )
            for place, kernel in enumerate(kernels)
        )
    ).train(layer.training)
