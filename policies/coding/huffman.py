"""Canonical Huffman codes (Huffman 1952) on one stream of bits, first bit highest: what 1510.00149, section 4 codes with.

Every symbol takes a whole number of bits, so that files are larger than with asymmetric numeral systems; they are read
by simpler decoders. Codes are made from the same integer weights, so that nothing else is stored.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ..errors import FormatError

_LONGEST = 56
"""Bits of a code that a window of eight bytes at any bit holds; the weights of a file give at most about 45."""
_CHUNK_BITS = 1 << 18

Bits = tuple[np.ndarray, np.ndarray]
"""Codes (n,) uint64 and their lengths (n,) int64."""


@dataclass(frozen=True, eq=False)
class HuffmanCode:
    """The canonical code of an alphabet.

    Parameters
    ----------
    lengths
        (alphabet,) bits of each symbol; 0 where it does not occur, or occurs alone.
    codes
        (alphabet,) uint64.
    order
        Symbols that occur, by length and then by number: so their codes ascend.
    starts
        (occurring,) uint64 codes in that order, moved to the top of 64 bits.
    """

    lengths: np.ndarray
    codes: np.ndarray
    order: np.ndarray
    starts: np.ndarray

    def bits(self, values: np.ndarray) -> Bits:
        """The codes of symbols (n,)."""
        places = values.astype(np.int64)
        return self.codes[places], self.lengths[places]


def huffman_code(weights: np.ndarray) -> HuffmanCode:
    """For (alphabet,) integer weights, at least one of them above 0; equal ones are merged lowest symbol first."""
    return _code(np.ascontiguousarray(weights, np.int64).tobytes())


@lru_cache(maxsize=256)
def _code(data: bytes) -> HuffmanCode:
    weights = np.frombuffer(data, np.int64)
    lengths = _lengths(weights)
    order = np.flatnonzero(weights)
    order = order[np.argsort(lengths[order], kind="stable")]
    codes, starts = np.zeros(len(weights), np.uint64), np.zeros(len(order), np.uint64)
    code, width = 0, int(lengths[order[0]])
    for place, symbol in enumerate(order.tolist()):
        code <<= int(lengths[symbol]) - width
        width = int(lengths[symbol])
        codes[symbol] = code
        starts[place] = code << (64 - width) if width else 0
        code += 1
    return HuffmanCode(lengths, codes, order, starts)


def _lengths(weights: np.ndarray) -> np.ndarray:
    present = np.flatnonzero(weights).tolist()
    heap = [(int(weights[symbol]), place) for place, symbol in enumerate(present)]
    parents = [0] * (2 * len(present) - 1)
    heapq.heapify(heap)
    for node in range(len(present), len(parents)):
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        parents[first[1]] = parents[second[1]] = node
        heapq.heappush(heap, (first[0] + second[0], node))
    depths = [0] * len(parents)
    for node in range(len(parents) - 2, -1, -1):
        depths[node] = depths[parents[node]] + 1
    lengths = np.zeros(len(weights), np.int64)
    lengths[present] = depths[: len(present)]
    assert lengths.max() <= _LONGEST
    return lengths


def fixed_width(size: int) -> int:
    """Bits of one of so many equally likely values."""
    return (size - 1).bit_length()


def pack(operations: Sequence[Bits]) -> bytes:
    """The codes one after the other, without trailing zero bytes."""
    if not operations:
        return b""
    parts = []
    for codes, lengths in operations:
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        places = np.arange(total) - np.repeat(ends - lengths, lengths)
        shifts = (np.repeat(lengths, lengths) - 1 - places).astype(np.uint64)
        parts.append(((np.repeat(codes, lengths) >> shifts) & np.uint64(1)).astype(np.uint8))
    return np.packbits(np.concatenate(parts)).tobytes().rstrip(b"\0")


class HuffmanSource:
    """Reads what ``pack`` wrote; past the end there are zeros.

    Parameters
    ----------
    data
        Of one file.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._bits, self._place = data, 8 * len(data), 0

    def symbols(self, count: int, weights: np.ndarray) -> np.ndarray:
        """(count,) int32 of a Huffman code."""
        code, found = huffman_code(weights), np.zeros(count, np.int32)
        if len(code.order) == 1:
            return found + np.int32(code.order[0])
        done = 0
        while done < count:
            windows = self._windows(min(_CHUNK_BITS, (count - done) * int(code.lengths.max())))
            place = np.searchsorted(code.starts, windows, side="right") - 1
            symbols = code.order[place]
            path = _path((np.arange(len(windows)) + code.lengths[symbols]).tolist(), count - done)
            found[done : done + len(path)] = symbols[path]
            done += len(path)
            self._place += path[-1] + int(code.lengths[symbols[path[-1]]])
        return found

    def flags(self, weights: np.ndarray) -> np.ndarray:
        """(n,) bool, a bit each; the weights (n, 2) are of no account."""
        return self.uniform(len(weights), 2).astype(bool)

    def uniform(self, count: int, size: int) -> np.ndarray:
        """(count,) int32 below ``size``, which is at most 2^16."""
        width = fixed_width(size)
        places = self._place + width * np.arange(count)
        self._place += width * count
        values = (self._at(places) >> np.uint64(64 - width)).astype(np.int32)
        if count and int(values.max()) >= size:
            raise FormatError(f"a value is {int(values.max())}, expected less than {size}; the file is damaged")
        return values

    def bits_left(self) -> int:
        """Below 0 where more was read than there is."""
        return self._bits - self._place

    def is_empty(self) -> bool:
        """Whether nothing but the zeros that end a file is left, and no more was read than the bits left off."""
        if self.bits_left() >= 8:
            return False
        left = max(self.bits_left(), 0)
        return not left or not self._data[-1] & ((1 << left) - 1)

    def _windows(self, count: int) -> np.ndarray:
        return self._at(self._place + np.arange(count))

    def _at(self, places: np.ndarray) -> np.ndarray:
        """The next 57 bits at each place (n,) of the stream, at the top of uint64."""
        if not len(places):
            return np.zeros(0, np.uint64)
        first = int(places[0]) >> 3
        padded = self._data[first : (int(places[-1]) >> 3) + 8]
        padded += bytes((int(places[-1]) >> 3) + 8 - first - len(padded))
        view = np.lib.stride_tricks.sliding_window_view(np.frombuffer(padded, np.uint8), 8)
        words = np.ascontiguousarray(view).view(">u8")[:, 0].astype(np.uint64)
        return words[(places >> 3) - first] << (places & 7).astype(np.uint64)


def _path(following: list[int], count: int) -> list[int]:
    """Where codes begin: from 0 on, each after the last, at most so many and inside the list."""
    path: list[int] = []
    place, size = 0, len(following)
    while place < size and len(path) < count:
        path.append(place)
        place = following[place]
    return path
