"""Budgets into policies: the multiple-choice knapsack over a bank of per-layer variants. Pure.

Symbols: ``U`` units (layers or coupled groups), ``V`` variants of each, ``M`` objectives, all minimised, the first of which is
the damage; ``k`` policies. A policy is (U,) int: one variant for each unit.

With multipliers ``w`` >= 0 the units fall apart: the least of ``w . totals`` is found unit by unit (Everett 1963), and
``sum_u min_v (damage + w . cost) - w . bounds`` is below the damage of every policy within the bounds. The greatest such floor
is that of the linear relaxation (Geoffrion 1974), whose duals are therefore the multipliers to search around.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import LinearConstraint, linprog, milp
from scipy.sparse import csr_array, vstack
from scipy.spatial import ConvexHull

from ..policies.errors import SearchError
from .pareto import front

FAR = 1e5  # ranges above the front, where its hull is closed
LEAST_WEIGHT = 1e-9  # in place of 0, so that of equally cheap policies no dominated one is found
LEAST_SHARE = 1e-6  # of an objective's range: smaller differences are no gap
NO_GAIN = 1e-9  # of a range: rounding, not progress
ROUNDING = 1e-9
STEPS = (0.97, 1.0, 1.03)  # around the best multipliers, where the primal searches start
ROW_SCALE = 1e4  # what a range becomes before HiGHS, whose tolerances are absolute
FALLBACK_S = 20.0
MOST = 0.75  # of what the smallest policy holds lies in the units that an error names,
MOST_NAMED = 5  # but no more than so many


class Infeasible(SearchError):  # noqa: N818 - the field's word for it
    """No policy of the bank keeps the budgets.

    Parameters
    ----------
    objective, bound, least
        What cannot be met, what was asked, and the least that is reachable.
    units, held
        The units that hold the most of ``least``, and how much they hold together.
    given
        Names and bounds of the budgets within which ``least`` holds; empty where ``bound`` cannot be met even alone.
    """

    def __init__(
        self,
        objective: str,
        bound: float,
        least: float,
        units: tuple[str, ...],
        held: float,
        given: tuple[tuple[str, float], ...] = (),
    ) -> None:
        super().__init__(objective, bound, least, units, held, given)
        self.objective, self.bound, self.least = objective, bound, least
        self.units, self.held, self.given = units, held, given

    @property
    def together(self) -> bool:
        """Whether each budget can be met alone, but not all together."""
        return bool(self.given)

    def __str__(self) -> str:
        bound, least = _shown(self.bound, self.least)
        within = " and ".join(f"{name} at most {_shown(value)[0]}" for name, value in self.given)
        smallest = f"the smallest policy with {within}" if within else "the smallest policy"
        alone = "; each budget can be met alone, but not all together" if within else ""
        held = (
            f"{_shown(self.held)[0]} of it is in {', '.join(self.units)}" if self.units else "none of it is in a layer"
        )
        widen = "or widen these layers' menus" if self.units else "or drop it"
        return f"{self.objective}: expected at most {bound}, but {smallest} has {least}; {held}{alone}; raise the budget {widen}"


@dataclass(frozen=True, eq=False)
class Table:
    """Costs of each variant of each unit; a policy costs the sum of its variants' and the offsets.

    Parameters
    ----------
    units
        Names, U.
    objectives
        Names, M; the first is the damage (such as ``kl``), the others additive costs (such as ``stored_bytes``).
    costs
        (U, V, M) float64; ``inf`` in all objectives pads units that have fewer variants.
    offsets
        (M,) float64, what every policy costs besides.

    Raises
    ------
    SearchError
        Where shapes disagree, a cost is nan or ``-inf``, a variant is ``inf`` in some objectives only, or a unit has none.
    """

    units: tuple[str, ...]
    objectives: tuple[str, ...]
    costs: np.ndarray
    offsets: np.ndarray

    def __post_init__(self) -> None:
        for name in ("costs", "offsets"):
            array = np.array(getattr(self, name), np.float64)
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        _check(self)

    @cached_property
    def valid(self) -> np.ndarray:
        """(U, V) bool: variants that are there, not padding."""
        return np.isfinite(self.costs[..., 0])

    @cached_property
    def menu(self) -> Menu:
        """The undominated variants, which are all that a solver has to look at."""
        return _menu(self)

    def totals(self, chosen: np.ndarray) -> np.ndarray:
        """(k, U) int policies -> (k, M) costs; ``inf`` where padding is chosen.

        Raises
        ------
        SearchError
            Where a policy has not one variant for each unit, or a variant is out of range.
        """
        units, variants, _ = self.costs.shape
        chosen = np.asarray(chosen)
        if chosen.ndim != 2 or chosen.shape[1] != units or ((chosen < 0) | (chosen >= variants)).any():
            raise SearchError(f"expected policies of shape (k, {units}) below {variants}, got shape {chosen.shape}")
        return self.costs[np.arange(units), chosen].sum(1) + self.offsets


@dataclass(frozen=True, eq=False)
class Menu:
    """Undominated variants in the order of damage, then index; ``W`` is the most that one unit has.

    Short rows are padded with their first entry, which keeps every number finite and never wins an argmin.

    Parameters
    ----------
    order
        (U, W) int, the table's variant.
    costs
        (U, W, M) float64.
    real
        (U, W) bool, False where padded.
    """

    order: np.ndarray
    costs: np.ndarray
    real: np.ndarray

    @cached_property
    def low(self) -> np.ndarray:
        """(M,) sum of the units' smallest costs."""
        return self.costs.min(1).sum(0)

    @cached_property
    def span(self) -> np.ndarray:
        """(M,) sum of the units' ranges; 0 only where an objective is the same for all policies."""
        return np.ptp(self.costs, axis=1).sum(0)

    def policy(self, picks: np.ndarray) -> np.ndarray:
        """(..., U) positions in the menu -> (..., U) variants of the table."""
        return self.order[np.arange(len(self.order)), picks]


