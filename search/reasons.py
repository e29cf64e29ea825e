"""Why evaluations failed, the most frequent reason first. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .ledger import Evaluation

SHOWN = 3
"""Reasons that a sentence names; further ones are counted."""


def reason_of(row: Evaluation) -> str:
    """The error of a failed evaluation, its class in front."""
    return f"{row.error_class}: {row.error}"


def told(reasons: Iterable[str]) -> str:
    """Name reasons with how often each came: ``3 with: A; 1 with: B``, the most frequent first; empty where there are none."""
    counts = Counter(reasons)
    named = [f"{count} with: {reason.removesuffix('.')}" for reason, count in counts.most_common(SHOWN)]
    rest = counts.total() - sum(count for _, count in counts.most_common(SHOWN))
    return "; ".join([*named, f"{rest} with others, which the report lists"] if rest else named)
