"""One entropy-coded stream for a whole file: asymmetric numeral systems (1311.2540), as implemented by constriction, or
Huffman codes.

Everything but the seven bytes in front goes through the same coder, so a field costs its information content and not a
byte more, and the end of the file costs at most one byte. The ANS coder is a stack, so the writer keeps its operations and
pushes them in reverse when it is finished. Probabilities reach constriction only as integers that both sides compute in
integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import constriction
import numpy as np

from ..errors import FormatError
from .huffman import HuffmanSource, fixed_width, huffman_code, pack

AnsCoder = constriction.stream.stack.AnsCoder
Categorical = constriction.stream.model.Categorical
Uniform = constriction.stream.model.Uniform

Coder = Literal["ans", "huffman"]
"""``ans`` is the smaller one; ``huffman`` what 1510.00149 has."""
CODERS: tuple[Coder, ...] = ("ans", "huffman")

PARTS = ("weights", "indices", "codebooks", "header")
"""What the bytes of a file are spent on."""

_HALF = 16
"""A uniform symbol has at most this many bits; wider ones are split."""


class Writer:
    """Collects symbols with their models, in the order in which they will be read.

    Parameters
    ----------
    coder
        What turns them into bytes.
    """

    def __init__(self, coder: Coder = "ans") -> None:
        self.coder = coder
        self._operations: list[tuple[Any, Any]] = []

    def symbols(self, values: np.ndarray, weights: np.ndarray) -> None:
        """Values in ``[0, len(weights))``, probabilities proportional to the integer weights; a single weight costs nothing."""
        if not len(values) or len(weights) < 2:
            return
        if self.coder == "huffman":
            self._operations.append(huffman_code(weights).bits(values))
        else:
            model = Categorical(weights.astype(np.float32), perfect=False)
            self._operations.append((np.ascontiguousarray(values, np.int32), (model,)))

    def flags(self, values: np.ndarray, weights: np.ndarray) -> None:
        """Booleans (n,), each with the integer weights (n, 2) of 0 and 1."""
        if self.coder == "huffman":
            self.uniform(values, 2)
        elif len(values):
            model = (Categorical(perfect=False), weights.astype(np.float32))
            self._operations.append((np.ascontiguousarray(values, np.int32), model))

    def uniform(self, values: np.ndarray, size: int) -> None:
        """Values in ``[0, size)``, all equally likely; ``size`` up to 2^48."""
        if size > 1 << _HALF:
            self.uniform(values >> _HALF, ((size - 1) >> _HALF) + 1)
            self.uniform(values & ((1 << _HALF) - 1), 1 << _HALF)
        elif size > 1 and len(values):
            if self.coder == "huffman":
                self._operations.append((values.astype(np.uint64), np.full(len(values), fixed_width(size))))
            else:
                self._operations.append((np.ascontiguousarray(values, np.int32), (Uniform(size),)))

    def choice(self, value: int, size: int) -> None:
        """One of ``size <= 2^16`` equally likely alternatives."""
        if size > 1 and self.coder == "huffman":
            self.uniform(np.array([int(value)]), size)
        elif size > 1:
            self._operations.append((int(value), (Uniform(size),)))

    def number(self, value: int) -> None:
        """An integer in ``[0, 2^32 - 2]``, in about 5 + log2(value + 1) bits."""
        width = (value + 1).bit_length() - 1
        self.choice(width, 32)
        self.uniform(np.array([value + 1 - (1 << width)]), 1 << width)

    def extend(self, other: Writer) -> None:
        """Append what another writer with the same coder collected."""
        self._operations += other._operations

    @property
    def size_bytes(self) -> int:
        """Memory that the symbols take until they are coded."""
        arrays = [part for operation in self._operations for part in operation]
        return sum(part.nbytes for part in arrays if isinstance(part, np.ndarray))

    def huffman_bits(self) -> int:
        """Bits that were written with Huffman codes."""
        assert self.coder == "huffman"
        return sum(int(lengths.sum()) for _, lengths in self._operations)

    def bytes(self) -> bytes:
        """The coded stream, without trailing zero bytes."""
        if self.coder == "huffman":
            return pack(self._operations)
        coder = AnsCoder()
        for values, model in reversed(self._operations):
            coder.encode_reverse(values, *model)
        return coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


class Source(Protocol):
    """What a reader draws from; counts are above 0, and sizes from 2 to 2^16."""

    def symbols(self, count: int, weights: np.ndarray) -> np.ndarray: ...

    def flags(self, weights: np.ndarray) -> np.ndarray: ...

    def uniform(self, count: int, size: int) -> np.ndarray: ...

    def bits_left(self) -> int: ...

    def is_empty(self) -> bool: ...


class AnsSource:
    """The ANS coder's stack.

    Parameters
    ----------
    data
        Of one file.
    """

    def __init__(self, data: bytes) -> None:
        self._coder = AnsCoder(np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32))

    def symbols(self, count: int, weights: np.ndarray) -> np.ndarray:
        """(count,) int32."""
        return np.asarray(self._coder.decode(Categorical(weights.astype(np.float32), perfect=False), count))

    def flags(self, weights: np.ndarray) -> np.ndarray:
        """(n,) bool for integer weights (n, 2)."""
        return np.asarray(self._coder.decode(Categorical(perfect=False), weights.astype(np.float32))).astype(bool)

    def uniform(self, count: int, size: int) -> np.ndarray:
        """(count,) int32."""
        return np.asarray(self._coder.decode(Uniform(size), count))

    def bits_left(self) -> int:
        """Of the information that is left."""
        return int(self._coder.num_valid_bits())

    def is_empty(self) -> bool:
        """Whether everything was read."""
        return bool(self._coder.is_empty())


class Reader:
    """Gives back what a ``Writer`` took, and counts the bits that each part of the file takes.

    Reading past the end gives zeros, at no cost in memory; ``finish`` finds that out.

    Parameters
    ----------
    data
        What ``Writer.bytes`` returned.
    coder
        The writer's.
    """

    def __init__(self, data: bytes, coder: Coder = "ans") -> None:
        if data.endswith(b"\0"):
            raise FormatError("the coded stream ends in a zero byte; the file is damaged")
        self.coder = coder
        self._source: Source = HuffmanSource(data) if coder == "huffman" else AnsSource(data)
        self._part = "header"
        self._mark = self._source.bits_left()
        self.bits = dict.fromkeys(PARTS, 0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is read inside to the named part."""
        before = self._part
        self._settle(name)
        yield
        self._settle(before)

    def _settle(self, part: str) -> None:
        left = self._source.bits_left()
        self.bits[self._part] += self._mark - left
        self._mark, self._part = left, part

    def symbols(self, count: int, weights: np.ndarray) -> np.ndarray:
        """(count,) int32."""
        if len(weights) < 2 or not count:
            return np.zeros(count, np.int32)
        return self._source.symbols(count, weights)

    def flags(self, weights: np.ndarray) -> np.ndarray:
        """(n,) bool for integer weights (n, 2)."""
        return self._source.flags(weights)

    def uniform(self, count: int, size: int) -> np.ndarray:
        """(count,) int32, or int64 where ``size`` asks for it."""
        if size > 1 << _HALF:
            high = self.uniform(count, ((size - 1) >> _HALF) + 1).astype(np.int64)
            return (high << _HALF) | self.uniform(count, 1 << _HALF)
        if size < 2 or not count:
            return np.zeros(count, np.int32)
        return self._source.uniform(count, size)

    def choice(self, size: int) -> int:
        return int(self._source.uniform(1, size)[0]) if size > 1 else 0

    def number(self, limit: int, what: str) -> int:
        """An integer of at most ``limit``.

        Raises
        ------
        FormatError
            Where it is larger.
        """
        width = self.choice(32)
        value = (1 << width) + int(self.uniform(1, 1 << width)[0]) - 1
        if value > limit:
            raise FormatError(f"{what} is {value}, expected at most {limit}; the file is damaged")
        return value

    def finish(self) -> None:
        """Check that everything was read and nothing more.

        Raises
        ------
        FormatError
            Where bits are left over.
        """
        self._settle(self._part)
        if not self._source.is_empty():
            raise FormatError(f"{self._mark} bits are left over after the last tensor; the file is damaged")
