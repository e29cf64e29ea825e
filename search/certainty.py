"""How sure an error budget is: one-sided upper bounds from counts of pictures, and how many pictures would do. Pure.

A network's error on some pictures is a sample of its error on all. A front is chosen among many candidates, so that those that
were lucky on the validation pictures stand first: what is promised is therefore the upper bound of the error and not its
estimate. Every bound here is the limit at which a score test gives up at the level asked for:

- absolute budgets: the share of errors, Wilson's interval with continuity correction (Newcombe 1998a, method 4);
- budgets of points above the dense network: the difference of paired proportions, Tango's interval (1998, equations 5 to 8);
- budgets relative to the dense network's error: the ratio of paired proportions (Tang, Tang and Chan 2003, section 2).

The plain score bounds hold on average only: near zero errors a bound of 90 % covers 80 %. Moving every count up by half a
picture (the continuity correction) mends this: for errors up to 50 % a bound of 90 % or more covers no less than it says, one of
80 % no less than 78.7 %. The tests enumerate it.

Symbols: ``n`` pictures, ``b`` that only the candidate gets wrong, ``c`` that only the dense network gets wrong, ``z`` the
quantile of the normal distribution that belongs to the level.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

from .budgets import Budget

HALF_A_PICTURE = 0.5
"""Counts move in steps of one picture: the correction is half a step."""
STEPS = 60
"""Halvings of an interval of length 1; beyond 53 a double has no more digits."""
MAX_PICTURES = 10_000_000
"""Where more pictures than this would be needed, none of the data sets that networks are measured on would do."""


@dataclass(frozen=True)
class PairedErrors:
    """Wrong answers of a candidate and of the dense network on the same pictures.

    Counts may be fractions where they are expected ones.

    Parameters
    ----------
    pictures
        All of them.
    wrong
        Those that the candidate gets wrong.
    dense_wrong
        Those that the dense network gets wrong.
    newly_wrong
        Those that the candidate alone gets wrong.
    """

    pictures: float
    wrong: float
    dense_wrong: float
    newly_wrong: float

    @classmethod
    def from_values(cls, values: Mapping[str, float]) -> PairedErrors | None:
        """Return the counts that an evaluation recorded, or ``None`` where it recorded none."""
        names = ("pictures", "wrong", "dense_wrong", "newly_wrong")
        counts = [values.get(f"validation_{name}") for name in names]
        return None if None in counts else cls(*(float(count) for count in counts if count is not None))

    @classmethod
    def without_loss(cls, pictures: float, dense_error_pct: float) -> PairedErrors:
        """Return the counts of a network that answers each of so many pictures as the dense network does."""
        wrong = pictures * dense_error_pct / 100
        return cls(pictures, wrong, wrong, 0.0)

    @property
    def newly_right(self) -> float:
        """Return how many pictures the dense network alone gets wrong."""
        return self.newly_wrong + self.dense_wrong - self.wrong

    @property
    def dense_error_pct(self) -> float:
        """Return the dense network's error in per cent."""
        return 100 * self.dense_wrong / self.pictures


def error_bound_pct(budget: Budget, counts: PairedErrors, confidence: float) -> float:
    """Return the upper bound of the error in per cent, as the budget reads it.

    Parameters
    ----------
    budget
        On the error. What it is relative to is the dense network's error on the same pictures: the bound is to be compared
        with ``budget.resolve`` of that.
    counts
        Of the pictures on which both were measured.
    confidence
        Share of samples, between 0.5 and 1, whose bound is not below the truth.
    """
    z = NormalDist().inv_cdf(confidence)
    if budget.kind == "plus":
        return counts.dense_error_pct + 100 * difference_bound(counts, z)
    if budget.kind == "ratio" and counts.dense_wrong > 0:
        return counts.dense_error_pct * ratio_bound(counts, z)
    # Any multiple of no error is no error: what is left is the candidate's own.
    return 100 * share_bound(counts.wrong, counts.pictures, z)


