"""What stands around the tensors: the seven bytes in front, names and metadata, shapes and types."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..errors import FormatError, ModelError
from .floats import DTYPES
from .stream import Reader, Writer
from .symbols import LARGEST, read_ints, write_ints
from .tensors import CodebookTensor, DenseTensor, SparseTensor, StoredTensor, UniformTensor

MAGIC, VERSION = b"PP", 1
OVERHEAD = len(MAGIC) + 1 + 4

DENSE, SPARSE, SHARED, SPARSE_SHARED, UNIFORM = range(5)
"""Forms, as a file names them; ``SHARED`` has no mask."""

_CODES = tuple(np.dtype(name) for name in ("int32", "uint8", "int64", "int8", "int16", "uint16", "uint32", "uint64"))
_DIMENSIONS = 32
_TEXT_LIMIT = 1 << 22
_WORDS = (
    b"backbone.encoder.attention.linear.norm.head.stem.conv_stem.bn_dw.conv_dw.conv_pwl.conv_pw.se.conv_reduce.conv_expand."
    b"inception.branch.fire.squeeze.expand1x1.expand3x3.shortcut.downsample.0.weight.features.classifier.block.blocks."
    b'num_batches_tracked","running_mean","running_var","architecture":"model":"name":"options":{"input_shape":[1,28,28],'
    b'"num_classes":10},true,false,null,"prune_channels":{"fraction":0.5,"sparsity":0.75}},{"tucker2":{"rank":0.25}},'
    b'{"svd_spatial":{"rank":8}},{"svd":{"rank":16}},{"quantize":{"activations":"float32","bits":4}}],"layer4.1.conv1":'
    b'[{"quantize":{"activations":"uint8","bits":8}}],"layer3.0.conv3","layer2.0.bn2.bias","layer1.0.conv1.weight",'
    b'"layer1.0.bn1.weight","bn1.weight","bn1.bias","fc.weight","fc.bias","fc3.weight","fc3.bias","fc2.weight","fc2.bias",'
    b'"fc1.weight","fc1.bias","conv3.weight","0.weight","0.bias","conv2.weight","conv2.bias","conv1.weight","conv1.bias","'
    b'[{"policy":{"version":1,"layers":{"conv1":[{"prune_magnitude":{"sparsity":0.9}},{"share":{"clusters":16}}],"conv2":'
)
"""Frequent words for deflate to refer to; part of the format."""


def element_limit(size_bytes: int) -> int:
    """Elements that a file of so many bytes may hold in all: 2^22 and 2048 for each byte, below 2^31.

    A stream may give any number of symbols at no cost, so without it a few bytes could ask for all the memory. A mask with
    one weight in 1000 takes a byte for about 500 elements.
    """
    return min((1 << 22) + 2048 * size_bytes, LARGEST)


@dataclass(frozen=True)
class Entry:
    """What a file says of a tensor before its values.

    Parameters
    ----------
    name, form, shape
        ``form`` is one of the constants above.
    dtype
        Of the values (dense) or of the codes (codebook); ``None`` for the others.
    bits
        Width of a code; uniform tensors only.
    table
        Number of shared values or of scales.
    """

    name: str
    form: int
    shape: tuple[int, ...]
    dtype: np.dtype | None = None
    bits: int = 0
    table: int = 0

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, columns) of the tensor as a matrix: output channels and the rest; a vector is one row."""
        if len(self.shape) < 2 or not self.count:
            return 1, self.count
        return self.shape[0], self.count // self.shape[0]


def frame(body: bytes) -> bytes:
    """Put magic, version and CRC-32 before the coded stream."""
    return MAGIC + bytes([VERSION]) + zlib.crc32(body).to_bytes(4, "little") + body


