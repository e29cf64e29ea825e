"""What a method tried, in order, with the time it spent thinking."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from .problem import Choices, Metrics, Problem


@dataclass(frozen=True)
class Visit:
    """One evaluation.

    Parameters
    ----------
    choices
        Of the policy.
    metrics
        As the problem gives them.
    thinking_s
        Processor time since the evaluation before, the look-up itself left out.
    """

    choices: Choices
    metrics: Metrics
    thinking_s: float


@dataclass
class Recorder:
    """Measures policies for a method and keeps the account; processor time, since the machine has other users."""

    problem: Problem
    evaluations: int
    clock: Callable[[], float] = time.process_time
    visits: list[Visit] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._since = self.clock()

    @property
    def left(self) -> int:
        """Evaluations that may still be spent."""
        return self.evaluations - len(self.visits)

    def measure(self, choices: Choices) -> Metrics:
        """Spend an evaluation."""
        assert self.left > 0, "no evaluation is left"
        thought = self.clock() - self._since
        metrics = self.problem.measure(choices)
        self.visits.append(Visit(dict(choices), metrics, thought))
        self._since = self.clock()
        return metrics

    def measure_new(self, policies: Iterable[Choices]) -> list[Visit]:
        """Spend evaluations on the policies not tried before, while there are any left; all visits so far."""
        tried = {_key(visit.choices) for visit in self.visits}
        for choices in policies:
            if not self.left:
                break
            if _key(choices) not in tried:
                tried.add(_key(choices))
                self.measure(choices)
        return self.visits


def _key(choices: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(choices.items()))
