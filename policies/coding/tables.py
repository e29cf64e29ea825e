"""Probabilities as a file states them: quantized logarithms, turned into integer weights by integer arithmetic.

A table's levels are ``s`` to the octave below the most probable symbol, ``weight = floor(2^(20 - level / s))``. Halving the
step costs a bit for each symbol and saves three quarters of the loss, so ``s`` grows with the root of the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt, log2

import numpy as np

from ..errors import FormatError
from .stream import Reader, Writer

_OCTAVES, _FINEST = 20, 16
_SPREADS = 8


def _root16(value: int) -> int:
    return isqrt(isqrt(isqrt(isqrt(value))))


POWERS = np.array([_root16(1 << (_OCTAVES * _FINEST - step)) for step in range(_OCTAVES * _FINEST + 1)], np.int64)
"""``floor(2^(20 - i / 16))``, by integer roots, so that every machine has the same."""

_GEOMETRIC = [
    POWERS[np.minimum(np.arange(2 * _OCTAVES * _FINEST + 1) * 2 * _FINEST >> spread, len(POWERS) - 1)]
    for spread in range(_SPREADS)
]
"""Weights of the level differences: ``2^(-z / g)`` with g = 1/2, 1, 2, ..., 64."""


def table_bits(counts: np.ndarray) -> float:
    """About what a histogram's data and its probability table take together."""
    count = int(counts.sum())
    if not count:
        return 2.0
    present = int(np.count_nonzero(counts))
    return count * entropy(counts) + 12 + present * (2 + 0.5 * log2(1 + count / present))


def entropy(counts: np.ndarray) -> float:
    """Bits for each symbol of the histogram."""
    counts = counts[counts > 0]
    count = counts.sum()
    return float(np.log2(count) - (counts * np.log2(counts)).sum() / count)


_EIGHTHS = _OCTAVES * 8


@dataclass(frozen=True)
class Flags:
    """Probabilities of booleans, one for each cell of a mask.

    Parameters
    ----------
    levels
        (cells,) logarithm of the odds of a one, ``8 / 2^coarse`` steps to the octave; the first is "never", the last "always".
    coarse
        0 to 3.
    """

    levels: np.ndarray
    coarse: int

    @classmethod
    def fit(cls, ones: np.ndarray, totals: np.ndarray) -> Flags:
        """For (cells,) counts; an empty cell takes the level before it, which is cheap to write."""
        some = int(np.minimum(ones, totals - ones).sum()) / max(int(np.count_nonzero(totals)), 1)
        coarse = min(max(round(3 - log2(0.2 * max(some, 1) ** 0.5)), 0), 3)
        last, levels = 0, []
        for one, total in zip(ones.tolist(), totals.tolist()):
            last = _flag_level(one, total, coarse) if total else last
            levels.append(last)
        return cls(np.array(levels), coarse)

    @property
    def top(self) -> int:
        """The level "always"."""
        return flag_top(self.coarse)

    def weights(self) -> np.ndarray:
        """(cells, 2) integer weights of 0 and 1."""
        middle = (_EIGHTHS >> self.coarse) + 1
        step = np.clip((self.levels - middle) * (2 << self.coarse), 1 - len(POWERS), len(POWERS) - 1)
        weights = np.stack([POWERS[np.maximum(step, 0)], POWERS[np.maximum(-step, 0)]], axis=1)
        weights[self.levels == 0] = (1, 0)
        weights[self.levels == 2 * middle] = (0, 1)
        return weights


def _flag_level(one: int, total: int, coarse: int) -> int:
    steps = _EIGHTHS >> coarse
    if one == 0:
        return 0
    if one == total:
        return 2 * steps + 2
    return 1 + steps + max(-steps, min(steps, round((8 >> coarse) * log2(one / (total - one)))))


def flag_top(coarse: int) -> int:
    """The level "always" at a coarseness of 0 to 3."""
    return 2 * (_EIGHTHS >> coarse) + 2