def undominated(table: Table) -> np.ndarray:
    """(U, V) bool: variants that no other of their unit dominates; of equal ones the first stays."""
    costs = table.costs
    no_worse = np.ones((*table.valid.shape, costs.shape[1]), bool)
    for j in range(costs.shape[2]):
        no_worse &= costs[:, :, None, j] <= costs[:, None, :, j]
    twins = no_worse & no_worse.transpose(0, 2, 1)
    later = np.tri(costs.shape[1], dtype=bool)
    return table.valid & ~(no_worse & ~(twins & later)).any(1)


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
    return table.menu.policy(_weighted(table.menu, multipliers).argmin(2))


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


def within(table: Table, bounds: np.ndarray) -> np.ndarray:
    """(U,) policy of nearly the least damage within the bounds; milliseconds.

    Policies at and around the best multipliers are repaired greedily until they fit, then spend greedily what is left. Where none
    fits, or the damage is further above the floor than one unit can change it, the exact solver takes over.

    Parameters
    ----------
    bounds
        (M,) on the totals; ``inf`` or nan where unbounded.

    Raises
    ------
    Infeasible
        Where no policy keeps the bounds.
    SearchError
        Where the bounds' shape is wrong, or neither a policy nor a proof that there is none was found in time.
    """
    limits = _limits(table, bounds)
    start = _start(table, limits)
    one_unit = np.ptp(table.menu.costs[..., 0], axis=1).max()
    if start.chosen is not None and start.damage <= start.floor + one_unit:
        return start.chosen
    return _improved(table, limits, start, FALLBACK_S)[0]


def exact(table: Table, bounds: np.ndarray, time_limit_s: float = 60.0) -> np.ndarray:
    """(U,) policy of the least damage within the bounds (M,), as ``within`` but proven best; seconds where large.

    Variants that lift the floor above the damage of a known policy are left out before HiGHS is called: none of them can be part
    of a better one.

    Raises
    ------
    Infeasible
        Where no policy keeps the bounds.
    SearchError
        Where the bounds' shape is wrong, or nothing was proven within ``time_limit_s``.
    """
    limits = _limits(table, bounds)
    chosen, proven = _improved(table, limits, _start(table, limits), time_limit_s)
    if not proven:
        raise SearchError(
            f"expected a proven optimum within {time_limit_s:g} s, got none; allow more time or take `within`"
        )
    return chosen


