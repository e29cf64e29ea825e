"""Budgets into a policy: the multiple-choice knapsack over a bank of per-layer variants. Pure.

Symbols: ``U`` units (layers or coupled groups), ``V`` variants of each, ``M`` objectives, all minimised, the first of which is
the damage; ``k`` policies. A policy is (U,) int: one variant for each unit.

With multipliers ``w`` >= 0 the units fall apart: the least of ``w . totals`` is found unit by unit (Everett 1963), and
``sum_u min_v (damage + w . cost) - w . bounds`` is below the damage of every policy within the bounds. The greatest such floor
is that of the linear relaxation (Geoffrion 1974), whose duals are therefore the multipliers to search around.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import LinearConstraint, linprog, milp
from scipy.sparse import csr_array, vstack

from ..policies.errors import SearchError
from .families import NO_GAIN, weighted
from .table import Menu, Table

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
        # Sums of what single changes save may fall below what a layer holds; its share is then not known.
        share = f"{_shown(self.held)[0]} of it" if self.held <= self.least else "most of it"
        held = f"{share} is in {', '.join(self.units)}" if self.units else "none of it is in a layer"
        widen = "or widen these layers' menus" if self.units else "or drop it"
        return f"{self.objective}: expected at most {bound}, but {smallest} has {least}; {held}{alone}; raise the budget {widen}"


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
    for picks in np.unique(weighted(menu, steps).argmin(2), axis=0):
        fitting = _repaired(table, limits, picks)
        for candidate in [] if fitting is None else [fitting, _spent(table, limits, fitting)]:
            total = table.totals(menu.policy(candidate)[None])[0]
            # A move that fits to the last bit may not once all is summed up again.
            if total[0] < damage and (total <= limits).all():
                best, damage = menu.policy(candidate), float(total[0])
    values = weighted(menu, steps[1:2])[0]
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
