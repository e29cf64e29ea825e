"""The compiled loops of ``xnor``; importing this file needs numba.

Symbols and layouts (all contiguous):

=============  =============================  ==============================================================
``x``          (C, pixels) float32            one image; at least 16 pixels, those beyond H * W are not read
``words``      (groups, map) uint64           signs of 64 channels a word; map = padded rows * padded columns
``magnitudes`` (map,) float32                 sum of ``|x|`` over the channels
``weights``    (F, groups * taps) uint64      signs of the weights, in the order of a row of ``rows``
``rows``       (blocks * K * 8,) uint64       K = groups * taps words for each of 8 neighbouring output pixels
``starts``     (outputs,) int64               where in the map an output pixel's window starts
``steps``      (taps,) int64                  from there to each tap
=============  =============================  ==============================================================
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from . import lanes
from .lanes import FLOAT_LANES, WORD_LANES, both, count_ones, either, plus, unlike, unlike_bits

TREE = 9
HALF_WORD = 32


@njit(inline="always")
def carry_save(a: Any, b: Any, c: Any) -> Any:
    """Three bits of the same weight as one of twice the weight and one of the same."""
    differ = unlike(a, b)
    return either(both(a, b), both(differ, c)), unlike(differ, c)


@njit(inline="always")
def count_nine(rows: Any, at: Any, weights: Any, first: Any) -> Any:
    """Unequal bits of nine words: five carry-save adders leave four words to count instead of nine."""
    step = WORD_LANES
    twos_a, ones_a = carry_save(
        unlike_bits(rows, at, weights[first]),
        unlike_bits(rows, at + step, weights[first + 1]),
        unlike_bits(rows, at + 2 * step, weights[first + 2]),
    )
    twos_b, ones_b = carry_save(
        unlike_bits(rows, at + 3 * step, weights[first + 3]),
        unlike_bits(rows, at + 4 * step, weights[first + 4]),
        unlike_bits(rows, at + 5 * step, weights[first + 5]),
    )
    twos_c, ones_c = carry_save(
        unlike_bits(rows, at + 6 * step, weights[first + 6]),
        unlike_bits(rows, at + 7 * step, weights[first + 7]),
        unlike_bits(rows, at + 8 * step, weights[first + 8]),
    )
    twos_d, ones = carry_save(ones_a, ones_b, ones_c)
    fours, twos = carry_save(twos_a, twos_b, twos_c)
    fours_count = count_ones(fours)
    pairs = plus(plus(count_ones(twos), count_ones(twos_d)), plus(fours_count, fours_count))
    return plus(count_ones(ones), plus(pairs, pairs))


@njit
def pack_signs(x: Any, halves: Any, sums: Any) -> None:
    """Signs of 32 channels a row of ``halves`` (2 * groups, pixels), and ``sums`` (pixels,) of ``|x|``."""
    channels, pixels = x.shape
    flat, packed = x.reshape(-1), halves.reshape(-1)
    for block in range(0, pixels, FLOAT_LANES):
        # The last block overlaps the one before it where the pixels are no multiple of the lanes.
        start, total = min(block, pixels - FLOAT_LANES), lanes.no_floats()
        for half in range(halves.shape[0]):
            marked = lanes.no_bits()
            for bit in range(min(HALF_WORD, channels - half * HALF_WORD)):
                values = lanes.load_floats(flat, (half * HALF_WORD + bit) * pixels + start)
                total = lanes.add_magnitude(total, values)
                marked = lanes.mark_negative(marked, values, np.uint32(1) << np.uint32(bit))
            lanes.store_bits(packed, half * pixels + start, marked)
        lanes.store_floats(sums, start, total)


@njit
def spread(halves: Any, sums: Any, height: Any, width: Any, top: Any, left: Any, words: Any, magnitudes: Any) -> None:
    """Write the signs and sums of an image into the middle of its padded map; what is around it stays 0."""
    for y in range(height):
        for x in range(width):
            magnitudes[top + y, left + x] = sums[y * width + x]
        for group in range(words.shape[0]):
            for x in range(width):
                low, high = halves[2 * group, y * width + x], halves[2 * group + 1, y * width + x]
                words[group, top + y, left + x] = np.uint64(low) | (np.uint64(high) << np.uint64(HALF_WORD))


@njit
def gather(words: Any, starts: Any, steps: Any, rows: Any) -> None:
    """The words under the windows of some output pixels, interleaved by 8 pixels."""
    groups, size = words.shape
    flat, last = words.reshape(-1), starts.size - 1
    at = 0
    for block in range(0, starts.size, WORD_LANES):
        neighbours = starts[min(block + WORD_LANES - 1, last)] - starts[block] == WORD_LANES - 1
        for group in range(groups):
            for step in steps:
                here = group * size + step
                if neighbours:
                    lanes.store_words(rows, at, lanes.load_words(flat, here + starts[block]))
                else:
                    for lane in range(WORD_LANES):
                        rows[at + lane] = flat[here + starts[min(block + lane, last)]]
                at += WORD_LANES


@njit
def window_means(magnitudes: Any, kernel: Any, stride: Any, factor: Any, scales: Any) -> None:
    """The input scale map (OH, OW): ``factor`` times the sum of the magnitudes under each window."""
    scales[:] = 0.0
    for y in range(scales.shape[0]):
        row = scales[y]
        for tap in range(kernel[0] * kernel[1]):
            source = magnitudes[y * stride[0] + tap // kernel[1], tap % kernel[1] :]
            if stride[1] == 1:
                for x in range(row.size):
                    row[x] += source[x]
            else:
                for x in range(row.size):
                    row[x] += source[x * stride[1]]
        for x in range(row.size):
            row[x] *= factor


@njit
def agreements(rows: Any, weights: Any, first: Any, count: Any, outputs: Any, total: Any, sums: Any) -> None:
    """``total - 2 * unequal bits`` of one filter for each output pixel of the tile."""
    for block in range(0, outputs, WORD_LANES):
        at, unequal, done = block * count, lanes.no_words(), 0
        while done + TREE <= count:
            unequal = plus(unequal, count_nine(rows, at + done * WORD_LANES, weights, first + done))
            done += TREE
        for word in range(done, count):
            unequal = plus(unequal, count_ones(unlike_bits(rows, at + word * WORD_LANES, weights[first + word])))
        lanes.store_agreement(sums, block, unequal, total)


@njit
def convolve_tile(
    rows: Any, weights: Any, alpha: Any, total: Any, border: Any, scales: Any, begin: Any, out: Any
) -> None:
    """All filters at the output pixels of a tile, which starts at output pixel ``begin``."""
    filters, count = weights.shape
    pixels, kinds, corrections = border
    flat, outputs = weights.reshape(-1), scales.size
    sums = np.empty((outputs + WORD_LANES - 1) // WORD_LANES * WORD_LANES, np.float32)
    low, high = np.searchsorted(pixels, begin), np.searchsorted(pixels, begin + outputs)
    for index in range(filters):
        agreements(rows, flat, index * count, count, outputs, total, sums)
        for edge in range(low, high):
            sums[pixels[edge] - begin] -= corrections[index, kinds[edge]]
        factor, target = alpha[index], out[index, begin : begin + outputs]
        for pixel in range(outputs):
            target[pixel] = sums[pixel] * (factor * scales[pixel])


@njit
def convolve(x: Any, shape: Any, windows: Any, filters: Any, border: Any, tile: Any, out: Any) -> None:
    """The convolution of a batch ``x`` (N, C, H * W or more) into ``out`` (N, F, outputs)."""
    height, width, rows, columns, top, left = shape
    starts, steps, kernel, stride, out_size = windows
    weights, alpha = filters
    images, channels, pixels = x.shape
    groups, taps = weights.shape[1] // steps.size, steps.size
    halves, sums = np.zeros((2 * groups, pixels), np.uint32), np.empty(pixels, np.float32)
    words, magnitudes = np.zeros((groups, rows, columns), np.uint64), np.zeros((rows, columns), np.float32)
    gathered = np.empty((tile + WORD_LANES) * weights.shape[1], np.uint64)
    scales = np.empty(out_size, np.float32)
    for image in range(images):
        pack_signs(x[image], halves, sums)
        spread(halves, sums, height, width, top, left, words, magnitudes)
        window_means(magnitudes, kernel, stride, np.float32(1.0 / (channels * taps)), scales)
        for begin in range(0, starts.size, tile):
            gather(words.reshape(groups, rows * columns), starts[begin : begin + tile], steps, gathered)
            here = scales.reshape(-1)[begin : begin + tile]
            convolve_tile(gathered, weights, alpha, channels * taps, border, here, begin, out[image])