def _check(table: Table) -> None:
    units, objectives, costs = table.units, table.objectives, table.costs
    if costs.ndim != 3 or 0 in costs.shape or (costs.shape[0], costs.shape[2]) != (len(units), len(objectives)):
        raise SearchError(
            f"expected costs of shape (units, variants, objectives) = ({len(units)}, V, {len(objectives)}), none of them 0; "
            f"got {costs.shape}"
        )
    if table.offsets.shape != (len(objectives),) or not np.isfinite(table.offsets).all():
        raise SearchError(f"expected {len(objectives)} finite offsets, got {table.offsets}")
    there = np.isfinite(costs).all(2)
    wrong = ~there & ~np.isposinf(costs).all(2)
    if wrong.any():
        unit, variant = np.argwhere(wrong)[0]
        raise SearchError(
            f"{units[unit]}, variant {variant}: expected finite costs, or inf in all as padding; got "
            f"{dict(zip(objectives, costs[unit, variant].tolist()))}; leave out what could not be measured"
        )
    if not there.any(1).all():
        raise SearchError(
            f"{units[int(np.argmin(there.any(1)))]}: expected at least one variant, got none; keep it dense"
        )


def _menu(table: Table) -> Menu:
    kept = undominated(table)
    key = np.where(kept, table.costs[..., 0], np.inf)
    order = np.argsort(key, axis=1, kind="stable")[:, : kept.sum(1).max()]
    real = np.take_along_axis(kept, order, 1)
    order = np.where(real, order, order[:, :1])
    return Menu(order, table.costs[np.arange(len(order))[:, None], order], real)


def _weighted(menu: Menu, multipliers: np.ndarray) -> np.ndarray:
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


@dataclass(frozen=True, eq=False)
class _Start:
    """What the multipliers give.

    ``chosen`` (U,) is the best policy found, if any, and ``damage`` its damage; no policy that fits is below ``floor``, and none
    that takes a given variant of the menu is below ``floor`` + ``reduced`` (U, W).
    """

    chosen: np.ndarray | None
    damage: float
    floor: float
    reduced: np.ndarray


def _limits(table: Table, bounds: np.ndarray) -> np.ndarray:
    """(M,) bounds, ``inf`` where there is none; each can be met alone."""
    bounds = np.asarray(bounds, np.float64)
    if bounds.shape != (len(table.objectives),):
        raise SearchError(f"expected {len(table.objectives)} bounds ({', '.join(table.objectives)}), got {bounds}")
    limits = np.where(np.isnan(bounds), np.inf, bounds)
    for j, limit in enumerate(limits):
        smallest = table.menu.policy(table.menu.costs[..., j].argmin(1))
        if table.totals(smallest[None])[0, j] > limit:
            raise _infeasible(table, limits, smallest, j, [])
    return limits


def _infeasible(table: Table, limits: np.ndarray, smallest: np.ndarray, j: int, others: list[int]) -> Infeasible:
    """The report on objective ``j``, whose least total within the limits of ``others`` is that of ``smallest`` (U,)."""
    costs = table.costs[np.arange(len(smallest)), smallest, j]
    order = np.argsort(-costs, kind="stable")[: (costs > 0).sum()][:MOST_NAMED]
    order = order[: 1 + np.searchsorted(np.cumsum(costs[order]), MOST * costs[costs > 0].sum())]
    return Infeasible(
        objective=table.objectives[j],
        bound=float(limits[j]),
        least=float(table.totals(smallest[None])[0, j]),
        units=tuple(table.units[i] for i in order),
        held=float(costs[order].sum()),
        given=tuple((table.objectives[i], float(limits[i])) for i in others),
    )


