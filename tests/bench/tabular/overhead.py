"""What proposing a candidate costs, on the synthetic problem (50 layers x 80 variants), against a stated evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from paretopress.policies.policy import Policy
from paretopress.search.families import family, sweep
from paretopress.search.records import TrialRecord
from paretopress.search.solve import within
from paretopress.search.study import Outcome, Study
from paretopress.spaces.base import SuggestTrial

from .problem import OBJECTIVES
from .run import Comparison
from .sampled import BATCH
from .summary import summarise
from .synthetic import EVALUATION_SECONDS, make_synthetic

TARGET_SHARE = 0.05
REPEATS = 5
SWEEP, FAMILY, ANSWERED = 200, 300, 304


def overhead(comparison: Comparison) -> dict[str, Any]:
    """Processor seconds of the solver alone and of each method, and their share of an evaluation."""
    methods = {}
    for name, found in summarise(comparison)["methods"].items():
        seconds = found["thinking_s_per_candidate"]
        methods[name] = {
            "seconds_per_candidate": seconds,
            "at_end": found["thinking_s_per_candidate_at_end"],
            "share_of_evaluation": seconds / EVALUATION_SECONDS,
        }
    return {
        "evaluation_seconds": EVALUATION_SECONDS,
        "target_share": TARGET_SHARE,
        "solver": solver_seconds(),
        "study": {f"candidate_with_{ANSWERED}_answered": study_seconds(ANSWERED)},
        "methods": methods,
    }


def solver_seconds() -> dict[str, float]:
    """Least processor seconds of several calls; a table's menu is made once for each table and is counted apart."""
    table = make_synthetic(0).bank()
    start = time.process_time()
    typical = np.ptp(table.costs, axis=1).mean(0)
    sweep(table, 1 / typical[None])
    first = time.process_time() - start
    spread = np.exp(np.random.default_rng(0).uniform(-4, 4, (SWEEP, 3))) / typical
    dense = table.totals(np.zeros((1, len(table.units)), int))[0]
    bounds = np.array([np.inf, 0.1 * dense[1], 0.7 * dense[2]])
    return {
        "first_sweep_of_a_table": first,
        f"policy_of_a_sweep_of_{SWEEP}": _least(lambda: sweep(table, spread)) / SWEEP,
        f"policy_of_a_family_of_{FAMILY}": _least(lambda: family(table, FAMILY, 0)) / FAMILY,
        "policy_within_two_bounds": _least(lambda: within(table, bounds)),
    }


def study_seconds(answered: int) -> float:
    """Processor seconds that the product's own study takes for a candidate beside its sampler's, here a random one."""
    knobs = make_synthetic(0).knobs()
    study = Study(_Knobs(knobs), OBJECTIVES, "random", 0, answered)
    choices = dict.fromkeys(knobs, 0)
    for number in range(answered):
        study.tell(TrialRecord(number, "", "random", choices, {}), Outcome((1.0, 1.0, 1.0)))
    return _least(lambda: study.ask([], BATCH)) / BATCH


@dataclass(frozen=True)
class _Knobs:
    """A space of bare knobs, for policies that are looked up by their choices."""

    counts: Mapping[str, int]

    def menu(self) -> dict[str, Sequence[object]]:
        return {name: range(count) for name, count in self.counts.items()}

    def suggest(self, trial: SuggestTrial) -> Policy:
        for name, count in self.counts.items():
            trial.suggest_int(name, 0, count - 1)
        return Policy()


def _least(call: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)
