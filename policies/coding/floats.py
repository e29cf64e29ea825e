"""Arrays of numbers that are kept bit for bit: float32 by its fields, everything else by value or by bytes."""

from __future__ import annotations

import numpy as np

from ..errors import FormatError
from .stream import Coder, Reader, Writer
from .symbols import LARGEST, read_ints, write_ints

DTYPES = tuple(
    np.dtype(name)
    for name in (
        *("float32", "int64", "uint8", "bool", "int32", "float64", "float16"),
        *("int8", "int16", "uint16", "uint32", "uint64"),
    )
)
"""The types a dense tensor may have; a file names one by its place."""

_MANTISSA, _LEADING = 23, 8
_SAMPLE = 8192
"""So many values tell whether an array repeats itself."""


def write_array(writer: Writer, values: np.ndarray, compact: bool = False) -> None:
    """Write a (n,) array of one of ``DTYPES``; the reader must know n and the type."""
    if not len(values):
        return
    if values.dtype == np.float32:
        write_floats(writer, values, compact)
        return
    small = values.dtype.kind != "f" and int(values.min()) > -LARGEST // 2 and int(values.max()) < LARGEST // 2
    writer.choice(small, 2)
    if small:
        wide = values.astype(np.int64)
        signed = bool(wide.min() < 0)
        writer.choice(signed, 2)
        write_ints(writer, np.where(wide < 0, -2 * wide - 1, 2 * wide) if signed else wide)
    else:
        planes = values.astype(values.dtype.newbyteorder("<")).view(np.uint8).reshape(len(values), -1)
        for plane in planes.T:
            write_ints(writer, plane, 255)


def read_array(reader: Reader, count: int, dtype: np.dtype, compact: bool = False) -> np.ndarray:
    """Read what ``write_array`` wrote.

    Raises
    ------
    FormatError
        Where a value does not fit the type.
    """
    if not count:
        return np.zeros(0, dtype)
    if dtype == np.float32:
        return read_floats(reader, count, compact)
    if reader.choice(2):
        signed = reader.choice(2)
        wide = read_ints(reader, count).astype(np.int64)
        wide = np.where(wide & 1, -((wide + 1) >> 1), wide >> 1) if signed else wide
        with np.errstate(all="ignore"):
            values = wide.astype(dtype)
            if (values.astype(np.int64) != wide).any():
                raise FormatError(f"a value does not fit {dtype}; the file is damaged")
        return values
    planes = [read_ints(reader, count, 255).astype(np.uint8) for _ in range(dtype.itemsize)]
    if dtype == np.bool_ and planes[0].max() > 1:
        raise FormatError("a truth value is neither 0 nor 1; the file is damaged")
    return np.stack(planes, axis=1).view(dtype.newbyteorder("<")).reshape(count).astype(dtype)


def write_floats(writer: Writer, values: np.ndarray, compact: bool = False) -> None:
    """Write a (n,) float32 array, every bit pattern kept.

    Parameters
    ----------
    compact
        Whether exponents are told from the least one on, as in version 3; a palette is then taken only where it is cheaper.
    """
    if not len(values):
        return
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.int64)
    sample = bits[:: -(-len(bits) // _SAMPLE)]
    distinct = np.unique(bits) if 2 * len(np.unique(sample)) <= len(sample) else bits
    ways = [_with_palette(writer.coder, bits, distinct, compact)] if 2 * len(distinct) <= len(bits) else []
    ways += [_without_palette(writer.coder, bits, compact)] if compact or not ways else []
    writer.extend(min(ways, key=lambda way: len(way.bytes())) if len(ways) > 1 else ways[0])


def read_floats(reader: Reader, count: int, compact: bool = False) -> np.ndarray:
    """(count,) float32."""
    if not count:
        return np.zeros(0, np.float32)
    if reader.choice(2):
        size = reader.number(count - 1, "a palette's size less one") + 1
        index = read_ints(reader, count, size - 1)
        bits = _read_fields(reader, size, compact)[index]
    else:
        bits = _read_fields(reader, count, compact)
    return bits.astype(np.uint32).view(np.float32)


def _with_palette(coder: Coder, bits: np.ndarray, distinct: np.ndarray, compact: bool) -> Writer:
    writer = Writer(coder)
    writer.choice(1, 2)
    writer.number(len(distinct) - 1)
    write_ints(writer, np.searchsorted(distinct, bits), len(distinct) - 1)
    _write_fields(writer, distinct, compact)
    return writer


def _without_palette(coder: Coder, bits: np.ndarray, compact: bool) -> Writer:
    writer = Writer(coder)
    writer.choice(0, 2)
    _write_fields(writer, bits, compact)
    return writer


def _write_fields(writer: Writer, bits: np.ndarray, compact: bool) -> None:
    """Exponents by their histogram; signs and as many leading mantissa bits as are ever set nearly as they are."""
    exponent = (bits >> _MANTISSA) & 255
    least = int(exponent.min()) if compact else 0
    if compact:
        writer.choice(least, 256)
    write_ints(writer, exponent - least, None if compact else 255)
    if (exponent == 0).any():
        plain = not bits[exponent == 0].any()
        writer.choice(plain, 2)
        if plain:
            bits = bits[exponent != 0]
    if not len(bits):
        return
    write_ints(writer, bits >> 31, 1)
    mantissa = bits & ((1 << _MANTISSA) - 1)
    used = int(np.bitwise_or.reduce(mantissa)) | (1 << _MANTISSA)
    tail = (used & -used).bit_length() - 1
    writer.choice(tail, _MANTISSA + 1)
    low = max(_MANTISSA - tail - _LEADING, 0)
    write_ints(writer, mantissa >> (tail + low), (1 << (_MANTISSA - tail - low)) - 1)
    writer.uniform((mantissa >> tail) & ((1 << low) - 1), 1 << low)


def _read_fields(reader: Reader, count: int, compact: bool) -> np.ndarray:
    """(count,) int64 bit patterns."""
    least = reader.choice(256) if compact else 0
    exponent = least + read_ints(reader, count, None if compact else 255).astype(np.int64)
    if int(exponent.max()) > 255:
        raise FormatError(f"a float's exponent is {exponent.max()}, expected at most 255; the file is damaged")
    kept = np.ones(count, bool)
    if (exponent == 0).any() and reader.choice(2):
        kept = exponent != 0
    some = int(kept.sum())
    bits = exponent << _MANTISSA
    if some:
        sign = read_ints(reader, some, 1).astype(np.int64)
        tail = reader.choice(_MANTISSA + 1)
        low = max(_MANTISSA - tail - _LEADING, 0)
        high = read_ints(reader, some, (1 << (_MANTISSA - tail - low)) - 1).astype(np.int64)
        mantissa = ((high << low) | reader.uniform(some, 1 << low)) << tail
        bits[kept] |= (sign << 31) | mantissa
    return bits
