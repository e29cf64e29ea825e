"""The masks and codes of one tensor, form by form."""

from __future__ import annotations

import numpy as np

from ..errors import FormatError
from .entries import Entry
from .floats import read_floats, write_floats
from .grid import Grid
from .positions import read_grouped, read_mask, write_grouped, write_mask
from .stream import Reader, Writer
from .symbols import read_ints, write_ints
from .tensors import CodebookTensor, SparseTensor, UniformTensor, uniform_type


def write_sparse(writer: Writer, entry: Entry, tensor: SparseTensor) -> None:
    """The mask and the values."""
    write_mask(writer, tensor.mask.reshape(entry.matrix))
    write_floats(writer, tensor.values)


def write_codebook(writer: Writer, entry: Entry, tensor: CodebookTensor) -> None:
    """The mask, if there is one, and the codes."""
    if tensor.mask is None:
        _write_shared(writer, tensor.codes.reshape(entry.matrix), entry.table - 1)
        return
    mask = tensor.mask.reshape(entry.matrix)
    write_grouped(writer, tensor.codes, entry.table - 1, mask, write_mask(writer, mask))


def _write_shared(writer: Writer, codes: np.ndarray, top: int) -> None:
    """Codes of an unpruned tensor: plainly, or the commonest one as the zeros of a mask where that pays."""
    # A Huffman code gives the commonest symbol its single bit as well as a bitmask does.
    if not top or writer.coder == "huffman":
        writer.choice(0, 2)
        write_ints(writer, codes.ravel(), top)
        return
    common = int(np.bincount(codes.ravel()).argmax())
    mask = codes != common
    trial = Writer()
    trial.number(common)
    grid = write_mask(trial, mask)
    split = grid is None or grid.size > 1
    writer.choice(split, 2)
    if not split:
        write_ints(writer, codes.ravel(), top)
        return
    writer.extend(trial)
    rest = codes[mask]
    write_grouped(writer, rest - (rest > common), top - 1, mask, grid)


def write_uniform(writer: Writer, entry: Entry, tensor: UniformTensor) -> None:
    """The codes: where they are not 0, their magnitudes, their signs."""
    codes = tensor.codes.reshape(entry.matrix)
    size = np.abs(codes.astype(np.int32))
    top = int(size.max())
    writer.number(top)
    if not top:
        return
    mask = size > 0
    logs = np.log2(1.0 + np.arange(top + 1)).astype(np.float32)[size]
    grid = write_mask(writer, mask, (logs.mean(axis=1), logs.mean(axis=0)))
    write_grouped(writer, size[mask].astype(np.int64) - 1, top - 1, mask, grid)
    write_ints(writer, (codes[mask] < 0).astype(np.int64), 1)


def _read_positions(reader: Reader, entry: Entry) -> tuple[np.ndarray, Grid | None]:
    """The mask as a matrix, and its grid."""
    if not entry.count:
        return np.zeros(entry.matrix, bool), None
    with reader.part("indices"):
        return read_mask(reader, *entry.matrix)


def read_sparse(reader: Reader, entry: Entry, table: np.ndarray) -> SparseTensor:
    """The mask and the values; the table is empty."""
    mask, _ = _read_positions(reader, entry)
    return SparseTensor(mask.reshape(entry.shape), read_floats(reader, int(np.count_nonzero(mask))))


def read_uniform(reader: Reader, entry: Entry, scales: np.ndarray) -> UniformTensor:
    """The codes, with the scales that were read before."""
    codes, dtype = np.zeros(entry.matrix, np.int32), uniform_type(entry.bits)
    most = int(np.iinfo(dtype).max)
    top = reader.number(most + 1, "a largest code") if entry.count else 0
    if top:
        mask, grid = _read_positions(reader, entry)
        size = read_grouped(reader, top - 1, mask, grid) + 1
        negative = read_ints(reader, len(size), 1)
        codes[mask] = np.where(negative, -size, size)
        if codes.max() > most:
            raise FormatError(f"a uniform code is {codes.max()}, expected at most {most}; the file is damaged")
    return UniformTensor(codes.astype(dtype).reshape(entry.shape), scales, entry.bits)


def read_shared(reader: Reader, entry: Entry, codebook: np.ndarray) -> CodebookTensor:
    """The codes, with the codebook that was read before."""
    return _codebook(entry, None, _read_shared(reader, entry), codebook)


def read_masked(reader: Reader, entry: Entry, codebook: np.ndarray) -> CodebookTensor:
    """The mask and the codes, with the codebook that was read before."""
    matrix, grid = _read_positions(reader, entry)
    if matrix.any() and not entry.table:
        raise FormatError(f"tensor {entry.name!r} has codes but no codebook; the file is damaged")
    codes = read_grouped(reader, entry.table - 1, matrix, grid)
    return _codebook(entry, matrix.reshape(entry.shape), codes, codebook)


def _codebook(entry: Entry, mask: np.ndarray | None, codes: np.ndarray, codebook: np.ndarray) -> CodebookTensor:
    assert entry.dtype is not None
    if len(codes) and int(codes.max()) > np.iinfo(entry.dtype).max:
        raise FormatError(f"tensor {entry.name!r} has codes that do not fit {entry.dtype}; the file is damaged")
    return CodebookTensor(mask, codes.astype(entry.dtype), codebook, entry.shape)


def _read_shared(reader: Reader, entry: Entry) -> np.ndarray:
    if not entry.count:
        return np.zeros(0, np.int64)
    if not entry.table:
        raise FormatError(f"tensor {entry.name!r} has codes but no codebook; the file is damaged")
    top = entry.table - 1
    if not reader.choice(2):
        return read_ints(reader, entry.count, top)
    common = reader.number(top, "the commonest code")
    mask, grid = _read_positions(reader, entry)
    rest = read_grouped(reader, top - 1, mask, grid)
    codes = np.full(entry.matrix, common, np.int64)
    codes[mask] = rest + (rest >= common)
    return codes.ravel()
