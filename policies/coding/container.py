"""What stands around the tensors: the seven bytes in front, names and metadata, shapes and types."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from ..errors import FormatError, ModelError
from . import kinds
from .entries import Entry
from .stream import Coder, Reader, Writer
from .symbols import LARGEST, read_ints, write_ints
from .tensors import StoredTensor

MAGIC = b"PP"
OVERHEAD = len(MAGIC) + 1 + 4

COMPACT = 3
"""The version of files of small networks."""
_HUFFMAN = 0x80
"""Set in the byte of the version where the stream holds Huffman codes."""
_DIMENSIONS = 32
_TEXT_LIMIT = 1 << 22
_MOST_NUMBERED = 1 << 12
"""Tensors without names, which cost nothing to declare."""
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
_BRIEF_WORDS = _WORDS + (
    b'{"prune_magnitude":{"sparsity":0.75}},{"share":{"clusters":8,"iterations":30,"rounding":"nearest"}}],'
    b'"shape":{"family":"mobilenet_v1","pocket","places":[1,2,0,2,1,1,0,0,0,0,0,0,0,0,0,0]}},'
    b'[{"quantize":{"activations":"float32","bits":2,"rounding":"nearest"}}],[{"quantize":{"activations":"int8","bits":8,'
    b'"rounding":"nearest"}}]],[{"quantize":{"activations":"float32","bits":3,"rounding":"second_order"}}],'
    b'[{"quantize":{"activations":"float32","bits":4,"rounding":"second_order"}}]],"places":[0,1,0,1,0,0,0,0,0,0,0,0,0]}},'
    b'[{"policy":{"version":1,"layers":[[{"quantize":{"activations":"float32","bits":3,"rounding":"nearest"}}],'
    b'[{"quantize":{"activations":"float32","bits":4,"rounding":"nearest"}}]],"places":[0,1,1,1,1,0,0]}},1'
)
"""The same for compact files."""


def _words(version: int) -> bytes:
    return _BRIEF_WORDS if version >= COMPACT else _WORDS


def element_limit(size_bytes: int) -> int:
    """Elements that a file of so many bytes may hold in all: 2^22 and 2048 for each byte, below 2^31.

    A stream may give any number of symbols at no cost, so without it a few bytes could ask for all the memory. A mask with
    one weight in 1000 takes a byte for about 500 elements.
    """
    return min((1 << 22) + 2048 * size_bytes, LARGEST)


def frame(body: bytes, version: int = 1, coder: Coder = "ans") -> bytes:
    """Put magic, version and CRC-32 before the coded stream."""
    marked = version | (_HUFFMAN if coder == "huffman" else 0)
    return MAGIC + bytes([marked]) + zlib.crc32(body).to_bytes(4, "little") + body


def unframe(data: bytes) -> tuple[bytes, int, Coder]:
    """The coded stream, the version and the coder.

    Raises
    ------
    FormatError
        Where it is not our file, a later version, truncated or damaged.
    """
    if len(data) < OVERHEAD or data[: len(MAGIC)] != MAGIC:
        raise FormatError(f"not a paretopress file: expected {MAGIC!r} and at least {OVERHEAD} bytes, got {data[:2]!r}")
    marked = data[len(MAGIC)]
    version = marked & ~_HUFFMAN
    if not 1 <= version <= kinds.LATEST:
        raise FormatError(f"format version {version}, expected 1 to {kinds.LATEST}; read it with a later paretopress")
    body = data[OVERHEAD:]
    if zlib.crc32(body) != int.from_bytes(data[OVERHEAD - 4 : OVERHEAD], "little"):
        raise FormatError("the checksum does not match; the file is truncated or damaged, get it again")
    return body, version, "huffman" if marked & _HUFFMAN else "ans"


def entry_of(name: str, tensor: StoredTensor) -> Entry:
    """Describe a tensor.

    Raises
    ------
    ModelError
        Where the tensor does not keep what ``tensors.py`` promises.
    """
    form = kinds.number_of(tensor)
    if form is None:
        raise ModelError(f"tensor {name!r}: expected a stored form, got {type(tensor).__name__}")
    kind = kinds.KINDS[form]
    entry = kind.describe(name, form, tensor)
    if not kind.is_valid(tensor) or len(entry.shape) > _DIMENSIONS:
        raise ModelError(
            f"tensor {name!r}: shapes, types or codes are not those of a {type(tensor).__name__}; build it anew"
        )
    return entry


def write_header(writer: Writer, entries: list[Entry], metadata: Mapping[str, Any], version: int | None = None) -> None:
    """Write names and metadata, then the entries column by column.

    Raises
    ------
    ModelError
        Where names or metadata are no JSON or too long.
    """
    version = version or kinds.version_of(entries)
    names = [entry.name for entry in entries]
    numbered = version >= COMPACT and len(names) <= _MOST_NUMBERED and names == _numbered(len(names))
    _write_text(writer, [dict(metadata), len(names)] if numbered else [dict(metadata), *names], version)
    of = kinds.KINDS
    forms = np.array([entry.form for entry in entries], np.int64)
    write_ints(writer, forms, kinds.top_form(version))
    write_ints(writer, np.array([len(entry.shape) for entry in entries], np.int64), _DIMENSIONS)
    write_ints(writer, np.array([size for entry in entries for size in entry.shape], np.int64))
    for types in kinds.TYPE_COLUMNS:
        typed = [entry.dtype for entry in entries if of[entry.form].types is types]
        write_ints(writer, np.array([types.index(t) for t in typed if t is not None], np.int64), len(types) - 1)
    write_ints(writer, np.array([entry.bits for entry in entries if of[entry.form].has_bits], np.int64), 255)
    write_ints(writer, np.array([entry.table for entry in entries if of[entry.form].table is not None], np.int64))


def read_header(reader: Reader, size_bytes: int, version: int) -> tuple[list[Entry], dict[str, Any]]:
    """Entries and metadata of a file of so many bytes.

    Raises
    ------
    FormatError
        Where the header is damaged or declares more elements than such a file may hold.
    """
    metadata, names = _read_text(reader, size_bytes, version)
    count = len(names)
    forms = read_ints(reader, count, kinds.top_form(version)).tolist()
    if forms and max(forms) >= len(kinds.KINDS):
        raise FormatError(f"a tensor has form {max(forms)}, not known here; read it with a later paretopress")
    depths = read_ints(reader, count, _DIMENSIONS).tolist()
    if sum(depths) > element_limit(size_bytes):
        raise FormatError(f"{size_bytes} bytes declare {sum(depths)} dimensions; the file is damaged")
    sizes = iter(read_ints(reader, sum(depths)).tolist())
    shapes = [tuple(next(sizes) for _ in range(depth)) for depth in depths]
    of = [kinds.KINDS[form] for form in forms]
    columns = {}
    for types in kinds.TYPE_COLUMNS:
        typed = sum(kind.types is types for kind in of)
        columns[types] = iter(read_ints(reader, typed, len(types) - 1).tolist())
    bits = iter(read_ints(reader, sum(kind.has_bits for kind in of), 255).tolist())
    tables = iter(read_ints(reader, sum(kind.table is not None for kind in of)).tolist())
    entries = []
    for name, form, shape, kind in zip(names, forms, shapes, of):
        dtype = None if kind.types is None else kind.types[next(columns[kind.types])]
        width = next(bits) if kind.has_bits else 0
        entries.append(Entry(name, form, shape, dtype, width, 0 if kind.table is None else next(tables)))
    declared = elements(entries)
    if declared > element_limit(size_bytes):
        raise FormatError(
            f"{size_bytes} bytes declare {declared} elements, more than they may hold; the file is damaged"
        )
    return entries, metadata


def elements(entries: list[Entry]) -> int:
    """Elements in all, an empty dimension counted as one."""
    return sum(prod(max(size, 1) for size in entry.shape) + entry.table for entry in entries)


def _write_text(writer: Writer, document: list[Any], version: int) -> None:
    try:
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"names and metadata must be JSON: {error}") from error
    if len(text) > _TEXT_LIMIT:
        raise ModelError(
            f"names and metadata take {len(text)} bytes, expected at most {_TEXT_LIMIT}; shorten the metadata"
        )
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, _words(version))
    packed = deflate.compress(text) + deflate.flush()
    smaller = len(packed) < len(text)
    coded = packed if smaller else text
    writer.choice(smaller, 2)
    writer.number(len(coded))
    writer.uniform(np.frombuffer(coded, np.uint8), 256)


def _numbered(count: int) -> list[str]:
    return [str(place) for place in range(count)]


def _read_text(reader: Reader, size_bytes: int, version: int) -> tuple[dict[str, Any], list[str]]:
    packed = reader.choice(2)
    length = reader.number(size_bytes + OVERHEAD, "the length of names and metadata")
    coded = reader.uniform(length, 256).astype(np.uint8).tobytes()
    try:
        text = zlib.decompressobj(-15, _words(version)).decompress(coded, _TEXT_LIMIT) if packed else coded
        document = json.loads(text.decode("utf-8", "surrogatepass"))
    except (zlib.error, ValueError, RecursionError) as error:
        raise FormatError(f"names and metadata cannot be read: {error}; the file is damaged") from error
    if not isinstance(document, list) or not document or not isinstance(document[0], dict):
        raise FormatError("expected a list of metadata and names; the file is damaged")
    metadata, *names = document
    if version >= COMPACT and len(names) == 1 and type(names[0]) is int:
        if not 0 <= names[0] <= _MOST_NUMBERED:
            raise FormatError(
                f"{names[0]} tensors without names, expected at most {_MOST_NUMBERED}; the file is damaged"
            )
        names = _numbered(names[0])
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise FormatError("expected distinct names; the file is damaged")
    return metadata, names
