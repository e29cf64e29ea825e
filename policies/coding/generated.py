"""Matrices that are made from few parameters, by elementary float32 operations in a fixed order.

What a network is trained with is what a file decodes to, bit for bit: ``combine`` takes numpy arrays and torch tensors alike,
and gathers, signs, sums and products of single elements round the same in both.

Symbols
-------
m, n
    Rows (output channels) and columns of the matrix. Of a convolution's weight (out, in, kh, kw) the circulant and Toeplitz
    matrices are (out, in), one for each place of the kernel (1708.08917, section 3.2). Fastfood's is (out, in * kh * kw), or
    its transpose where that has more rows than columns.
b
    Size of a block; the last blocks of a row and of a column may be smaller.
d, k
    The least power of two from n on, and the number of d x d blocks that make m rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, cast

import numpy as np

_GOLDEN, _FIRST, _SECOND = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))

Shape = tuple[int, ...]
Stack = Callable[[Any, int], Any]
"""Puts arrays along a new axis: ``np.stack`` or ``torch.stack``."""


@dataclass(frozen=True)
class Generator:
    """One class of matrices.

    Parameters
    ----------
    count
        Number of parameters, from the weight's shape and b.
    constants
        Arrays that do not train, from the shape, b and the seed; with a seed of 0 no sign is drawn.
    combine
        The weight of this shape from the parameters (count,) float32, the constants, the shape, and a ``Stack``.
    """

    count: Callable[[Shape, int], int]
    constants: Callable[[Shape, int, int], tuple[np.ndarray, ...]]
    combine: Callable[[Any, Sequence[Any], Shape, Stack], Any]


def noise(seed: int, stream: int, count: int) -> np.ndarray:
    """(count,) uint64: the numbers of splitmix64 that starts at ``seed * 2^32 + stream``; part of the format."""
    with np.errstate(over="ignore"):
        x = np.uint64((seed * 2**32 + stream) % 2**64) + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * _FIRST
        x = (x ^ (x >> np.uint64(27))) * _SECOND
    return cast(np.ndarray, x ^ (x >> np.uint64(31)))


def signs(seed: int, stream: int, count: int) -> np.ndarray:
    """(count,) float32 of 1 and -1 by the highest bit of ``noise``; all 1 for a seed of 0."""
    if not seed:
        return np.ones(count, np.float32)
    return np.where(noise(seed, stream, count) >> np.uint64(63), np.float32(-1), np.float32(1))


def _blocks(size: int, block: int) -> np.ndarray:
    """Sizes of the blocks along an axis."""
    sizes = np.full(-(-size // block), block)
    sizes[-1] = size - (len(sizes) - 1) * block
    return sizes


def _diagonals(shape: Shape, block: int, wrapped: bool) -> np.ndarray:
    """(row blocks, column blocks) distinct diagonals in each block."""
    count = _blocks(shape[0], block)[:, None] + _blocks(shape[1], block) - 1
    return np.minimum(count, block) if wrapped else count


def _diagonal_count(shape: Shape, block: int, wrapped: bool) -> int:
    return int(_diagonals(shape, block, wrapped).sum()) * prod(shape[2:])


def _diagonal_constants(shape: Shape, block: int, seed: int, wrapped: bool) -> tuple[np.ndarray, np.ndarray]:
    """Which parameter stands where, int64 of the weight's shape, and the signs of the input channels.

    Block after block in C order, in each diagonal after diagonal, in each the places of the kernel. Within a block of w
    columns the diagonal of (i, j) is i - j + w - 1; where diagonals wrap around and are more than b, (i - j) mod b.
    """
    row, column = np.arange(shape[0])[:, None], np.arange(shape[1])
    count = _diagonals(shape, block, wrapped)
    place = row // block, column // block
    start = (np.cumsum(count.ravel()).reshape(count.shape) - count)[place]
    difference = row % block - column % block
    diagonal = difference + _blocks(shape[1], block)[column // block] - 1
    if wrapped:
        diagonal = np.where(count[place] == block, difference % block, diagonal)
    places = prod(shape[2:])
    index = ((start + diagonal)[:, :, None] * places + np.arange(places)).reshape(shape)
    return index, signs(seed, 0, shape[1]).reshape(1, -1, *(1,) * (len(shape) - 2))


def _on_diagonals(values: Any, constants: Sequence[Any], shape: Shape, stack: Stack) -> Any:
    index, flips = constants
    return values[index] * flips


def fastfood_sizes(shape: Shape) -> tuple[int, int, int, int]:
    """m, n, d and k."""
    n, m = sorted((shape[0], prod(shape[1:])))
    d = 1 << (n - 1).bit_length()
    return m, n, d, -(-m // d)


def upright(matrix: Any) -> Any:
    """The matrix, or its transpose, such that rows are at least as many as columns."""
    return matrix.T if matrix.shape[0] < matrix.shape[1] else matrix


def _fastfood_count(shape: Shape, block: int) -> int:
    m, n, d, k = fastfood_sizes(shape)
    return k * (n + d) + m


def _fastfood_constants(shape: Shape, block: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The first n columns of the Hadamard matrix (d, n) float32, and a permutation of d in each block: (k * d,) int64."""
    _, n, d, k = fastfood_sizes(shape)
    hadamard = hadamard_transform(np.eye(d, n, dtype=np.float32)[None], np.stack)[0]
    order = [np.argsort(noise(seed, stream, d), kind="stable") + stream * d for stream in range(k)]
    return hadamard, np.concatenate(order)


def _fastfood(values: Any, constants: Sequence[Any], shape: Shape, stack: Stack) -> Any:
    """``S H G P H B / d`` with the diagonals B (k, n), G (k, d) and S (m,), in this order in ``values``."""
    hadamard, order = constants
    m, n, d, k = fastfood_sizes(shape)
    b, g, s = values[: k * n], values[k * n : k * (n + d)], values[k * (n + d) :]
    inner = (hadamard * b.reshape(k, 1, n)).reshape(k * d, n)[order] * g.reshape(-1, 1)
    outer = hadamard_transform(inner.reshape(k, d, n), stack).reshape(k * d, n)[:m]
    matrix = outer * (s.reshape(-1, 1) * (1.0 / d))
    return (matrix if m == shape[0] else matrix.T).reshape(shape)


def hadamard_transform(x: Any, stack: Stack) -> Any:
    """``H x`` along the middle axis of (k, d, n), d a power of two: sums and differences, without a factor."""
    k, d, n = x.shape
    half = 1
    while half < d:
        x = x.reshape(k, d // (2 * half), 2, half, n)
        x = stack([x[:, :, 0] + x[:, :, 1], x[:, :, 0] - x[:, :, 1]], 2)
        half *= 2
    return x.reshape(k, d, n)


def _on_diagonals_of(wrapped: bool) -> Generator:
    return Generator(
        partial(_diagonal_count, wrapped=wrapped), partial(_diagonal_constants, wrapped=wrapped), _on_diagonals
    )


GENERATORS: Mapping[str, Generator] = {
    "circulant": _on_diagonals_of(wrapped=True),
    "toeplitz": _on_diagonals_of(wrapped=False),
    "fastfood": Generator(_fastfood_count, _fastfood_constants, _fastfood),
}
"""In the order of their number in a file: rows are only ever added at the end."""