def unframe(data: bytes) -> bytes:
    """The coded stream.

    Raises
    ------
    FormatError
        Where it is not our file, a later version, truncated or damaged.
    """
    if len(data) < OVERHEAD or data[: len(MAGIC)] != MAGIC:
        raise FormatError(f"not a paretopress file: expected {MAGIC!r} and at least {OVERHEAD} bytes, got {data[:2]!r}")
    if data[len(MAGIC)] != VERSION:
        raise FormatError(f"format version {data[len(MAGIC)]}, expected {VERSION}; read it with a later paretopress")
    body = data[OVERHEAD:]
    if zlib.crc32(body) != int.from_bytes(data[OVERHEAD - 4 : OVERHEAD], "little"):
        raise FormatError("the checksum does not match; the file is truncated or damaged, get it again")
    return body


def entry_of(name: str, tensor: StoredTensor) -> Entry:
    """Describe a tensor.

    Raises
    ------
    ModelError
        Where the tensor does not keep what ``tensors.py`` promises.
    """
    match tensor:
        case DenseTensor():
            entry = Entry(name, DENSE, tensor.values.shape, tensor.values.dtype)
            allowed = tensor.values.dtype in DTYPES
        case SparseTensor():
            entry = Entry(name, SPARSE, tensor.mask.shape)
            allowed = _is_mask(tensor.mask, tensor.values) and _is_vector(tensor.values)
        case UniformTensor():
            entry = Entry(name, UNIFORM, tensor.codes.shape, None, int(tensor.bits), len(np.atleast_1d(tensor.scales)))
            allowed = tensor.codes.dtype == np.int8 and _is_vector(tensor.scales) and 0 <= tensor.bits < 256
        case CodebookTensor():
            form = SHARED if tensor.mask is None else SPARSE_SHARED
            entry = Entry(name, form, tuple(tensor.shape), tensor.codes.dtype, 0, len(np.atleast_1d(tensor.codebook)))
            allowed = _is_codebook(tensor)
        case _:
            raise ModelError(f"tensor {name!r}: expected a stored form, got {type(tensor).__name__}")
    if not allowed or len(entry.shape) > _DIMENSIONS:
        raise ModelError(
            f"tensor {name!r}: shapes, types or codes are not those of a {type(tensor).__name__}; build it anew"
        )
    return entry


def _is_vector(values: np.ndarray) -> bool:
    return values.dtype == np.float32 and values.ndim == 1


def _is_mask(mask: np.ndarray, kept: np.ndarray) -> bool:
    return mask.dtype == np.bool_ and kept.shape == (np.count_nonzero(mask),)


def _is_codebook(tensor: CodebookTensor) -> bool:
    codes, mask = tensor.codes, tensor.mask
    if codes.dtype not in _CODES or not _is_vector(tensor.codebook):
        return False
    if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < len(tensor.codebook):
        return False
    if mask is None:
        return codes.shape == (prod(tensor.shape),)
    return mask.shape == tuple(tensor.shape) and _is_mask(mask, codes)


def write_header(writer: Writer, entries: list[Entry], metadata: Mapping[str, Any]) -> None:
    """Write names and metadata, then the entries column by column.

    Raises
    ------
    ModelError
        Where names or metadata are no JSON or too long.
    """
    _write_text(writer, [dict(metadata), *(entry.name for entry in entries)])
    forms = np.array([entry.form for entry in entries], np.int64)
    write_ints(writer, forms, UNIFORM)
    write_ints(writer, np.array([len(entry.shape) for entry in entries], np.int64), _DIMENSIONS)
    write_ints(writer, np.array([size for entry in entries for size in entry.shape], np.int64))
    kinds = [DTYPES.index(entry.dtype) for entry in entries if entry.form == DENSE and entry.dtype is not None]
    write_ints(writer, np.array(kinds, np.int64), len(DTYPES) - 1)
    shared = [entry for entry in entries if entry.form in (SHARED, SPARSE_SHARED) and entry.dtype is not None]
    write_ints(
        writer, np.array([_CODES.index(entry.dtype) for entry in shared if entry.dtype], np.int64), len(_CODES) - 1
    )
    write_ints(writer, np.array([entry.bits for entry in entries if entry.form == UNIFORM], np.int64), 255)
    write_ints(writer, np.array([entry.table for entry in entries if entry.form >= SHARED], np.int64))


