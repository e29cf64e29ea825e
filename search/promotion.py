"""From rung to rung: which candidates are worth the next one's price. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from .pareto import select

BINS = 3
KEPT_SHARE = 1 / 3
KEPT_SHARE_IF_UNSURE = 1 / 2
SURE_CORRELATION = 0.6
LEAST_PAIRS = 8


def promote(values: np.ndarray, violations: np.ndarray, count: int, latency: int | None) -> np.ndarray:
    """Indices of the candidates to keep, by constrained rank and crowding inside bins of latency.

    Slow and fast regions both survive: each bin holds a third of the candidates and keeps a third of the places; what a
    bin cannot fill goes to the best of the others. The bins are of the candidates that keep the limits; those that miss
    one follow, the nearest first, where places are left.

    Parameters
    ----------
    values
        (n, m) objectives.
    violations
        (n,) above the limits; 0 or less where they are kept.
    count
        How many to keep.
    latency
        Column of ``values`` that holds the latency, or ``None``: one bin.
    """
    n, keeping = len(values), np.flatnonzero(violations <= 0)
    if 0 < len(keeping) < n:
        # Whoever misses a limit comes after all who keep them, fast or slow.
        first = keeping[promote(values[keeping], violations[keeping], count, latency)]
        rest = np.flatnonzero(violations > 0)
        return np.concatenate([first, rest[select(values[rest], violations[rest], count - len(first))]])
    if latency is None or n < 2 * BINS or len(np.unique(values[:, latency])) < BINS:
        return select(values, violations, count)
    bins = np.array_split(np.argsort(values[:, latency], kind="stable"), BINS)
    kept: list[int] = []
    for members in bins:
        kept += members[select(values[members], violations[members], count // BINS)].tolist()
    rest = np.setdiff1d(np.arange(n), kept)
    more = select(values[rest], violations[rest], count - len(kept))
    return np.array([*kept, *rest[more].tolist()], int)


def rank_correlation(lower: Sequence[float], upper: Sequence[float], least: int = LEAST_PAIRS) -> float | None:
    """Spearman's correlation of a quantity on two rungs; ``None`` for fewer pairs than ``least`` or no spread."""
    if len(lower) < least or len(set(lower)) < 2 or len(set(upper)) < 2:
        return None
    return float(spearmanr(lower, upper).statistic)


def kept_share(correlation: float | None) -> float:
    """A third goes on; half where the lower rung ranks poorly."""
    return KEPT_SHARE if correlation is None or correlation >= SURE_CORRELATION else KEPT_SHARE_IF_UNSURE
