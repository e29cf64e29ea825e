"""Convolution of signs by XNOR and bit count (XNOR-Net, 1603.05279)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .checks import numba_needed, output, require_channels, require_floats

NAME = "xnor_conv2d"
WORD = 64
# Words of a tile of output pixels: with a filter's they stay in the first-level cache.
TILE_WORDS = 3072

Pair = int | tuple[int, int]


@dataclass(frozen=True)
class BinaryWeight:
    """Signs of a convolution's weight, packed, and the scale of each filter.

    Parameters
    ----------
    words
        (F, ceil(C / 64) * kh * kw) uint64: for each group of 64 channels and each tap one word, whose bit ``c`` is set
        where the weight of the group's channel ``c`` is below 0. Bits beyond C are 0.
    alpha
        (F,) float32, ``mean|W|`` of each filter (1603.05279, eq. 6).
    sign_sums
        (F, kh * kw) float32, the sum of the signs over the channels at each tap: what a padded tap must not add.
    shape
        (F, C, kh, kw).
    """

    words: np.ndarray
    alpha: np.ndarray
    sign_sums: np.ndarray
    shape: tuple[int, int, int, int]


def pack_binary_weight(weight: np.ndarray) -> BinaryWeight:
    """Pack a weight (F, C, kh, kw) float32 once, for every call of ``xnor_conv2d``; ``sign(0)`` is 1.

    Raises
    ------
    InputError
        Where the weight has another type or shape.
    """
    weight = require_floats(NAME, "weight", weight, "(F, C, kh, kw)")
    filters, channels, height, width = weight.shape
    groups = -(-channels // WORD)
    bits = np.zeros((filters, height * width, groups * WORD), np.uint8)
    bits[:, :, :channels] = (weight < 0).reshape(filters, channels, -1).transpose(0, 2, 1)
    packed = np.packbits(bits, axis=2, bitorder="little").view("<u8").astype(np.uint64)
    return BinaryWeight(
        words=np.ascontiguousarray(packed.transpose(0, 2, 1)).reshape(filters, -1),
        alpha=np.abs(weight).mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32),
        sign_sums=channels - 2.0 * bits.sum(axis=2, dtype=np.float32),
        shape=(filters, channels, height, width),
    )


def xnor_conv2d(
    x: np.ndarray, weight: BinaryWeight, *, stride: Pair = 1, padding: Pair = 0, out: np.ndarray | None = None
) -> np.ndarray:
    """``K * alpha * (sign(x) (*) sign(W))`` (1603.05279, eq. 11), with one group and no dilation.

    ``K`` is the mean of ``|x|`` over the channels, box filtered over the kernel's window. Padding is exactly 0, in
    ``sign(x)`` as in ``K``: a padded tap adds nothing to the sum of signs, and ``K`` at the border is divided by
    kh * kw still. ``sign(0)`` of an input that is not padding is 1, as is that of -0. Sums of signs are exact.

    Parameters
    ----------
    x
        (N, C, H, W) float32. Its packing is part of this call.
    weight
        Of ``pack_binary_weight``.
    stride, padding
        Of both axes, or (rows, columns).
    out
        An array of the result's shape to write to, so that calls in a loop need no new memory; it shares none with x.

    Returns
    -------
    numpy.ndarray
        (N, F, (H + 2 * padding - kh) // stride + 1, likewise) float32.

    Raises
    ------
    InputError
        Where shapes, types, stride or padding do not fit, or numba is not installed.
    """
    x = require_floats(NAME, "x", x, "(N, C, H, W)")
    filters, channels, *kernel = weight.shape
    require_channels(NAME, x, channels)
    stride, padding = _pair("stride", stride, 1), _pair("padding", padding, 0)
    images, _, *size = x.shape
    if any(edge + 2 * pad < reach for edge, pad, reach in zip(size, padding, kernel)):
        raise InputError(
            f"{NAME}: expected a padded input no smaller than the kernel {tuple(kernel)}, got {tuple(size)}"
            f" with padding {padding}; pad more"
        )
    with numba_needed(NAME):
        from . import xnor_loops
    plan = _plan(size[0], size[1], kernel[0], kernel[1], stride, padding)
    pixels = x.reshape(images, channels, size[0] * size[1])
    if pixels.shape[2] < xnor_loops.FLOAT_LANES:
        pixels = np.pad(pixels, ((0, 0), (0, 0), (0, xnor_loops.FLOAT_LANES - pixels.shape[2])))
    border = (plan.edge_pixels, plan.edge_kinds, weight.sign_sums @ plan.padded_taps)
    out = output(NAME, out, (images, filters, *plan.out_size))
    tile = max(TILE_WORDS // weight.words.shape[1], 1) // 8 * 8 or 8
    windows = (plan.starts, plan.steps, tuple(kernel), stride, plan.out_size)
    packed = (weight.words, weight.alpha)
    xnor_loops.convolve(
        pixels, plan.map_shape, windows, packed, border, tile, out.reshape(images, filters, plan.starts.size)
    )
    return out


@dataclass(frozen=True)
class _Plan:
    """What depends on sizes alone: where windows start in the padded map, and which of their taps are padding.

    ``edge_pixels`` (edges,) are the output pixels with padded taps, ascending; ``padded_taps`` (kh * kw, kinds) float32
    has a 1 for each padded tap of a kind of border, and ``edge_kinds`` (edges,) says which kind a pixel is of.
    """

    map_shape: tuple[int, int, int, int, int, int]
    out_size: tuple[int, int]
    starts: np.ndarray
    steps: np.ndarray
    edge_pixels: np.ndarray
    edge_kinds: np.ndarray
    padded_taps: np.ndarray


@functools.lru_cache(maxsize=256)
def _plan(height: int, width: int, kh: int, kw: int, stride: tuple[int, int], padding: tuple[int, int]) -> _Plan:
    rows, columns = height + 2 * padding[0], width + 2 * padding[1]
    tops, lefts = np.arange(0, rows - kh + 1, stride[0]), np.arange(0, columns - kw + 1, stride[1])
    starts = (tops[:, None] * columns + lefts).reshape(-1)
    steps = (np.arange(kh)[:, None] * columns + np.arange(kw)).reshape(-1)
    inside = np.zeros((rows, columns), bool)
    inside[padding[0] : padding[0] + height, padding[1] : padding[1] + width] = True
    padded = ~inside.reshape(-1)[starts[:, None] + steps]
    edges = np.flatnonzero(padded.any(axis=1))
    kinds, kind_of = np.unique(padded[edges], axis=0, return_inverse=True)
    return _Plan(
        map_shape=(height, width, rows, columns, padding[0], padding[1]),
        out_size=(len(tops), len(lefts)),
        starts=starts,
        steps=steps,
        edge_pixels=edges,
        edge_kinds=kind_of.reshape(-1),
        padded_taps=np.ascontiguousarray(kinds.T, dtype=np.float32),
    )


def _pair(name: str, value: Pair, least: int) -> tuple[int, int]:
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2 or not all(isinstance(part, int) and part >= least for part in pair):
        raise InputError(f"{NAME}: expected {name} as a whole number of at least {least} or two of them, got {value!r}")
    return pair