def read_header(reader: Reader, size_bytes: int) -> tuple[list[Entry], dict[str, Any]]:
    """Entries and metadata of a file of so many bytes.

    Raises
    ------
    FormatError
        Where the header is damaged or declares more elements than such a file may hold.
    """
    metadata, names = _read_text(reader, size_bytes)
    count = len(names)
    forms = read_ints(reader, count, UNIFORM).tolist()
    depths = read_ints(reader, count, _DIMENSIONS).tolist()
    if sum(depths) > element_limit(size_bytes):
        raise FormatError(f"{size_bytes} bytes declare {sum(depths)} dimensions; the file is damaged")
    sizes = iter(read_ints(reader, sum(depths)).tolist())
    shapes = [tuple(next(sizes) for _ in range(depth)) for depth in depths]
    kinds = iter(read_ints(reader, forms.count(DENSE), len(DTYPES) - 1).tolist())
    codes = iter(read_ints(reader, forms.count(SHARED) + forms.count(SPARSE_SHARED), len(_CODES) - 1).tolist())
    bits = iter(read_ints(reader, forms.count(UNIFORM), 255).tolist())
    tables = iter(read_ints(reader, sum(form >= SHARED for form in forms)).tolist())
    entries = []
    for name, form, shape in zip(names, forms, shapes):
        dtype = (
            DTYPES[next(kinds)] if form == DENSE else _CODES[next(codes)] if form in (SHARED, SPARSE_SHARED) else None
        )
        width = next(bits) if form == UNIFORM else 0
        entries.append(Entry(name, form, shape, dtype, width, next(tables) if form >= SHARED else 0))
    declared = elements(entries)
    if declared > element_limit(size_bytes):
        raise FormatError(
            f"{size_bytes} bytes declare {declared} elements, more than they may hold; the file is damaged"
        )
    return entries, metadata


def elements(entries: list[Entry]) -> int:
    """Elements in all, an empty dimension counted as one."""
    return sum(prod(max(size, 1) for size in entry.shape) + entry.table for entry in entries)


def _write_text(writer: Writer, document: list[Any]) -> None:
    try:
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"names and metadata must be JSON: {error}") from error
    if len(text) > _TEXT_LIMIT:
        raise ModelError(
            f"names and metadata take {len(text)} bytes, expected at most {_TEXT_LIMIT}; shorten the metadata"
        )
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, _WORDS)
    packed = deflate.compress(text) + deflate.flush()
    smaller = len(packed) < len(text)
    coded = packed if smaller else text
    writer.choice(smaller, 2)
    writer.number(len(coded))
    writer.uniform(np.frombuffer(coded, np.uint8), 256)


def _read_text(reader: Reader, size_bytes: int) -> tuple[dict[str, Any], list[str]]:
    packed = reader.choice(2)
    length = reader.number(size_bytes + OVERHEAD, "the length of names and metadata")
    coded = reader.uniform(length, 256).astype(np.uint8).tobytes()
    try:
        text = zlib.decompressobj(-15, _WORDS).decompress(coded, _TEXT_LIMIT) if packed else coded
        document = json.loads(text.decode("utf-8", "surrogatepass"))
    except (zlib.error, ValueError, RecursionError) as error:
        raise FormatError(f"names and metadata cannot be read: {error}; the file is damaged") from error
    if not isinstance(document, list) or not document or not isinstance(document[0], dict):
        raise FormatError("expected a list of metadata and names; the file is damaged")
    metadata, *names = document
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise FormatError("expected distinct names; the file is damaged")
    return metadata, names
