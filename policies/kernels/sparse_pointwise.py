"""1x1 convolution with a sparse weight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .checks import numba_needed, output, require_channels, require_floats

NAME = "sparse_pointwise"
# Floats of a tile of the input, over all channels: they stay in the second-level cache. A tile is whole blocks of 64.
TILE_FLOATS = 65536
BLOCK = 64


@dataclass(frozen=True)
class SparseWeight:
    """The weight of a 1x1 convolution by its nonzero values, row after row (CSR).

    Parameters
    ----------
    values
        (nonzeros,) float32.
    columns
        (nonzeros,) int64, the input channel of each.
    row_starts
        (F + 1,) int64: filter ``f`` holds the values from ``row_starts[f]`` up to ``row_starts[f + 1]``.
    shape
        (F, C).
    """

    values: np.ndarray
    columns: np.ndarray
    row_starts: np.ndarray
    shape: tuple[int, int]


def pack_sparse_weight(weight: np.ndarray) -> SparseWeight:
    """Pack a weight (F, C, 1, 1) float32 once, for every call of ``sparse_pointwise``.

    Raises
    ------
    InputError
        Where the weight has another type or shape.
    """
    weight = require_floats(NAME, "weight", weight, "(F, C, 1, 1)")
    if weight.shape[2:] != (1, 1):
        raise InputError(f"{NAME}: expected weight (F, C, 1, 1), got shape {weight.shape}; other kernels are not done")
    matrix = weight[:, :, 0, 0]
    rows, columns = np.nonzero(matrix)
    row_starts = np.searchsorted(rows, np.arange(len(matrix) + 1))
    return SparseWeight(
        values=matrix[rows, columns],
        columns=columns.astype(np.int64),
        row_starts=row_starts.astype(np.int64),
        shape=(matrix.shape[0], matrix.shape[1]),
    )


def sparse_pointwise(x: np.ndarray, weight: SparseWeight, *, out: np.ndarray | None = None) -> np.ndarray:
    """The 1x1 convolution of ``x`` with stride 1, one group and no bias; zeros of the weight cost nothing.

    Zeros of the weight are not multiplied with: an inf or nan of the input meets only the weights that are stored.

    Parameters
    ----------
    x
        (N, C, H, W) float32.
    weight
        Of ``pack_sparse_weight``.
    out
        An array of the result's shape to write to, so that calls in a loop need no new memory; it shares none with x.

    Returns
    -------
    numpy.ndarray
        (N, F, H, W) float32.

    Raises
    ------
    InputError
        Where shapes or types do not fit, or numba is not installed.
    """
    x = require_floats(NAME, "x", x, "(N, C, H, W)")
    filters, channels = weight.shape
    require_channels(NAME, x, channels)
    with numba_needed(NAME):
        from . import sparse_loops
    images, _, height, width = x.shape
    size = height * width
    out = output(NAME, out, (images, filters, height, width))
    pixels, results = x.reshape(images, channels, size), out.reshape(images, filters, size)
    tile = max(TILE_FLOATS // channels // BLOCK, 1) * BLOCK
    if size >= sparse_loops.FLOAT_LANES:
        sparse_loops.multiply(pixels, weight.values, weight.columns, weight.row_starts, tile, results)
        return out
    pixels = np.pad(pixels, ((0, 0), (0, 0), (0, sparse_loops.FLOAT_LANES - size)))
    padded = np.empty((images, filters, sparse_loops.FLOAT_LANES), np.float32)
    sparse_loops.multiply(pixels, weight.values, weight.columns, weight.row_starts, tile, padded)
    results[:] = padded[:, :, :size]
    return out
