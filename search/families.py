"""Policies along the whole front of a bank: the Lagrangian sweep, and what lies between its points. Pure.

Symbols: ``U`` units (layers or coupled groups), ``V`` variants of each, ``M`` objectives, all minimised, the first of which is
the damage; ``k`` policies. A policy is (U,) int: one variant for each unit.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import ConvexHull

from ..policies.errors import SearchError
from .pareto import front
from .table import Menu, Table

FAR = 1e5  # ranges above the front, where its hull is closed
LEAST_WEIGHT = 1e-9  # in place of 0, so that of equally cheap policies no dominated one is found
LEAST_SHARE = 1e-6  # of an objective's range: smaller differences are no gap
NO_GAIN = 1e-9  # of a range: rounding, not progress


def sweep(table: Table, multipliers: np.ndarray) -> np.ndarray:
    """(k, M) nonnegative multipliers -> (k, U) int policies of least ``totals . multipliers``.

    Of equally good variants the one of lower damage, then of lower index; never a dominated one.

    Raises
    ------
    SearchError
        Where the multipliers' shape is wrong, or one of them is negative or not finite.
    """
    multipliers = np.asarray(multipliers, np.float64)
    if multipliers.ndim != 2 or multipliers.shape[1] != len(table.objectives):
        raise SearchError(f"expected multipliers of shape (k, {len(table.objectives)}), got {multipliers.shape}")
    if not (np.isfinite(multipliers) & (multipliers >= 0)).all():
        raise SearchError(
            f"expected multipliers that are finite and not negative, got {multipliers.min()} as the least"
        )
    return table.menu.policy(weighted(table.menu, multipliers).argmin(2))


def spread_multipliers(table: Table, count: int, seed: int) -> np.ndarray:
    """(count, M) multipliers whose policies spread over the supported front, whatever the units of measurement.

    The damage has weight 1. A cost's weight is a quantile, at low-discrepancy points, of the exchange rates (damage for a unit
    of the cost) at which variants give way to one another, so that equal steps change about equally many units. The
    first rows are the corners: no weight for any cost, and all of it for one.
    """
    places = _places(count, len(table.objectives) - 1, seed)
    rates = [np.quantile(_log_rates(table.menu, 1 + j), column) for j, column in enumerate(places.T)]
    multipliers = np.exp(np.array([np.zeros(count), *rates]).T)
    multipliers[:, 1:][:, table.menu.span[1:] == 0] = 0
    return multipliers


def family(table: Table, count: int, seed: int = 0) -> np.ndarray:
    """(k <= count, U) distinct policies from the least damage to the most, none dominated by another.

    They are the supported policies (vertices of the lower convex hull), all of them where ``count`` allows it and the best spread
    otherwise; what room is left goes to single-unit moves from them, into the widest gaps first. A gap is measured by the
    additive epsilon indicator (Zitzler 2003) of the objectives' logarithms.
    """
    if count < 1:
        raise SearchError(f"expected a family of at least 1 policy, got {count}")
    found = _supported(table, count, seed)
    totals = table.totals(found)
    points = _log_scaled(totals, table.menu.low + table.offsets, totals.max(0))
    newest = chosen = found[_pick(points, count, points[:0])]
    while True:
        chosen = chosen[front(table.totals(chosen), np.zeros(len(chosen)))]
        if len(chosen) < count:
            newest = _fillers(table, newest, chosen, min(count - len(chosen), len(chosen)))
        if len(chosen) >= count or len(newest) == 0:
            return chosen
        chosen = np.concatenate([chosen, newest])


def weighted(menu: Menu, multipliers: np.ndarray) -> np.ndarray:
    """(k, U, W); summed by hand, because a BLAS may round equal entries differently and so break ties at random."""
    weighted = multipliers[:, 0, None, None] * menu.costs[..., 0]
    for j in range(1, multipliers.shape[1]):
        weighted += multipliers[:, j, None, None] * menu.costs[..., j]
    return weighted


def _places(count: int, dimensions: int, seed: int) -> np.ndarray:
    """(count, dimensions) in [0, 1]: corners, then the additive recurrence R_d of Roberts (2018), shifted by the seed."""
    if count < 1:
        raise SearchError(f"expected at least 1 multiplier, got {count}")
    root = 2.0
    for _ in range(50):
        root = (1 + root) ** (1 / (dimensions + 1))
    shift = np.random.default_rng(seed).random(dimensions)
    steps = np.arange(count)[:, None] * root ** -np.arange(1.0, dimensions + 1)
    corners = np.concatenate([np.zeros((1, dimensions)), np.eye(dimensions)])
    return np.concatenate([corners, (shift + steps) % 1])[:count]


def _log_rates(menu: Menu, j: int) -> np.ndarray:
    """Logarithms of damage per unit of cost ``j`` along the chords from each unit's best and to its cheapest variant.

    The first and last edge of a unit's hull are among them, so all changes happen between the ends, which are 4x beyond.
    """
    damage, cost = menu.costs[..., 0], menu.costs[..., j]
    cheapest = cost.argmin(1)[:, None]
    rises = np.stack([damage - damage[:, :1], np.take_along_axis(damage, cheapest, 1) - damage])
    saved = np.stack([cost[:, :1] - cost, cost - np.take_along_axis(cost, cheapest, 1)])
    there = (rises > 0) & (saved > 0)
    if there.any():
        logs = np.log(rises[there]) - np.log(saved[there])
        return np.concatenate([[logs.min() - np.log(4)], logs, [logs.max() + np.log(4)]])
    ratio = (menu.span[0] or 1.0) / (menu.span[j] or 1.0)
    return np.log(ratio) + np.log([1e-3, 1e3])


def _supported(table: Table, count: int, seed: int) -> np.ndarray:
    """All supported policies, or more than ``count`` of them.

    Every facet of the hull of what was found is a direction to look in; when none leads below its facet, nothing is
    missing (inner approximation; Aneja and Nair 1979 for two objectives).
    """
    found = sweep(table, spread_multipliers(table, 2 * count, seed))
    while True:
        totals, first = np.unique(table.totals(found), axis=0, return_index=True)
        found = found[first]
        if len(found) > count:
            return found
        seen = {row.tobytes() for row in totals}
        further = sweep(table, _facets(table, totals))
        new = [row.tobytes() not in seen for row in table.totals(further)]
        if not any(new):
            return found
        found = np.concatenate([found, further[new]])


def _facets(table: Table, totals: np.ndarray) -> np.ndarray:
    """(f, M) multipliers of the lower facets of the convex hull of totals (n, M), closed far above in each objective."""
    active = np.flatnonzero(table.menu.span > 0)
    if len(active) < 2:
        return np.zeros((0, len(table.objectives)))
    span = table.menu.span[active]
    points = (totals - table.menu.low - table.offsets)[:, active] / span
    normals = -ConvexHull(np.concatenate([points, 1 + FAR * np.eye(len(active))])).equations[:, :-1]
    normals = normals[normals.min(1) > -len(active) / FAR]
    multipliers = np.zeros((len(normals), len(table.objectives)))
    multipliers[:, active] = np.maximum(normals, LEAST_WEIGHT) / span
    return multipliers


def _log_scaled(totals: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Logarithms, 0 at ``low`` and 1 at ``high``: half the bytes, or half the damage, is as far anywhere on the front."""
    span = np.where(high > low, high - low, 1.0)
    shift = LEAST_SHARE * span - np.minimum(low, 0)
    start = np.log(low + shift)
    return (np.log(np.maximum(totals, low) + shift) - start) / np.where(high > low, np.log(high + shift) - start, 1.0)


