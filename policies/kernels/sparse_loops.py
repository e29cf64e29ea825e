"""The compiled loops of ``sparse_pointwise``; importing this file needs numba."""

from __future__ import annotations

from typing import Any

from numba import njit

from . import lanes
from .lanes import FLOAT_LANES, multiply_add

BLOCK = 4 * FLOAT_LANES


@njit(inline="always")
def block_of_row(x: Any, stride: Any, values: Any, columns: Any, begin: Any, end: Any, start: Any, out: Any) -> None:
    """64 outputs of one filter from ``start`` on: the sums stay in registers while the filter's weights pass."""
    a, b, c, d = lanes.no_floats(), lanes.no_floats(), lanes.no_floats(), lanes.no_floats()
    for entry in range(begin, end):
        at, value = columns[entry] * stride + start, values[entry]
        a = multiply_add(a, lanes.load_floats(x, at), value)
        b = multiply_add(b, lanes.load_floats(x, at + FLOAT_LANES), value)
        c = multiply_add(c, lanes.load_floats(x, at + 2 * FLOAT_LANES), value)
        d = multiply_add(d, lanes.load_floats(x, at + 3 * FLOAT_LANES), value)
    lanes.store_floats(out, start, a)
    lanes.store_floats(out, start + FLOAT_LANES, b)
    lanes.store_floats(out, start + 2 * FLOAT_LANES, c)
    lanes.store_floats(out, start + 3 * FLOAT_LANES, d)


@njit(inline="always")
def vector_of_row(x: Any, stride: Any, values: Any, columns: Any, begin: Any, end: Any, start: Any, out: Any) -> None:
    """16 outputs of one filter from ``start`` on."""
    total = lanes.no_floats()
    for entry in range(begin, end):
        total = multiply_add(total, lanes.load_floats(x, columns[entry] * stride + start), values[entry])
    lanes.store_floats(out, start, total)


@njit
def multiply(x: Any, values: Any, columns: Any, row_starts: Any, tile: Any, out: Any) -> None:
    """``out`` (N, F, pixels) = sparse (F, C) times ``x`` (N, C, pixels), at least 16 pixels, ``tile`` of them at a time.

    A tile of ``x`` stays in the cache while all filters pass over it. The last vector overlaps the one before it where
    the pixels are no multiple of 16: what both write is the same.
    """
    images, _, pixels = x.shape
    for image in range(images):
        flat = x[image].reshape(-1)
        for first in range(0, pixels, tile):
            last = min(first + tile, pixels)
            for index in range(row_starts.size - 1):
                row, begin, end = out[image, index], row_starts[index], row_starts[index + 1]
                start = first
                while start + BLOCK <= last:
                    block_of_row(flat, pixels, values, columns, begin, end, start, row)
                    start += BLOCK
                while start < last:
                    here = min(start, pixels - FLOAT_LANES)
                    vector_of_row(flat, pixels, values, columns, begin, end, here, row)
                    start += FLOAT_LANES
