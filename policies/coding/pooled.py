"""Codes of small uniform tensors, coded together: layers whose codes are alike share a probability table.

A table of 15 symbols costs as much as 20 codes of 4 bit, which a layer of a few hundred weights does not win back by having
its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import FormatError
from .entries import Entry
from .stream import Reader, Writer
from .symbols import read_ints, write_ints
from .tables import table_bits
from .tensors import UniformTensor, uniform_type

_WIDEST = 1 << 16
"""Above the largest folded code of 16 bit."""


def write_pooled(writer: Writer, tensors: Sequence[UniformTensor]) -> None:
    """Write the codes of tensors that are not empty; the reader must know their shapes and widths."""
    if not tensors:
        return
    codes = [_folded(tensor.codes.ravel().astype(np.int64)) for tensor in tensors]
    group = _alike([np.bincount(part) for part in codes])
    top = int(group.max())
    writer.number(top)
    write_ints(writer, group, top)
    for number in range(top + 1):
        write_ints(writer, np.concatenate([part for part, own in zip(codes, group) if own == number]))


def read_pooled(reader: Reader, entries: Sequence[Entry]) -> list[np.ndarray]:
    """The codes that ``write_pooled`` wrote, each of its entry's shape and type.

    Raises
    ------
    FormatError
        Where a code does not fit its type.
    """
    if not entries:
        return []
    group = read_ints(reader, len(entries), top := reader.number(len(entries) - 1, "a number of tables less one"))
    out: dict[int, np.ndarray] = {}
    for number in range(top + 1):
        members = [place for place, own in enumerate(group) if own == number]
        ends = np.cumsum([entries[place].count for place in members], dtype=np.int64)
        folded = read_ints(reader, int(ends[-1]) if members else 0)
        out |= dict(zip(members, np.split(folded, ends[:-1])))
    return [_typed(out[place], entry) for place, entry in enumerate(entries)]


def _typed(folded: np.ndarray, entry: Entry) -> np.ndarray:
    dtype = uniform_type(entry.bits)
    if int(folded.max()) >= _WIDEST >> (8 * (2 - dtype.itemsize)):
        raise FormatError(f"a uniform code of {entry.bits} bit is out of range; the file is damaged")
    wide = folded.astype(np.int64)
    return np.where(wide & 1, -((wide + 1) >> 1), wide >> 1).astype(dtype).reshape(entry.shape)


def _folded(codes: np.ndarray) -> np.ndarray:
    """0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ..."""
    return np.where(codes < 0, -2 * codes - 1, 2 * codes)


def _alike(histograms: list[np.ndarray]) -> np.ndarray:
    """(tensors,) number of each one's table: the two whose merging saves most are merged until nothing is saved."""
    length = max(map(len, histograms))
    groups = [([place], np.pad(h, (0, length - len(h)))) for place, h in enumerate(histograms)]
    while len(groups) > 1:
        pairs = [(i, j) for j in range(len(groups)) for i in range(j)]
        gains = [_gain(groups[i][1], groups[j][1]) for i, j in pairs]
        best = int(np.argmax(gains))
        if gains[best] <= 0:
            break
        i, j = pairs[best]
        members, counts = groups.pop(j)
        groups[i] = (groups[i][0] + members, groups[i][1] + counts)
    out = np.zeros(len(histograms), np.int64)
    for number, (members, _) in enumerate(groups):
        out[members] = number
    return out


def _gain(one: np.ndarray, other: np.ndarray) -> float:
    return table_bits(one) + table_bits(other) - table_bits(one + other)