def _start(table: Table, limits: np.ndarray) -> _Start:
    """The floor, and the best of the policies around its multipliers once they are repaired and improved."""
    menu, room = table.menu, limits - table.offsets
    best, damage = None, np.inf
    weights = np.zeros(len(limits))
    if (table.totals(menu.order[None, :, 0])[0] > limits).any():
        weights = _dual(menu, room, np.flatnonzero(np.isfinite(limits)))
    steps = np.array(STEPS)[:, None] * weights
    steps[:, 0] += 1
    for picks in np.unique(_weighted(menu, steps).argmin(2), axis=0):
        fitting = _repaired(table, limits, picks)
        for candidate in [] if fitting is None else [fitting, _spent(table, limits, fitting)]:
            total = table.totals(menu.policy(candidate)[None])[0]
            # A move that fits to the last bit may not once all is summed up again.
            if total[0] < damage and (total <= limits).all():
                best, damage = menu.policy(candidate), float(total[0])
    values = _weighted(menu, steps[1:2])[0]
    floor = values.min(1).sum() + table.offsets[0] - weights @ np.where(weights > 0, room, 0)
    return _Start(best, damage, float(floor), values - values.min(1, keepdims=True))


def _dual(menu: Menu, room: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(M,) multipliers of the limits at the optimum of the relaxation; 0, which is valid too, where it has none."""
    scale = np.where(menu.span > 0, menu.span, 1.0)
    _, _, choose, usage, budget = _program(menu, menu.real, room, rows)
    damage = (menu.costs[..., 0] - menu.costs[..., 0].min(1, keepdims=True))[menu.real] / scale[0]
    solved = linprog(damage, A_ub=usage, b_ub=budget, A_eq=choose, b_eq=np.ones(len(menu.real)), method="highs-ds")
    weights = np.zeros(len(room))
    if solved.status == 0:
        weights[rows] = np.maximum(-solved.ineqlin.marginals, 0) * ROW_SCALE * scale[0] / scale[rows]
    return weights


def _program(menu: Menu, kept: np.ndarray, room: np.ndarray, rows: np.ndarray) -> tuple[Any, ...]:
    """``choose`` (U, n) x = 1 and ``usage`` (J, n) x <= ``budget`` (J,) over the n entries of the menu that are kept.

    Returns their unit and place (n,), then these three. Rows are counted from the smallest costs, and scaled.
    """
    unit, place = np.nonzero(kept)
    choose = csr_array((np.ones(len(unit)), (unit, np.arange(len(unit)))), shape=(len(kept), len(unit)))
    scale = np.where(menu.span > 0, menu.span, 1.0)[rows] / ROW_SCALE
    above = menu.costs - menu.costs.min(1, keepdims=True)
    usage = csr_array(above[unit, place][:, rows].T / scale[:, None])
    return unit, place, choose, usage, (room - menu.low)[rows] / scale


def _improved(table: Table, limits: np.ndarray, start: _Start, time_limit_s: float) -> tuple[np.ndarray, bool]:
    """The best policy found (U,), and whether it is proven best."""
    menu, kept = table.menu, table.menu.real
    if start.chosen is not None:
        rise = menu.costs[..., 0] - menu.costs[..., 0].min(1, keepdims=True)
        rounding = ROUNDING * (abs(start.damage) + abs(start.floor) + start.reduced.max())
        kept = kept & (start.reduced <= start.damage - start.floor + rounding)
        kept &= rise <= start.damage - menu.low[0] - table.offsets[0] + rounding
    found, proven = _least(table, limits, 0, kept, time_limit_s)
    if found is not None and table.totals(found[None])[0, 0] < start.damage:
        return found, proven
    if start.chosen is not None:
        return start.chosen, proven
    raise _conflict(table, limits, time_limit_s) if proven else _unproven(time_limit_s)


def _least(
    table: Table, limits: np.ndarray, objective: int, kept: np.ndarray, time_limit_s: float
) -> tuple[np.ndarray | None, bool]:
    """The policy (U,) of the least ``objective`` within the limits among ``kept`` (U, W), or none; and whether that is proven.

    What the solver's tolerance lets through above a limit is cut off, and the solver called again.
    """
    menu, ones = table.menu, np.ones(len(table.units))
    rows = np.flatnonzero(np.isfinite(limits))
    unit, place, choose, usage, budget = _program(menu, kept, limits - table.offsets, rows)
    costs = (menu.costs[..., objective] - menu.costs[..., objective].min(1, keepdims=True))[kept]
    costs = costs * (ROW_SCALE / (costs.max() or 1.0))
    # Presolve is slower here, has returned infeasible points (scipy issue 24141), and prints more to standard output.
    options = {"time_limit": time_limit_s, "mip_rel_gap": 0.0, "presolve": False}
    while True:
        constraints = [LinearConstraint(choose, ones, ones), LinearConstraint(usage, -np.inf, budget)]
        solved = milp(costs, integrality=1, bounds=(0, 1), constraints=constraints, options=options)
        if solved.status not in (0, 1, 2):
            raise SearchError(f"HiGHS could not solve this table ({solved.message}); take other budgets, or `family`")
        if solved.x is None:
            return None, solved.status == 2
        entries = np.flatnonzero(solved.x > 0.5)
        found = menu.order[unit[entries], place[entries]]
        if (table.totals(found[None])[0] <= limits).all():
            return found, solved.status == 0
        cut = csr_array((ones, (np.zeros(len(ones), int), entries)), shape=(1, len(unit)))
        usage, budget = vstack([usage, cut]), np.append(budget, len(ones) - 1)


def _conflict(table: Table, limits: np.ndarray, time_limit_s: float) -> SearchError:
    """Which limit is the first that cannot be kept together with those before it."""
    rows = np.flatnonzero(np.isfinite(limits)).tolist()
    for n in range(1, len(rows)):
        before = np.full(len(limits), np.inf)
        before[rows[:n]] = limits[rows[:n]]
        smallest, proven = _least(table, before, rows[n], table.menu.real, time_limit_s)
        if smallest is None or not proven:
            break
        if table.totals(smallest[None])[0, rows[n]] > limits[rows[n]]:
            return _infeasible(table, limits, smallest, rows[n], rows[:n])
    return _unproven(time_limit_s)


def _unproven(time_limit_s: float) -> SearchError:
    return SearchError(
        f"expected a policy within the budgets, or a proof that there is none, within {time_limit_s:g} s; got neither: "
        "allow more time or wider budgets"
    )


def _repaired(table: Table, limits: np.ndarray, picks: np.ndarray) -> np.ndarray | None:
    """Single moves from ``picks`` (U,), each with the least damage for what it takes off the excess; None where none does."""
    menu, picks = table.menu, picks.copy()
    scale = np.where(menu.span > 0, menu.span, 1.0)
    while True:
        totals, moved = _one_move(table, picks)
        over = np.maximum(totals - limits, 0) / scale
        if not over.any():
            return picks
        taken = over.sum() - (np.maximum(totals + moved - limits, 0) / scale).sum(-1)
        useful = taken > NO_GAIN
        if not useful.any():
            return None
        price = np.where(useful, moved[..., 0] / np.where(useful, taken, 1.0), np.inf)
        unit, place = np.unravel_index(price.argmin(), price.shape)
        picks[unit] = place


def _spent(table: Table, limits: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """Single moves from ``picks`` (U,) that take off damage within the limits, the most at a time, until there is none."""
    picks = picks.copy()
    while True:
        totals, moved = _one_move(table, picks)
        fall = np.where((totals + moved <= limits).all(-1), -moved[..., 0], 0.0)
        if fall.max() <= 0:
            return picks
        unit, place = np.unravel_index(fall.argmax(), fall.shape)
        picks[unit] = place


def _one_move(table: Table, picks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Totals (M,) of ``picks`` (U,), and by how much each single change of a unit moves them (U, W, M)."""
    costs, units = table.menu.costs, np.arange(len(picks))
    return table.totals(table.menu.policy(picks)[None])[0], costs - costs[units, picks][:, None]


def _shown(*values: float) -> list[str]:
    """Numbers for a reader: thousands separated, four significant digits, or more where two would read the same."""
    for digits in (4, 7, 10, 17):
        texts = [f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:,.{digits}g}" for value in values]
        if len(set(texts)) == len(set(values)):
            break
    return texts
