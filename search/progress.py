"""What a run says while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Parameters
    ----------
    phase
        ``bank``, ``screen``, ``tune``, ``recover`` or ``test``.
    done, total
        Evaluations of this phase.
    failed
        Of those done.
    front_size
        Candidates that no other dominates.
    best
        Objective -> its best value among those that keep the budgets.
    seconds_left
        Estimate for this phase; ``None`` at its start.
    """

    phase: str
    done: int
    total: int
    failed: int = 0
    front_size: int = 0
    best: Mapping[str, float] = field(default_factory=dict)
    seconds_left: float | None = None


class Listener(Protocol):
    """Hears what goes on."""

    def say(self, line: str) -> None:
        """A line for the log."""
        ...

    def progress(self, progress: Progress) -> None:
        """A new state of the progress line."""
        ...


class Silence:
    """Hears everything and prints nothing."""

    def say(self, line: str) -> None:
        """Drop the line."""

    def progress(self, progress: Progress) -> None:
        """Drop the state."""
