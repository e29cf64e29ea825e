"""Arrays of non-negative integers: the value of all, equally likely values, buckets with a probability table, or a palette.

A bucket with ``m`` mantissa bits is named by an integer's length and its leading ``m + 1`` bits; the low bits stand as they
are. ``m = 0`` is Elias' gamma code with fitted probabilities; where ``m`` is large every value is a symbol of its own.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import log2

import numpy as np

from ..errors import FormatError
from .stream import Reader, Writer
from .tables import Table, entropy, table_bits

LARGEST = 2**31 - 1
"""Largest integer that is coded."""

_MANTISSAS = (0, 1, 2, 3, 4, 6, 8, 12)
_CONSTANT, _UNIFORM, _TABLE, _PALETTE = range(4)


@dataclass(frozen=True)
class Plan:
    """How an array will be coded: mode, bits that it takes, and the mode's argument (value, mantissa bits or palette)."""

    mode: int
    bits: float
    argument: int = 0
    palette: tuple[np.ndarray, np.ndarray] | None = None


def write_ints(writer: Writer, values: np.ndarray, top: int | None = None, plan: Plan | None = None) -> None:
    """Write integers in ``[0, top]``.

    Parameters
    ----------
    values
        (n,) integers in ``[0, LARGEST]``; the reader must know n.
    top
        A bound that the reader knows as well; ``None``: the largest value is written.
    plan
        From ``plan_ints`` with the same arguments, where it was already made.
    """
    if not len(values) or top == 0:
        return
    plan = plan or plan_ints(values, top)
    writer.choice(plan.mode, 4)
    if plan.mode == _CONSTANT:
        writer.number(plan.argument)
        return
    if plan.palette is not None:
        distinct, index = plan.palette
        writer.number(len(distinct) - 1)
        for part, bound in ((np.diff(distinct, prepend=-1) - 1, None), (index, len(distinct) - 1)):
            write_ints(writer, part, bound, plan_ints(part, bound, palettes=False))
        return
    if top is None:
        top = int(values.max())
        writer.number(top)
    if plan.mode == _UNIFORM:
        writer.uniform(values, top + 1)
    else:
        writer.choice(_MANTISSAS.index(plan.argument), len(_MANTISSAS))
        _write_buckets(writer, values, plan.argument, top)


def read_ints(reader: Reader, count: int, top: int | None = None, palettes: bool = True) -> np.ndarray:
    """Read what ``write_ints`` wrote; (count,) int32 or int64, in ``[0, top]``.

    Raises
    ------
    FormatError
        Where the stream is not one that ``write_ints`` writes.
    """
    if not count or top == 0:
        return np.zeros(count, np.int32)
    bound = LARGEST if top is None else top
    mode = reader.choice(4)
    if mode == _CONSTANT:
        return np.full(count, reader.number(bound, "a constant value"))
    if mode == _PALETTE:
        return _check_top(_read_palette(reader, count, palettes), bound)
    if top is None:
        top = reader.number(LARGEST, "a largest value")
    if mode == _UNIFORM:
        return _check_top(reader.uniform(count, top + 1), top)
    return _check_top(_read_buckets(reader, count, _MANTISSAS[reader.choice(len(_MANTISSAS))], top), top)


