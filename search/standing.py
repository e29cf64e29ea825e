"""Where a member stands with its budgets: what was promised of it on validation pictures, and what the test split said. Pure.

Terminal, report, ``export`` and the bundle's card all take their words from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

ERROR = "error_pct"
KEPT = "kept"
NOT_CERTAIN = "not certain"


@dataclass(frozen=True)
class Standing:
    """A member's budgets, before and after the test split was read.

    Parameters
    ----------
    misses
        Metric -> how far above its bound, as a share of it; the error's on the test split.
    validation_misses
        The same with the error on the validation pictures, by which members are chosen.
    bound_excess
        How far the upper bound of the error on validation pictures lies above the error's budget, as a share of it; at most 0
        where the budget is kept for certain, or there is none.
    """

    misses: Mapping[str, float] = field(default_factory=dict)
    validation_misses: Mapping[str, float] = field(default_factory=dict)
    bound_excess: float = 0.0

    @property
    def is_certain(self) -> bool:
        """Return whether every budget was promised before the test split was read."""
        return not self.validation_misses and self.bound_excess <= 0

    @property
    def label(self) -> str:
        """Return the standing in a few words, for a badge."""
        if self.validation_misses:
            return "misses a budget"
        parts = [] if self.is_certain else [NOT_CERTAIN]
        if self.misses:
            parts.append("misses a budget on the test split")
        return ", ".join(parts) or KEPT

    @property
    def text(self) -> str:
        """Return the standing as a clause that names budgets and splits."""
        return self.describe(str)

    def describe(self, title: Callable[[str], str]) -> str:
        """Return the same with other words for the metrics."""
        parts = [
            f"misses {title(metric)} by {_per_cent(share)}" for metric, share in self.misses.items() if metric != ERROR
        ]
        error = self._describe_error(title(ERROR))
        if error:
            parts.append(error)
        return "; ".join(parts) or KEPT

    def _describe_error(self, name: str) -> str:
        on_test = self.misses.get(ERROR, 0.0)
        on_validation = self.validation_misses.get(ERROR, 0.0)
        if on_validation > 0:
            after = (
                f"misses it by {_per_cent(on_test)} on the test split" if on_test > 0 else "keeps it on the test split"
            )
            return f"missed {name} by {_per_cent(on_validation)} on validation pictures already, {after}"
        parts = []
        if self.bound_excess > 0:
            parts.append(f"{NOT_CERTAIN}, the upper bound of {name} is {_per_cent(self.bound_excess)} above its budget")
        if on_test > 0:
            parts.append(f"kept {name} on validation pictures, misses it by {_per_cent(on_test)} on the test split")
        return "; ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Return what ``front.json`` and a bundle's card hold: the facts, and the words for them."""
        return {
            "misses": dict(self.misses),
            "validation_misses": dict(self.validation_misses),
            "bound_excess": self.bound_excess,
            "certain": self.is_certain,
            "standing": self.text,
        }


def _per_cent(share: float) -> str:
    if math.isinf(share):
        return "an amount that was not measured"
    # Of a share that rounds to 0 it is still to be said that it is not.
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.2g} %"
