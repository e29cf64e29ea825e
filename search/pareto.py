"""Dominance, fronts, crowding, hypervolume and the knee. Pure; every objective is minimised.

Symbols: ``n`` points, ``m`` objectives; ``values`` (n, m) float; ``violations`` (n,) float, 0 where every limit is kept.
"""

from __future__ import annotations

import numpy as np


def dominates(values: np.ndarray, violations: np.ndarray) -> np.ndarray:
    """(n, n) bool: row dominates column, by constrained dominance (Deb 2002, section VI).

    A point that keeps the limits dominates one that does not; of two that do not, the smaller violation wins; of two that
    do, the one that is nowhere worse and somewhere better.
    """
    feasible = violations <= 0
    no_worse = (values[:, None, :] <= values[None, :, :]).all(-1)
    better = (values[:, None, :] < values[None, :, :]).any(-1)
    both = feasible[:, None] & feasible[None, :]
    less = ~feasible[None, :] & (violations[:, None] < violations[None, :])
    equal = ~feasible[:, None] & ~feasible[None, :] & (violations[:, None] == violations[None, :])
    return ((both | equal) & no_worse & better) | less


def ranks(values: np.ndarray, violations: np.ndarray) -> np.ndarray:
    """(n,) int: 0 for points that nothing dominates, 1 for those that only these dominate, and so on."""
    above = dominates(values, violations)
    out = np.full(len(values), -1)
    rank = 0
    while (out < 0).any():
        left = out < 0
        now = left & ~(above & left[:, None]).any(0)
        out[now] = rank
        rank += 1
    return out


def front(values: np.ndarray, violations: np.ndarray) -> np.ndarray:
    """Indices of the points of rank 0, ordered by the first objective; quicker than all ranks."""
    if len(values) == 0:
        return np.zeros(0, int)
    missed = np.maximum(violations, 0)
    nearest = np.flatnonzero(missed == missed.min())
    kept: list[int] = []
    # In this order no point is dominated by a later one.
    for index in nearest[np.lexsort(values[nearest].T[::-1])]:
        above = values[kept]
        if not ((above <= values[index]).all(1) & (above < values[index]).any(1)).any():
            kept.append(int(index))
    return np.array(kept, int)


def certain_front(values: np.ndarray, violations: np.ndarray, excesses: np.ndarray) -> np.ndarray:
    """Return the indices of the points that none dominates which is at least as certain to keep the limits.

    A point is certain where it keeps the limits and its upper bounds do. It may be dominated by one that is not, and stands
    beside it; where no point keeps the limits, these are the points nearest to them.

    Parameters
    ----------
    values
        (n, m) estimates.
    violations
        (n,) of the limits by the estimates; 0 or less where they are kept.
    excesses
        (n,) by how much the upper bounds pass the limits; 0 or less where they keep them.

    Returns
    -------
    np.ndarray
        Ordered by the first objective; where no point is certain, by the excess of its bounds.
    """
    is_certain = (violations <= 0) & (excesses <= 0)
    of_all = front(values, violations)
    if not is_certain.any():
        return of_all[np.argsort(excesses[of_all], kind="stable")]
    certain = np.flatnonzero(is_certain)
    members = np.union1d(of_all, certain[front(values[certain], violations[certain])])
    return members[np.lexsort(values[members].T[::-1])]


def crowding(values: np.ndarray) -> np.ndarray:
    """(n,) crowding distance (Deb 2002, section III-B), objectives scaled by their range; ends are infinite."""
    n, m = values.shape
    distance = np.zeros(n)
    for j in range(m):
        order = np.argsort(values[:, j], kind="stable")
        column = values[order, j]
        span = max(column[-1] - column[0], 1e-12)
        distance[order[[0, -1]]] = np.inf
        distance[order[1:-1]] += (column[2:] - column[:-2]) / span
    return distance


def select(values: np.ndarray, violations: np.ndarray, count: int) -> np.ndarray:
    """Indices of at most ``count`` points, by rank; within the last rank the most crowded is left out, one at a time."""
    order = ranks(values, violations)
    chosen: list[int] = []
    for rank in range(order.max(initial=-1) + 1):
        members = np.flatnonzero(order == rank)
        members = members[np.sort(np.unique(values[members], axis=0, return_index=True)[1])]
        while len(chosen) + len(members) > count:
            members = np.delete(members, int(np.argmin(crowding(values[members]))))
        chosen.extend(members.tolist())
        if len(chosen) >= count:
            break
    return np.array(chosen, int)


def knee(values: np.ndarray) -> int:
    """Index of the point nearest to the ideal one once every objective is scaled to [0, 1] over the points given."""
    low, high = values.min(0), values.max(0)
    scaled = (values - low) / np.maximum(high - low, 1e-12)
    return int(np.argmin(np.linalg.norm(scaled, axis=1)))


def hypervolume(values: np.ndarray, reference: np.ndarray) -> float:
    """Volume that the points dominate below the reference point (m,), by slicing along the last objective."""
    inside = values[(values < reference).all(1)]
    if len(inside) == 0:
        return 0.0
    if values.shape[1] == 1:
        return float(reference[0] - inside.min())
    order = inside[np.argsort(inside[:, -1], kind="stable")]
    edges = np.append(order[:, -1], reference[-1])
    volume = 0.0
    for i in range(len(order)):
        if edges[i + 1] > edges[i]:
            volume += (edges[i + 1] - edges[i]) * hypervolume(order[: i + 1, :-1], reference[:-1])
    return volume
