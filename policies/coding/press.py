"""Tensors in as few bytes as we can, and back, bit for bit: the format's layout, versions 1 to 3.

A decoder needs numpy and constriction only. All numbers are little-endian.

::

    file     = magic "PP", version 1 to 3, and 128 more with Huffman codes (1 byte), CRC-32 of the stream (4 bytes), stream
    stream   = 32-bit words of one ANS coder (constriction ``AnsCoder``), zero bytes at the end left off;
               or bits of canonical Huffman codes, highest first, likewise
    content  = text, columns, codebooks, scales, dense pools, codes (version 3), then each tensor that is not empty and was
               not in one of these

What the coder gives is one of four things. *choice(n)*: one symbol of ``Uniform(n)``. *uniform(n)*: symbols of
``Uniform(n)``; where n > 2^16 the values above bit 16 come first (recursively), then the low 16 bits. *number*: w =
choice(32), then v = uniform(2^w), meaning ``2^w + v - 1``. *symbols*: ``Categorical(weights, perfect=False)`` with integer
weights; where there is a single weight nothing is read. ``number``, ``ints`` and ``Flags`` are defined below. With Huffman
codes uniform(n) takes ceil(log2 n) bits a symbol, and the codes of symbols are made from the same weights (``huffman.py``).

::

    text     = choice(2) deflated, number of bytes, bytes by uniform(256)
               JSON [metadata, name, name, ...] or, in version 3, [metadata, n]: names "0" to "n - 1";
               deflated: raw deflate with the dictionary in ``container.py``
    columns  = ints(top 4; 255 from version 2 on) form of each tensor: 0 dense, 1 sparse, 2 codebook, 3 codebook with mask,
               4 uniform; 5 generated (from version 2 on); the others (likewise) as their rows in ``kinds.py`` say
               ints(top 32) dimensions of each; ints all sizes, tensor after tensor
               ints(top 11) type of each dense tensor (``floats.DTYPES``); ints(top 7) type of each codebook's or vector's codes
               ints(top 255) bits of each uniform tensor, stages of vectors; ints values of each codebook and scales
    codebooks= floats, all one after the other; scales likewise
    dense    = a pool for each tensor of more than 4096 elements, and one for each type and last part of the name
               of the rest; in the order of their first tensor; values one after the other (``array``). In version 3 first
               ints(top 1), for each of the rest whether it has negative values; that stands in place of the names
    codes    = of the uniform tensors of at most 4096 elements, if there are any: number of tables t less one, ints(top t - 1)
               table of each tensor; for each table ints, the codes (folded 0, -1, 1, -2, 2, ...) of its tensors
    sparse   = mask, floats
    codebook = choice(2) split; if not: ints(top k - 1) codes
               split: number c, mask of codes unlike c, grouped(top k - 2) codes without c
    with mask= mask, grouped(top k - 1) codes
    uniform  = number t (largest magnitude); if t > 0: mask of the codes that are not 0, grouped(top t - 1) magnitudes
               less one, ints(top 1) signs (1 is negative)
    generated= choice(32) place in ``generated.GENERATORS``, number b, number seed, floats: as many as its ``count`` says
    vectors  = (from version 2 on; bits: the stages) kept, number d - 1, choice(2) shared codebook, ints(top k - 1) codes of
               each stage; its codebooks (stages, blocks or 1, k, d) stand among the others
    hashed   = (from version 2 on) kept, number seed, number K - 1, floats; places by ``tensors.hashed_places``
    kept     = choice(2): 1: mask

    ints     = nothing if there are no values or top is 0; otherwise choice(4):
               0: number, the value of all
               1: [number top, unless it is known] uniform(top + 1)
               2: [number top], m = (0, 1, 2, 3, 4, 6, 8, 12)[choice(8)], table, symbols b, low bits
                  b < 2^(m+1): value b; otherwise s = (b >> m) - 1 low bits, value ((b - (s << m)) << s) + low;
                  the low bits of all values with s = 1 come first, by uniform(2), then s = 2, ...
               3: number of distinct values less one, ints their differences less one (from -1), ints indices
    table    = choice(5) p; choice(2): if 1, Flags of one cell and symbols, which bucket occurs; choice(2) relative;
               choice(8) g; symbols z with weights ``POWERS[min(2 i 16 >> g, 320)]``, i <= 40 * 2^p;
               level = z, or relative: the running sum of (0, -1, 1, -2, 2, ...)[z]
               weight = ``POWERS[level * 16 >> p]``, then ``max(weight 2^22 // sum, 1)``; 0 where it does not occur
    Flags    = choice(4) c, ints(top 2 (160 >> c) + 2) levels; the first is "never", the last "always", the middle is
               even odds; a step multiplies the odds of a one by 2^(2^c / 8): weights ``POWERS[2 * 2^c * steps]``
    mask     = rows: first dimension, columns: the rest (a vector is one row); choice(3):
               0 cells: classes, Flags, symbols of each cell, cells and places in C order
               1 neighbours: classes, choice(48) lag - 2, Flags for (cell, 0 to 2 neighbours set), then the columns from
                 the left, rows from the top; neighbours are 1 and lag columns before
               2 gaps: number of places set, ints their differences less one
               With Huffman codes: 0 a bit for each place, 1 gaps from column to column, 2 gaps; split is then 0
    classes  = choice(17) row classes less one, ints(top classes - 1); the same for columns
    grouped  = plain ints, unless the mask has cells, more than one: choice(4) q, then ints for each of 2^q groups
               (``Grid.groups``)
    array    = float32: floats; otherwise choice(2): 1: choice(2) signed, ints (folded 0, -1, 1, -2, ... if signed);
               0: ints(top 255) for each byte of the type, lowest first
    floats   = choice(2): 1: number of distinct bit patterns less one, ints indices, fields of those; 0: fields
    fields   = ints(top 255) exponents, or in version 3, for codebooks, scales and dense: choice(256) least one, ints what they
               are above it; if any is 0: choice(2), 1: those are +0.0 and have nothing more;
               ints(top 1) signs, choice(24) zero bits z at the end of all mantissas, ints the leading 8 of the 23 - z
               bits left, uniform the rest
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from ..errors import ModelError
from . import kinds
from .container import COMPACT, element_limit, elements, entry_of, frame, read_header, unframe, write_header
from .entries import Entry
from .floats import read_array, read_floats, write_array, write_floats
from .memory import CodingMemory
from .pooled import read_pooled, write_pooled
from .stream import CODERS, PARTS, Coder, Reader, Writer
from .symbols import read_ints, write_ints
from .tensors import DenseTensor, StoredTensor, UniformTensor

_NOTHING = np.zeros(0, np.float32)
_POOLED = 4096
"""Dense tensors of at most so many elements share their probability tables with those of the same type and last name."""


@dataclass(frozen=True)
class PressFile:
    """What a file holds.

    Parameters
    ----------
    tensors
        By name, in the order in which they were given.
    metadata
        As it was given.
    """

    tensors: dict[str, StoredTensor]
    metadata: dict[str, Any]


def encode(
    tensors: Mapping[str, StoredTensor],
    metadata: Mapping[str, Any],
    memory: CodingMemory | None = None,
    coder: Coder = "ans",
    compact: bool = False,
) -> bytes:
    """Write tensors and metadata (JSON) in as few bytes as we can; the same input gives the same bytes.

    Parameters
    ----------
    memory
        Where networks that share layers are written one after another: what keeps the tensors' symbols.
    coder
        ``ans`` for the fewest bytes, ``huffman`` for codes of whole bits; the file says which.
    compact
        Version 3, for networks of a few thousand weights: names that are numbers from 0 on are not written, and small uniform
        tensors share their probability tables.

    Raises
    ------
    ModelError
        Where a tensor does not keep what its form promises, the metadata are no JSON, or a nearly constant model has more
        elements than a file of its size may declare (2^22 and 2048 a byte).
    """
    if coder not in CODERS:
        raise ModelError(f"expected the coder {' or '.join(CODERS)}, got {coder!r}")
    entries = [entry_of(name, tensor) for name, tensor in tensors.items()]
    writer = Writer(coder)
    version = COMPACT if compact else kinds.version_of(entries)
    write_header(writer, entries, metadata, version)
    stored = list(tensors.values())
    for table in kinds.TABLES:
        of = [(kinds.KINDS[entry.form], tensor) for entry, tensor in zip(entries, stored)]
        write_floats(writer, _joined([kind.values(tensor) for kind, tensor in of if kind.table == table]), compact)
    signed = _signed(entries, tensors) if compact else {}
    write_ints(writer, np.array(list(signed.values()), np.int64), 1)
    for pool in _pools(entries, signed):
        write_array(writer, np.concatenate([tensors[entry.name].decode().ravel() for entry in pool]), compact)
    together = _coded_together(entries, version)
    write_pooled(writer, [cast(UniformTensor, tensors[name]) for name in together])
    for entry, tensor in zip(entries, stored):
        if entry.name in together:
            continue
        if entry.count and memory is not None:
            memory.write(writer, entry, tensor)
        elif entry.count:
            kinds.write_tensor(writer, entry, tensor)
    data = frame(writer.bytes(), version, coder)
    if elements(entries) > element_limit(len(data)):
        raise ModelError(
            f"{elements(entries)} elements in {len(data)} bytes: a file may declare {element_limit(len(data))}"
        )
    return data


def decode(data: bytes) -> PressFile:
    """Read what ``encode`` wrote: the same forms, types, shapes and values, bit for bit.

    Raises
    ------
    FormatError
        Where the file is not ours, truncated or damaged.
    """
    return _read(data)[0]


def breakdown(data: bytes) -> dict[str, int]:
    """Bytes of a file by what they hold: ``weights`` (values and codes), ``indices`` (where the zeros are), ``codebooks``
    (and scales), ``header`` (all the rest). They sum to ``len(data)``; shared bytes go to the part with most of their bits.

    Raises
    ------
    FormatError
        As ``decode``.
    """
    bits = dict(_read(data)[1])
    bits["header"] += 8 * len(data) - sum(bits.values())
    sizes = {part: bits[part] // 8 for part in PARTS}
    by_rest = sorted(PARTS, key=lambda part: -(bits[part] % 8))
    for part in by_rest[: len(data) - sum(sizes.values())]:
        sizes[part] += 1
    return sizes


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(arrays) if arrays else _NOTHING


def _is_small(entry: Entry) -> bool:
    """Whether it is dense and shares its tables."""
    return kinds.KINDS[entry.form].write is None and entry.count <= _POOLED


def _signed(entries: list[Entry], tensors: Mapping[str, StoredTensor]) -> dict[str, bool]:
    """Whether the small dense tensors have negative values, by name."""
    return {entry.name: bool((tensors[entry.name].decode() < 0).any()) for entry in filter(_is_small, entries)}


def _pools(entries: list[Entry], signed: Mapping[str, bool]) -> list[list[Entry]]:
    """Dense tensors in groups that are coded together: by their signs where these are told, else by their names."""
    pools: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        if kinds.KINDS[entry.form].write is None:
            alike = signed[entry.name] if entry.name in signed else entry.name.rpartition(".")[2]
            key = (entry.dtype, alike) if _is_small(entry) else (entry.name, None, None)
            pools.setdefault(key, []).append(entry)
    return list(pools.values())


def _coded_together(entries: list[Entry], version: int) -> dict[str, Entry]:
    """The uniform tensors whose codes stand together."""
    small = [entry for entry in entries if 0 < entry.count <= _POOLED and kinds.KINDS[entry.form].table == "scales"]
    return {entry.name: entry for entry in small} if version >= COMPACT else {}


def _read(data: bytes) -> tuple[PressFile, dict[str, int]]:
    """What the file holds, and the bits of each part."""
    body, version, coder = unframe(data)
    reader = Reader(body, coder)
    entries, metadata = read_header(reader, len(data), version)
    tables: dict[str, np.ndarray] = {}
    with reader.part("codebooks"):
        for table in kinds.TABLES:
            of = [entry for entry in entries if kinds.KINDS[entry.form].table == table]
            tables |= _read_tables(reader, of, version >= COMPACT)
    tensors: dict[str, StoredTensor] = {}
    with reader.part("weights"):
        small = [entry.name for entry in entries if _is_small(entry)] if version >= COMPACT else []
        signed = dict(zip(small, read_ints(reader, len(small), 1).astype(bool).tolist()))
        for pool in _pools(entries, signed):
            values = read_array(
                reader, sum(entry.count for entry in pool), pool[0].dtype or np.dtype(np.float32), version >= COMPACT
            )
            parts = np.split(values, np.cumsum([entry.count for entry in pool])[:-1])
            tensors |= {entry.name: DenseTensor(part.reshape(entry.shape).copy()) for entry, part in zip(pool, parts)}
        together = _coded_together(entries, version)
        for name, codes in zip(together, read_pooled(reader, list(together.values()))):
            tensors[name] = UniformTensor(codes, tables.get(name, _NOTHING), together[name].bits)
        for entry in entries:
            if entry.name in together:
                continue
            read = kinds.KINDS[entry.form].read
            if read is not None:
                tensors[entry.name] = read(reader, entry, tables.get(entry.name, _NOTHING))
    reader.finish()
    return PressFile({entry.name: tensors[entry.name] for entry in entries}, metadata), reader.bits


def _read_tables(reader: Reader, entries: list[Entry], compact: bool) -> dict[str, np.ndarray]:
    values = read_floats(reader, sum(entry.table for entry in entries), compact)
    ends = np.cumsum([entry.table for entry in entries])
    return {entry.name: values[end - entry.table : end].copy() for entry, end in zip(entries, ends)}
