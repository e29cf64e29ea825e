"""Whether any policy of the bank keeps the budgets, before a single one is built."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..policies.errors import SearchError
from .banking import STORED, Built
from .samplers.bank_guided import Guide
from .session import DENSE, Session
from .solve import MOST, MOST_NAMED, Infeasible, within
from .table import Table

UNSEEN = ("error_pct", "params")
"""What recovery will win back is not known yet, and kernels are the same for zeros as for other weights."""


def unreachable(session: Session, guide: Guide, built: Built) -> str | None:
    """Which budget the bank cannot keep and which layers bound it, as a sentence; ``None`` where none is known."""
    limits = {limit.metric: limit.bound for limit in session.validation_limits if limit.metric not in UNSEEN}
    bounds = np.array([limits.get(name, np.inf) for name in guide.table.objectives])
    table = _with_bytes(guide.table, built)
    try:
        within(table, bounds)
    except Infeasible as error:
        why = str(error) if error.objective == STORED else _without_shares(error, table)
        return f"by the bank, no policy keeps the budgets: {why}. Going on for the nearest ones"
    except SearchError:
        # Neither a policy nor a proof that there is none was found in time.
        return None
    return None


def _with_bytes(table: Table, built: Built) -> Table:
    """The same sums, but a unit's bytes are those that it holds and not those that it adds to the middle of the menus."""
    if STORED not in table.objectives:
        return table
    column, held = table.objectives.index(STORED), np.zeros(len(table.units))
    middle = built.central[STORED]
    for u, unit in enumerate(table.units):
        changed = [f.profile for f in built.usable if f.entry.unit == unit and f.entry.policy != DENSE]
        held[u] = np.median([p["layer_bytes"] - (p["estimated_stored_bytes"] - middle) for p in changed])
    costs, offsets = table.costs.copy(), table.offsets.copy()
    costs[..., column] += held[:, None]
    offsets[column] -= held.sum()
    return replace(table, costs=costs, offsets=offsets)


def _without_shares(error: Infeasible, table: Table) -> str:
    """For what is measured of the whole network only: not what each layer holds, but whose choice moves it most."""
    costs = table.costs[..., table.objectives.index(error.objective)]
    spread = np.where(table.valid, costs, -np.inf).max(1) - np.where(table.valid, costs, np.inf).min(1)
    order = np.argsort(-spread, kind="stable")
    enough = int(np.searchsorted(np.cumsum(spread[order]), MOST * spread.sum())) + 1
    names = ", ".join(table.units[u] for u in order[: min(enough, MOST_NAMED)])
    given = " and ".join(f"{name} at most {bound:,.4g}" for name, bound in error.given)
    within_given = f" with {given}" if given else ""
    return (
        f"{error.objective}: expected at most {error.bound:,.4g}, but the smallest policy{within_given} has"
        f" {error.least:,.4g}; the choices for {names} move it most; raise the budget or widen these layers' menus"
    )
