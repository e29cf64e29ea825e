"""One entropy-coded stream for a whole file: asymmetric numeral systems (1311.2540), as implemented by constriction.

Everything but the seven bytes in front goes through the same coder, so a field costs its information content and not a
byte more, and the end of the file costs at most one byte. The coder is a stack, so the writer keeps its operations and
pushes them in reverse when it is finished. Probabilities reach constriction only as integers that both sides compute in
integer arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import constriction
import numpy as np

from ..errors import FormatError

AnsCoder = constriction.stream.stack.AnsCoder
Categorical = constriction.stream.model.Categorical
Uniform = constriction.stream.model.Uniform

PARTS = ("weights", "indices", "codebooks", "header")
"""What the bytes of a file are spent on."""

_HALF = 16
"""A uniform symbol has at most this many bits; wider ones are split."""


class Writer:
    """Collects symbols with their models, in the order in which they will be read."""

    def __init__(self) -> None:
        self._operations: list[tuple[np.ndarray | int, tuple[object, ...]]] = []

    def symbols(self, values: np.ndarray, weights: np.ndarray) -> None:
        """Values in ``[0, len(weights))``, probabilities proportional to the integer weights; a single weight costs nothing."""
        if len(values) and len(weights) > 1:
            model = Categorical(weights.astype(np.float32), perfect=False)
            self._operations.append((np.ascontiguousarray(values, np.int32), (model,)))

    def flags(self, values: np.ndarray, weights: np.ndarray) -> None:
        """Booleans (n,), each with the integer weights (n, 2) of 0 and 1."""
        if len(values):
            model = (Categorical(perfect=False), weights.astype(np.float32))
            self._operations.append((np.ascontiguousarray(values, np.int32), model))

    def uniform(self, values: np.ndarray, size: int) -> None:
        """Values in ``[0, size)``, all equally likely; ``size`` up to 2^48."""
        if size > 1 << _HALF:
            self.uniform(values >> _HALF, ((size - 1) >> _HALF) + 1)
            self.uniform(values & ((1 << _HALF) - 1), 1 << _HALF)
        elif size > 1 and len(values):
            self._operations.append((np.ascontiguousarray(values, np.int32), (Uniform(size),)))

    def choice(self, value: int, size: int) -> None:
        """One of ``size <= 2^16`` equally likely alternatives."""
        if size > 1:
            self._operations.append((int(value), (Uniform(size),)))

    def number(self, value: int) -> None:
        """An integer in ``[0, 2^32 - 2]``, in about 5 + log2(value + 1) bits."""
        width = (value + 1).bit_length() - 1
        self.choice(width, 32)
        self.uniform(np.array([value + 1 - (1 << width)]), 1 << width)

    def extend(self, other: Writer) -> None:
        """Append what another writer collected."""
        self._operations += other._operations

    @property
    def size_bytes(self) -> int:
        """Memory that the symbols take until they are coded."""
        return sum(values.nbytes for values, _ in self._operations if isinstance(values, np.ndarray))

    def bytes(self) -> bytes:
        """The coded stream, without trailing zero bytes."""
        coder = AnsCoder()
        for values, model in reversed(self._operations):
            coder.encode_reverse(values, *model)
        return coder.get_compressed().astype("<u4").tobytes().rstrip(b"\0")


class Reader:
    """Gives back what a ``Writer`` took, and counts the bits that each part of the file takes.

    Reading past the end gives zeros, at no cost in memory; ``finish`` finds that out.

    Parameters
    ----------
    data
        What ``Writer.bytes`` returned.
    """

    def __init__(self, data: bytes) -> None:
        if data.endswith(b"\0"):
            raise FormatError("the coded stream ends in a zero byte; the file is damaged")
        words = np.frombuffer(data + bytes(-len(data) % 4), "<u4").astype(np.uint32)
        self._coder = AnsCoder(words)
        self._part = "header"
        self._mark = self._coder.num_valid_bits()
        self.bits = dict.fromkeys(PARTS, 0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is read inside to the named part."""
        before = self._part
        self._settle(name)
        yield
        self._settle(before)

    def _settle(self, part: str) -> None:
        left = self._coder.num_valid_bits()
        self.bits[self._part] += self._mark - left
        self._mark, self._part = left, part

    def symbols(self, count: int, weights: np.ndarray) -> np.ndarray:
        """(count,) int32."""
        if len(weights) < 2 or not count:
            return np.zeros(count, np.int32)
        return np.asarray(self._coder.decode(Categorical(weights.astype(np.float32), perfect=False), count))

    def flags(self, weights: np.ndarray) -> np.ndarray:
        """(n,) bool for integer weights (n, 2)."""
        return np.asarray(self._coder.decode(Categorical(perfect=False), weights.astype(np.float32))).astype(bool)

    def uniform(self, count: int, size: int) -> np.ndarray:
        """(count,) int32, or int64 where ``size`` asks for it."""
        if size > 1 << _HALF:
            high = self.uniform(count, ((size - 1) >> _HALF) + 1).astype(np.int64)
            return (high << _HALF) | self.uniform(count, 1 << _HALF)
        if size < 2 or not count:
            return np.zeros(count, np.int32)
        return np.asarray(self._coder.decode(Uniform(size), count))

    def choice(self, size: int) -> int:
        return int(self._coder.decode(Uniform(size))) if size > 1 else 0

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
        if not self._coder.is_empty():
            raise FormatError(f"{self._mark} bits are left over after the last tensor; the file is damaged")