def excess(budget: Budget, counts: PairedErrors, confidence: float) -> float:
    """Return how far the upper bound of the error lies above the budget, as a share of it; at most 0 where it is kept."""
    limit = budget.resolve({"error_pct": counts.dense_error_pct})
    return limit.violation({"error_pct": error_bound_pct(budget, counts, confidence)})


def pictures_needed(budget: Budget, dense_error_pct: float, confidence: float) -> int | None:
    """Return the least number of pictures on which a network that loses nothing keeps the budget for certain.

    ``None`` where no number would do: the dense network itself does not keep the budget, or nothing may be lost at all.
    """

    def suffices(pictures: int) -> bool:
        return excess(budget, PairedErrors.without_loss(pictures, dense_error_pct), confidence) <= 0

    if not suffices(MAX_PICTURES):
        return None
    too_few, enough = 0, MAX_PICTURES
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if suffices(middle) else (middle, enough)
    return enough


def share_bound(wrong: float, pictures: float, z: float) -> float:
    """Return the upper bound of a share of errors: Wilson (1927), corrected for continuity (Newcombe 1998a, method 4)."""
    count = wrong + HALF_A_PICTURE
    if count >= pictures:
        return 1.0
    centre = count + z * z / 2
    half = z * math.sqrt(count * (1 - count / pictures) + z * z / 4)
    return (centre + half) / (pictures + z * z)


def difference_bound(counts: PairedErrors, z: float) -> float:
    """Return the upper bound of the candidate's share of errors less the dense network's (Tango 1998).

    The score ``(b - c - n d) / sqrt(n (2 q + d (1 - d)))`` of a difference ``d`` has in ``q`` the likeliest share of
    pictures that the dense network alone gets wrong, given ``d``: the root of a quadratic.
    """
    n, b, c = counts.pictures, counts.newly_wrong, counts.newly_right

    def score(d: float) -> float:
        linear = -b - c + (2 * n - b + c) * d
        root = math.sqrt(max(0.0, linear * linear + 8 * n * c * d * (1 - d)))
        q = (root - linear) / (4 * n)
        return _standardized(b - c - n * d + HALF_A_PICTURE, n * (2 * q + d * (1 - d)))

    return _limit(score, (b - c + HALF_A_PICTURE) / n, 1.0, z)


def ratio_bound(counts: PairedErrors, z: float) -> float:
    """Return the upper bound of the candidate's share of errors over the dense network's (Tang, Tang and Chan 2003).

    The score ``(x1 - r x0) / sqrt(n ((1 + r) q + (r - 1) w / n))`` of a ratio ``r``, with ``x1`` and ``x0`` the pictures that
    the candidate and the dense network get wrong and ``w`` those that either does, has in ``q`` what it has in
    ``difference_bound``. Infinite where the dense network gets none wrong: nothing is known of a ratio then.
    """
    n, x1, x0, c = counts.pictures, counts.wrong, counts.dense_wrong, counts.newly_right
    either = x0 + counts.newly_wrong

    def score(r: float) -> float:
        linear = x0 * r * r - x1 - 2 * c
        constant = c * (1 - r) * either / n
        root = math.sqrt(max(0.0, linear * linear - 4 * n * (1 + r) * constant))
        q = (root - linear) / (2 * n * (1 + r))
        # A picture that the dense network gets wrong counts r times.
        correction = HALF_A_PICTURE * max(1.0, r)
        return _standardized(x1 - r * x0 + correction, n * (1 + r) * q + (r - 1) * either)

    if x0 <= HALF_A_PICTURE:
        return math.inf
    low = x1 / x0
    high = max(1.0, 2 * low)
    while score(high) > -z:
        low, high = high, 2 * high
    return _limit(score, low, high, z)


def _standardized(surplus: float, variance: float) -> float:
    """Return a surplus of errors in standard deviations."""
    if variance > 0:
        return surplus / math.sqrt(variance)
    return 0.0 if surplus == 0 else math.copysign(math.inf, surplus)


def _limit(score: Callable[[float], float], low: float, high: float, z: float) -> float:
    """Return where a falling score reaches ``-z`` between two ends, the upper end where it does not."""
    if low >= high:
        return high
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if score(middle) <= -z else (middle, high)
    return high
