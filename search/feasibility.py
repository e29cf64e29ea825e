"""Whether any policy of the bank keeps the budgets, before a single one is built."""

from __future__ import annotations

import numpy as np

from .samplers.bank_guided import Guide
from .session import Session
from .solve import Infeasible, within


def unreachable(session: Session, guide: Guide) -> str | None:
    """Which budget the bank cannot keep and which layers hold the most of it, as a sentence; ``None`` where all can be kept.

    The error is left out: what recovery will win back is not known yet.
    """
    limits = {limit.metric: limit.bound for limit in session.validation_limits}
    bounds = np.array([limits.get(name, np.inf) for name in guide.table.objectives])
    try:
        within(guide.table, bounds)
    except Infeasible as error:
        return f"by the bank, no policy keeps the budgets: {error}. Going on for the nearest ones"
    return None
