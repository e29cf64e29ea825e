"""The bank as a table of costs: what a choice of variants adds up to. Pure.

Symbols: ``U`` units (layers or coupled groups), ``V`` variants of each, ``M`` objectives, all minimised, the first of which is
the damage; ``k`` policies. A policy is (U,) int: one variant for each unit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..policies.errors import SearchError


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