def plan_ints(values: np.ndarray, top: int | None = None, palettes: bool = True) -> Plan:
    """The cheapest way to code the values, and its price in bits."""
    largest, count = int(values.max()), len(values)
    if largest == int(values.min()):
        constant = Plan(_CONSTANT, 7.0 + log2(largest + 1), largest)
        plain = Plan(_UNIFORM, np.inf if top is None else 2 + count * log2(top + 1))
        return min(constant, plain, key=lambda plan: plan.bits)
    if top is None:
        top, prefix = largest, 7.0 + log2(largest + 1)
    else:
        prefix = 2.0
    plans = [Plan(_UNIFORM, prefix + count * log2(top + 1))]
    if largest < 1 << 12:
        counts = np.bincount(values)
        distinct = np.flatnonzero(counts)
        counts = counts[distinct]
    elif count <= 1 << 14:
        distinct, counts = np.unique(values, return_counts=True)
    else:
        distinct, counts = values, None
    whole = _MANTISSAS[bisect_left(_MANTISSAS, min(top.bit_length() - 1, 12))]
    rough = {m: _histogram(distinct, counts, m) for m in (*(m for m in (0, 1, 2, 3) if m < whole), whole)}
    mantissa = min(rough, key=lambda m: rough[m][1] + table_bits(rough[m][0]))
    histogram, low = rough[mantissa]
    price = Table.fit(histogram, _alphabet(top, mantissa)).price(histogram)
    plans.append(Plan(_TABLE, prefix + 3 + low + price, mantissa))
    best = min(plans, key=lambda plan: plan.bits)
    if palettes and counts is not None and 2 * len(distinct) <= count and top > 16:
        spread = len(distinct) * (3 + log2(top / len(distinct) + 1)) + 20
        if spread + count * entropy(counts) < best.bits:
            index = np.searchsorted(distinct, values)
            price = spread + plan_ints(index, len(distinct) - 1, palettes=False).bits
            if price < best.bits:
                return Plan(_PALETTE, price, palette=(distinct, index))
    return best


def _check_top(values: np.ndarray, top: int) -> np.ndarray:
    if int(values.max()) > top:
        raise FormatError(f"a coded integer is {int(values.max())}, expected at most {top}; the file is damaged")
    return values


def _read_palette(reader: Reader, count: int, allowed: bool) -> np.ndarray:
    if not allowed:
        raise FormatError("a palette holds a palette; the file is damaged")
    size = reader.number(count - 1, "a palette's size less one") + 1
    distinct = np.cumsum(read_ints(reader, size, None, palettes=False).astype(np.int64) + 1) - 1
    return distinct[read_ints(reader, count, size - 1, palettes=False)]


def _split(values: np.ndarray, mantissa: int) -> tuple[np.ndarray, np.ndarray]:
    """Bucket and number of low bits of each value."""
    length = np.frexp(values.astype(np.float64))[1]
    shift = np.maximum(length - 1 - mantissa, 0)
    return (shift << mantissa) + (values >> shift), shift


def _alphabet(top: int, mantissa: int) -> int:
    shift = max(top.bit_length() - 1 - mantissa, 0)
    return (shift << mantissa) + (top >> shift) + 1


def _histogram(values: np.ndarray, counts: np.ndarray | None, mantissa: int) -> tuple[np.ndarray, float]:
    """Of the buckets, and the number of low bits in all."""
    buckets, shift = _split(values, mantissa)
    if counts is None:
        return np.bincount(buckets), float(shift.sum())
    return np.bincount(buckets, counts), float((shift * counts).sum())


def _write_buckets(writer: Writer, values: np.ndarray, mantissa: int, top: int) -> None:
    buckets, shift = _split(values, mantissa)
    alphabet = _alphabet(top, mantissa)
    table = Table.fit(np.bincount(buckets, minlength=alphabet), alphabet)
    table.write(writer)
    writer.symbols(buckets, table.weights())
    for width in range(1, int(shift.max()) + 1):
        chosen = values[shift == width]
        writer.uniform(chosen & ((1 << width) - 1), 1 << width)


def _read_buckets(reader: Reader, count: int, mantissa: int, top: int) -> np.ndarray:
    table = Table.read(reader, _alphabet(top, mantissa))
    buckets = reader.symbols(count, table.weights())
    if top.bit_length() - 1 <= mantissa:
        return buckets
    shift = np.maximum((buckets >> mantissa) - 1, 0)
    values = (buckets - (shift << mantissa)).astype(np.int64) << shift
    for width in range(1, int(shift.max()) + 1):
        chosen = shift == width
        values[chosen] |= reader.uniform(int(np.count_nonzero(chosen)), 1 << width)
    return values
