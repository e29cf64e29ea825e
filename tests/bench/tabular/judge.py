"""Hypervolume, anytime curves, paired differences and attainment. Pure.

Symbols: ``n`` points, ``s`` seeds, ``g`` places of a grid; three objectives, all minimised.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
QUARTILES = (25, 50, 75)


def undominated(values: np.ndarray) -> np.ndarray:
    """The points (k, 3) of (n, 3) that no other point dominates, each once."""
    points = np.unique(values, axis=0)
    # In this order no point is dominated by a later one.
    kept = np.zeros((0, points.shape[1]))
    for start in range(0, len(points), 256):
        block = points[start : start + 256]
        block = block[~(kept[None, :, :] <= block[:, None, :]).all(-1).any(1)]
        inner = (block[:, None, :] <= block[None, :, :]).all(-1)
        np.fill_diagonal(inner, False)
        kept = np.vstack([kept, block[~inner.any(0)]])
    return kept


def volume(values: np.ndarray, reference: np.ndarray) -> float:
    """Hypervolume of points (n, 3) below the reference (3,): the same as ``pareto.hypervolume``, quick for many points.

    The first two objectives cut the box into cells; what is dominated above a cell is the reference less the least third
    objective among the points at or below the cell's lower corner.
    """
    inside = values[(values < reference).all(1)]
    if not len(inside):
        return 0.0
    xs, rows = np.unique(inside[:, 0], return_inverse=True)
    ys, columns = np.unique(inside[:, 1], return_inverse=True)
    least = np.full((len(xs), len(ys)), reference[2])
    np.minimum.at(least, (rows, columns), inside[:, 2])
    least = np.minimum.accumulate(np.minimum.accumulate(least, axis=0), axis=1)
    widths, heights = np.diff(xs, append=reference[0]), np.diff(ys, append=reference[1])
    return float(widths @ (reference[2] - least) @ heights)


def volume_curve(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(n,) hypervolume after each evaluation."""
    kept = np.zeros((0, values.shape[1]))
    out, current = np.zeros(len(values)), 0.0
    for i, point in enumerate(values):
        if (point < reference).all() and not (kept <= point).all(1).any():
            kept = np.vstack([kept[~(point <= kept).all(1)], point])
            current = volume(kept, reference)
        out[i] = current
    return out


def held(curve: np.ndarray, count: int) -> np.ndarray:
    """(count,) the curve, its last value held where the method ran out of policies."""
    return np.concatenate([curve, np.full(max(0, count - len(curve)), curve[-1] if len(curve) else 0.0)])[:count]


def on_clock(curve: np.ndarray, finished_s: np.ndarray, grid_s: np.ndarray) -> np.ndarray:
    """(g,) the curve's value at each moment, 0 before the first evaluation is finished at ``finished_s[0]``."""
    return np.concatenate([[0.0], curve])[np.searchsorted(finished_s, grid_s, side="right")]


def bands(curves: np.ndarray) -> np.ndarray:
    """(3, g) lower quartile, median and upper quartile over the seeds of curves (s, g)."""
    return np.percentile(curves, QUARTILES, axis=0)


def paired(first: np.ndarray, second: np.ndarray, seed: int = 0) -> dict[str, float | int]:
    """Mean of ``first - second`` over seeds (s,) with its 95 % bootstrap interval, and in how many the first is better."""
    difference = first - second
    picked = np.random.default_rng(seed).integers(0, len(difference), (RESAMPLES, len(difference)))
    low, high = np.percentile(difference[picked].mean(1), [2.5, 97.5])
    return {
        "mean": float(difference.mean()),
        "low": float(low),
        "high": float(high),
        "wins": int((difference > 0).sum()),
        "ties": int((difference == 0).sum()),
        "seeds": len(difference),
    }


def attainment(fronts: Sequence[np.ndarray], grid: np.ndarray) -> np.ndarray:
    """Least second coordinate that a quarter, half and three quarters of the seeds attain at each first coordinate.

    Parameters
    ----------
    fronts
        For each seed, points (n, 2).
    grid
        (g,) values of the first coordinate.

    Returns
    -------
    np.ndarray
        (3, g), infinite where too few seeds have a point so small (Fonseca and Fleming 1996).
    """
    best = np.full((len(fronts), len(grid)), np.inf)
    for row, points in zip(best, fronts):
        for i, bound in enumerate(grid):
            row[i] = points[points[:, 0] <= bound, 1].min(initial=np.inf)
    ordered = np.sort(best, axis=0)
    ranks = [max(0, int(np.ceil(share / 100 * len(fronts))) - 1) for share in QUARTILES]
    return ordered[ranks]
