"""The payloads of tensors that are made of vectors, and of hashed ones."""

from __future__ import annotations

import numpy as np

from ..errors import FormatError
from .entries import Entry
from .floats import read_floats, write_floats
from .positions import read_mask, write_mask
from .stream import Reader, Writer
from .symbols import LARGEST, read_ints, write_ints
from .tensors import HashedTensor, VectorTensor


def write_vectors(writer: Writer, entry: Entry, tensor: VectorTensor) -> None:
    """The mask, the length of a codeword, whether blocks share codebooks, and the codes, stage after stage."""
    _write_mask(writer, entry, tensor.mask)
    _, parts, clusters, dimension = tensor.codebooks.shape
    writer.number(dimension - 1)
    writer.choice(parts == 1, 2)
    for codes in tensor.codes:
        write_ints(writer, codes.ravel().astype(np.int64), clusters - 1)


def read_vectors(reader: Reader, entry: Entry, table: np.ndarray) -> VectorTensor:
    """The codes, with the codewords that were read before."""
    assert entry.dtype is not None
    if not entry.count or not entry.bits:
        raise FormatError(f"tensor {entry.name!r} has no vectors; the file is damaged")
    mask = _read_mask(reader, entry)
    rows, columns = entry.shape[0], entry.count // entry.shape[0]
    dimension = reader.number(LARGEST, "the length of a codeword less one") + 1
    blocks = -(-columns // dimension)
    parts = 1 if reader.choice(2) else blocks
    clusters, left = divmod(entry.table, entry.bits * parts * dimension)
    if left or not clusters or clusters - 1 > np.iinfo(entry.dtype).max:
        raise FormatError(f"tensor {entry.name!r} has codebooks of {entry.table} values, which do not fit its codes")
    codes = np.stack([read_ints(reader, rows * blocks, clusters - 1) for _ in range(entry.bits)])
    codebooks = table.reshape(entry.bits, parts, clusters, dimension)
    return VectorTensor(mask, codes.astype(entry.dtype).reshape(-1, rows, blocks), codebooks, entry.shape)


def write_hashed(writer: Writer, entry: Entry, tensor: HashedTensor) -> None:
    """The mask, the seed, and the values that places share."""
    _write_mask(writer, entry, tensor.mask)
    writer.number(tensor.seed)
    writer.number(len(tensor.values) - 1)
    write_floats(writer, tensor.values)


def read_hashed(reader: Reader, entry: Entry, table: np.ndarray) -> HashedTensor:
    """The seed and the values; the table is empty."""
    if not entry.count:
        raise FormatError(f"tensor {entry.name!r} has no values; the file is damaged")
    mask = _read_mask(reader, entry)
    seed = reader.number(LARGEST, "the seed of a hash")
    size = reader.number(entry.count - 1, "a number of shared values less one") + 1
    return HashedTensor(mask, read_floats(reader, size), seed, entry.shape)


def _write_mask(writer: Writer, entry: Entry, mask: np.ndarray | None) -> None:
    writer.choice(mask is not None, 2)
    if mask is not None:
        write_mask(writer, mask.reshape(entry.matrix))


def _read_mask(reader: Reader, entry: Entry) -> np.ndarray | None:
    if not reader.choice(2):
        return None
    with reader.part("indices"):
        return read_mask(reader, *entry.matrix)[0].reshape(entry.shape)
