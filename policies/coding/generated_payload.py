"""The parameters of a generated weight."""

from __future__ import annotations

import numpy as np

from ..errors import FormatError
from .entries import Entry
from .floats import read_floats, write_floats
from .generated import GENERATORS
from .stream import Reader, Writer
from .tensors import GeneratedTensor

_NUMBERS = 32
_LARGEST = (1 << 31) - 1


def is_generated(tensor: GeneratedTensor) -> bool:
    """Whether a tensor keeps what its class promises."""
    made, shape, values = GENERATORS.get(tensor.kind), tensor.shape, tensor.values
    if made is None or len(shape) < 2 or min(shape) < 1 or not 1 <= tensor.block <= _LARGEST:
        return False
    return (
        0 <= tensor.seed <= _LARGEST
        and values.dtype == np.float32
        and values.shape == (made.count(shape, tensor.block),)
    )


def write_generated(writer: Writer, entry: Entry, tensor: GeneratedTensor) -> None:
    """Number of the kind, block, seed, parameters."""
    writer.choice(list(GENERATORS).index(tensor.kind), _NUMBERS)
    writer.number(tensor.block)
    writer.number(tensor.seed)
    write_floats(writer, tensor.values)


def read_generated(reader: Reader, entry: Entry, table: np.ndarray) -> GeneratedTensor:
    """What ``write_generated`` wrote; the table is empty.

    Raises
    ------
    FormatError
        Where the kind is not known or the shape is none of a weight.
    """
    if len(entry.shape) < 2 or not entry.count:
        raise FormatError(f"tensor {entry.name!r} of shape {entry.shape} cannot be generated; the file is damaged")
    number = reader.choice(_NUMBERS)
    if number >= len(GENERATORS):
        raise FormatError(
            f"tensor {entry.name!r} is generated in way {number}, not known here; read it with a later paretopress"
        )
    kind = list(GENERATORS)[number]
    block = reader.number(_LARGEST, "the size of a block")
    seed = reader.number(_LARGEST, "a seed")
    if not block:
        raise FormatError(f"tensor {entry.name!r} has blocks of size 0; the file is damaged")
    values = read_floats(reader, GENERATORS[kind].count(entry.shape, block))
    return GeneratedTensor(kind, values, entry.shape, block, seed)


def parameters(tensor: GeneratedTensor) -> list[np.ndarray]:
    """All that the payload depends on."""
    return [np.array([list(GENERATORS).index(tensor.kind), tensor.block, tensor.seed]), tensor.values]