@dataclass(frozen=True)
class Table:
    """Quantized logarithms of probabilities.

    Parameters
    ----------
    levels
        (alphabet,) distance below the most probable symbol, ``s`` to the octave; -1 where the symbol does not occur.
    precision
        log2(s), 0 to 4.
    """

    levels: np.ndarray
    precision: int

    @classmethod
    def fit(cls, counts: np.ndarray, alphabet: int) -> Table:
        """For a histogram; the precision balances the table's bits with the loss 0.029 n / s^2 of rounding the levels."""
        present = counts > 0
        some = counts[present]
        s = 0.2 * float(some.sum() / len(some)) ** 0.5
        precision = min(max(round(log2(s)), 0), 4)
        levels = np.full(alphabet, -1)
        steps = np.rint((1 << precision) * np.log2(some.max() / some)).astype(np.int64)
        levels[np.flatnonzero(present)] = np.minimum(steps, _OCTAVES << precision)
        return cls(levels, precision)

    def weights(self) -> np.ndarray:
        """(alphabet,) integers that sum to at most 2^22 + alphabet."""
        weights = np.where(self.levels < 0, 0, POWERS[np.maximum(self.levels, 0) * (_FINEST >> self.precision)])
        return np.where(weights > 0, np.maximum((weights << 22) // weights.sum(), 1), 0)

    def price(self, counts: np.ndarray) -> float:
        """Bits of the table and of the data."""
        weights = self.weights()[: len(counts)]
        present = counts > 0
        data = float((counts[present] * np.log2(weights.sum() / weights[present])).sum())
        return (
            data
            + self._differences()[3]
            + 7
            + (0 if present.all() else 9 + len(present) * entropy(np.bincount(present)))
        )

    def _differences(self) -> tuple[bool, int, np.ndarray, float]:
        """Whether differences are coded, the spread of the geometric law, what is coded, and its bits."""
        levels = self.levels[self.levels >= 0]
        change = np.diff(levels, prepend=0)
        folded = np.where(change < 0, -2 * change - 1, 2 * change)
        relative = bool(folded.sum() < levels.sum())
        coded = folded if relative else levels
        laws = _LOG_GEOMETRIC[self.precision]
        bits = laws[:, coded].sum(axis=1)
        spread = int(bits.argmin())
        return relative, spread, coded, float(bits[spread])

    def write(self, writer: Writer) -> None:
        writer.choice(self.precision, 5)
        present = self.levels >= 0
        writer.choice(not present.all(), 2)
        if not present.all():
            flags = Flags.fit(np.array([present.sum()]), np.array([len(present)]))
            writer.choice(flags.coarse, 4)
            writer.choice(int(flags.levels[0]), flags.top + 1)
            writer.symbols(present, flags.weights()[0])
        relative, spread, coded, _ = self._differences()
        writer.choice(relative, 2)
        writer.choice(spread, _SPREADS)
        writer.symbols(coded, _law(spread, self.precision))

    @classmethod
    def read(cls, reader: Reader, alphabet: int) -> Table:
        precision = reader.choice(5)
        present = np.ones(alphabet, bool)
        if reader.choice(2):
            coarse = reader.choice(4)
            flags = Flags(np.array([reader.choice(flag_top(coarse) + 1)]), coarse)
            present = reader.symbols(alphabet, flags.weights()[0]).astype(bool)
        if not present.any():
            raise FormatError("a probability table has no symbol; the file is damaged")
        relative, spread = reader.choice(2), reader.choice(_SPREADS)
        some = reader.symbols(int(present.sum()), _law(spread, precision)).astype(np.int64)
        if relative:
            some = np.cumsum(np.where(some & 1, -((some + 1) >> 1), some >> 1))
        if some.min() < 0 or some.max() > _OCTAVES << precision:
            raise FormatError("a probability table holds a level out of range; the file is damaged")
        levels = np.full(alphabet, -1)
        levels[present] = some
        return cls(levels, precision)


def _law(spread: int, precision: int) -> np.ndarray:
    return _GEOMETRIC[spread][: (2 * _OCTAVES << precision) + 1]


def _law_bits(spread: int, precision: int) -> np.ndarray:
    law = _law(spread, precision)
    bits = np.log2(law.sum() / law)
    # The coder sums in float32, which beyond 2^24 rounds: in this law its last symbol is left without a probability.
    if (spread, precision) == (6, 4):
        bits[-1] = np.inf
    return bits


_LOG_GEOMETRIC = [np.stack([_law_bits(spread, precision) for spread in range(_SPREADS)]) for precision in range(5)]