def _pick(points: np.ndarray, count: int, taken: np.ndarray) -> np.ndarray:
    """Indices of at most ``count`` points (n, M), each the one that fills the widest gap left by those before and by ``taken``.

    A point's gain is the least, over what is taken, of the most by which it is better in some objective; it is
    positive only for points that nothing taken dominates or equals.
    """
    chosen = [] if len(taken) else list(dict.fromkeys(np.lexsort([*points.T[::-1], column])[0] for column in points.T))
    gain = np.full(len(points), np.inf)
    for point in [*taken, *points[chosen]]:
        np.minimum(gain, (point - points).max(1), out=gain)
    while len(chosen) < count and len(points) and gain.max() > NO_GAIN:
        chosen.append(int(gain.argmax()))
        np.minimum(gain, (points[chosen[-1]] - points).max(1), out=gain)
    return np.array(chosen[:count], int)


def _fillers(table: Table, bases: np.ndarray, chosen: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` policies one unit away from ``bases`` (n, U) that fill the widest gaps of ``chosen``."""
    menu, totals = table.menu, table.totals(chosen)
    ends = menu.low + table.offsets, totals.max(0)
    moved = menu.costs - table.costs[np.arange(len(table.units)), bases][:, :, None]
    moved += table.totals(bases)[:, None, None]
    points = _log_scaled(moved.reshape(-1, moved.shape[-1]), *ends)
    base, unit, place = np.unravel_index(_pick(points, count, _log_scaled(totals, *ends)), moved.shape[:-1])
    found = bases[base]
    found[np.arange(len(found)), unit] = menu.order[unit, place]
    return found
