"""The kinds of tensors that a file may hold: one row each says how it is described, written and read.

A tensor's form in a file is its row's place, so that rows are only ever added at the end. Files that hold none of the added
rows are of version 1, byte for byte; the others are of version 2, and compact files of version 3. A kind needs nothing
elsewhere but its class in ``tensors``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np

from .entries import Entry
from .floats import DTYPES
from .generated_payload import is_generated, parameters, read_generated, write_generated
from .payloads import read_masked, read_shared, read_sparse, read_uniform, write_codebook, write_sparse, write_uniform
from .stream import Reader, Writer
from .structured import read_hashed, read_vectors, write_hashed, write_vectors
from .tensors import (
    CodebookTensor,
    DenseTensor,
    GeneratedTensor,
    HashedTensor,
    SparseTensor,
    StoredTensor,
    UniformTensor,
    VectorTensor,
    uniform_type,
)

CODES = tuple(np.dtype(name) for name in ("int32", "uint8", "int64", "int8", "int16", "uint16", "uint32", "uint64"))
TYPE_COLUMNS = (DTYPES, CODES)
"""Lists of types that entries name a member of, in the order in which the header has them."""

Table = Literal["codebooks", "scales"]
TABLES: tuple[Table, ...] = ("codebooks", "scales")
"""Float32 vectors that are coded for all tensors together, in the order in which a file has them."""


@dataclass(frozen=True)
class Kind:
    """How one form is described and coded.

    Parameters
    ----------
    takes
        Whether a tensor is of this kind.
    describe
        The entry of a tensor, from its name, the form and itself; whatever else a reader must know its payload says.
    is_valid
        Whether the tensor keeps what ``tensors.py`` promises.
    write, read
        The payload of a tensor that is not empty, and the tensor from it (of an empty one too) and the table that was read
        before (``table``; otherwise an empty vector). ``None``: there is no payload, the values stand in a pool.
    arrays
        All that the payload depends on beside the entry.
    types
        The column of ``TYPE_COLUMNS`` that the entry's type is named in.
    has_bits
        Whether the entry has bits.
    table
        Which of ``TABLES`` it has, and ``entries`` of it by ``values``.
    values
        The tensor's table (n,) float32.
    """

    takes: Callable[[Any], bool]
    describe: Callable[[str, int, Any], Entry]
    is_valid: Callable[[Any], bool]
    write: Callable[[Writer, Entry, Any], None] | None = None
    read: Callable[[Reader, Entry, np.ndarray], StoredTensor] | None = None
    arrays: Callable[[Any], list[np.ndarray]] = lambda _: []
    types: tuple[np.dtype, ...] | None = None
    has_bits: bool = False
    table: Table | None = None
    values: Callable[[Any], np.ndarray] = lambda _: np.zeros(0, np.float32)


def is_vector(values: np.ndarray) -> bool:
    """Whether it is (n,) float32."""
    return values.dtype == np.float32 and values.ndim == 1


def is_mask(mask: np.ndarray, kept: np.ndarray) -> bool:
    """Whether it is a mask that keeps as many values as there are."""
    return mask.dtype == np.bool_ and kept.shape == (np.count_nonzero(mask),)


def _is_codebook(tensor: CodebookTensor) -> bool:
    codes, mask = tensor.codes, tensor.mask
    if codes.dtype not in CODES or not is_vector(tensor.codebook):
        return False
    if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < len(tensor.codebook):
        return False
    if mask is None:
        return codes.shape == (prod(tensor.shape),)
    return mask.shape == tuple(tensor.shape) and is_mask(mask, codes)


def _codebook_entry(name: str, form: int, tensor: CodebookTensor) -> Entry:
    return Entry(name, form, tuple(tensor.shape), tensor.codes.dtype, 0, len(np.atleast_1d(tensor.codebook)))


def _is_uniform(tensor: UniformTensor) -> bool:
    return is_vector(tensor.scales) and 0 <= tensor.bits <= 16 and tensor.codes.dtype == uniform_type(int(tensor.bits))


def _uniform_entry(name: str, form: int, tensor: UniformTensor) -> Entry:
    return Entry(name, form, tensor.codes.shape, None, int(tensor.bits), len(np.atleast_1d(tensor.scales)))


def _is_vectors(tensor: VectorTensor) -> bool:
    codes, books, shape = tensor.codes, tensor.codebooks, tuple(tensor.shape)
    if codes.dtype not in CODES or codes.ndim != 3 or books.ndim != 4 or books.dtype != np.float32 or not prod(shape):
        return False
    stages, rows, blocks = codes.shape
    if not shape or not 0 < stages < 256 or len(books) != stages or rows != shape[0] or not books.shape[3] > 0:
        return False
    if books.shape[1] not in (1, blocks) or blocks != -(-prod(shape[1:]) // books.shape[3]):
        return False
    in_range = not codes.size or 0 <= int(codes.min()) <= int(codes.max()) < books.shape[2]
    return in_range and _masks(tensor.mask, shape)


def _masks(mask: np.ndarray | None, shape: tuple[int, ...]) -> bool:
    return mask is None or (mask.dtype == np.bool_ and mask.shape == shape)


def _vectors_entry(name: str, form: int, tensor: VectorTensor) -> Entry:
    return Entry(name, form, tuple(tensor.shape), tensor.codes.dtype, len(tensor.codes), tensor.codebooks.size)


def _is_hashed(tensor: HashedTensor) -> bool:
    sized = is_vector(tensor.values) and 0 < len(tensor.values) <= prod(tensor.shape) and 0 <= tensor.seed < 2**31 - 1
    return sized and _masks(tensor.mask, tuple(tensor.shape))


def _mask_arrays(mask: np.ndarray | None) -> list[np.ndarray]:
    return [] if mask is None else [mask]


KINDS: tuple[Kind, ...] = (
    Kind(
        takes=lambda x: isinstance(x, DenseTensor),
        describe=lambda name, form, x: Entry(name, form, x.values.shape, x.values.dtype),
        is_valid=lambda x: x.values.dtype in DTYPES,
        types=DTYPES,
    ),
    Kind(
        takes=lambda x: isinstance(x, SparseTensor),
        describe=lambda name, form, x: Entry(name, form, x.mask.shape),
        is_valid=lambda x: is_mask(x.mask, x.values) and is_vector(x.values),
        write=write_sparse,
        read=read_sparse,
        arrays=lambda x: [x.mask, x.values],
    ),
    Kind(
        takes=lambda x: isinstance(x, CodebookTensor) and x.mask is None,
        describe=_codebook_entry,
        is_valid=_is_codebook,
        write=write_codebook,
        read=read_shared,
        arrays=lambda x: [x.codes],
        types=CODES,
        table="codebooks",
        values=lambda x: x.codebook,
    ),
    Kind(
        takes=lambda x: isinstance(x, CodebookTensor) and x.mask is not None,
        describe=_codebook_entry,
        is_valid=_is_codebook,
        write=write_codebook,
        read=read_masked,
        arrays=lambda x: [x.codes, x.mask],
        types=CODES,
        table="codebooks",
        values=lambda x: x.codebook,
    ),
    Kind(
        takes=lambda x: isinstance(x, UniformTensor),
        describe=_uniform_entry,
        is_valid=_is_uniform,
        write=write_uniform,
        read=read_uniform,
        arrays=lambda x: [x.codes],
        has_bits=True,
        table="scales",
        values=lambda x: x.scales,
    ),
    Kind(
        takes=lambda x: isinstance(x, GeneratedTensor),
        describe=lambda name, form, x: Entry(name, form, tuple(x.shape)),
        is_valid=is_generated,
        write=write_generated,
        read=read_generated,
        arrays=parameters,
    ),
    Kind(
        takes=lambda x: isinstance(x, VectorTensor),
        describe=_vectors_entry,
        is_valid=_is_vectors,
        write=write_vectors,
        read=read_vectors,
        arrays=lambda x: [x.codes, np.array(x.codebooks.shape), *_mask_arrays(x.mask)],
        types=CODES,
        has_bits=True,
        table="codebooks",
        values=lambda x: x.codebooks.ravel(),
    ),
    Kind(
        takes=lambda x: isinstance(x, HashedTensor),
        describe=lambda name, form, x: Entry(name, form, tuple(x.shape)),
        is_valid=_is_hashed,
        write=write_hashed,
        read=read_hashed,
        arrays=lambda x: [x.values, np.array(x.seed), *_mask_arrays(x.mask)],
    ),
)
"""In the order of their form: dense, sparse, codebook, codebook with a mask, uniform, generated, vectors, hashed."""

LATEST = 3
"""The latest version that can be read: 1 and 2 by the kinds, 3 for compact files."""
_FIRST_KINDS = 5
"""Kinds that version 1 has."""


def number_of(tensor: object) -> int | None:
    """The form of a tensor, or ``None`` where it is none of ours."""
    return next((form for form, kind in enumerate(KINDS) if kind.takes(tensor)), None)


def version_of(entries: Iterable[Entry]) -> int:
    """The version of a file with these entries."""
    return 1 if all(entry.form < _FIRST_KINDS for entry in entries) else 2


def top_form(version: int) -> int:
    """The largest form that a file of a version may name."""
    return _FIRST_KINDS - 1 if version == 1 else 255


def write_tensor(writer: Writer, entry: Entry, tensor: StoredTensor) -> None:
    """Write what is left of a tensor that is not empty; nothing of a dense one, which stands in a pool."""
    write = KINDS[entry.form].write
    if write is not None:
        write(writer, entry, tensor)
