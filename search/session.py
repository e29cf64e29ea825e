"""What every stage of a run shares: its records, its budgets and how they bind, the dense network's figures."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..policies.errors import SearchError
from ..policies.policy import Policy
from ..policies.version import VERSION
from .budgets import Budget, Limit
from .certainty import PairedErrors, error_bound_pct, excess
from .config import Config
from .front import scaled_values
from .ledger import Evaluation, EvaluationKey, Ledger
from .pareto import front as front_of
from .prepare import Prepared, measure_baseline
from .progress import Listener, Progress
from .reasons import reason_of, told
from .rundir import RunDirectory
from .sections.search import OBJECTIVES
from .seeds import derive_seed
from .splits import drift_note

DENSE = Policy()
RUNG_SHOWN = {"bank": "kernels", "screen": "screen", "tune": "tune", "recover": "recover", "test": "recover"}
"""Phase -> the rung whose evaluations its progress line sums up."""
SCREENING_RUNGS = ("screen", "stitch", "profile", "kernels", "learn")
"""Rungs on which candidates fail before there are finalists."""


@dataclass
class Session:
    """One run while it goes on.

    Parameters
    ----------
    config, run, prepared
        What is searched, where it is recorded, on what.
    ledger
        Opened for writing.
    listener
        Hears the progress.
    """

    config: Config
    run: RunDirectory
    prepared: Prepared
    ledger: Ledger
    listener: Listener

    @cached_property
    def baseline(self) -> dict[str, float]:
        """The dense network's metrics, measured once."""
        key = self.key(DENSE, "test")
        row = self.ledger.register(key, DENSE.to_json(), "dense", {})
        if row.state == "done":
            return dict(row.values)
        lease = self.ledger.lease(key, time.time())
        values = measure_baseline(self.prepared, self.config)
        self.ledger.complete(lease, values, {}, {}, "driver", {})
        return values

    def tell_drift(self) -> None:
        """Say where the dense network errs on validation and test pictures differently by more than chance."""
        note = drift_note(self.baseline, self.prepared.splits.record)
        if note:
            self.listener.say(note)

    @cached_property
    def validation_limits(self) -> tuple[Limit, ...]:
        """The budgets as they bind on validation data."""
        dense = {**self.baseline, "error_pct": self.baseline["validation_error_pct"]}
        return tuple(budget.resolve(dense) for budget in self.config.limits())

    @cached_property
    def screen_limits(self) -> tuple[Limit, ...]:
        """The budgets that candidates are held to: where recovery follows, its stored files will be longer than theirs."""
        growth = self.config.search.screen_growth if self.config.recovery.epochs else 0.0
        return tuple(
            replace(limit, bound=limit.bound / (1 + growth)) if limit.metric == "stored_bytes" else limit
            for limit in self.validation_limits
        )

    @cached_property
    def test_limits(self) -> tuple[Limit, ...]:
        """The budgets as they bind on test data."""
        return tuple(budget.resolve(self.baseline) for budget in self.config.limits())

    @cached_property
    def error_budget(self) -> Budget | None:
        """The budget on the error, ``None`` where there is none."""
        return next((budget for budget in self.config.limits() if budget.name == "error"), None)

    def bound_excess(self, values: Mapping[str, float]) -> float:
        """How far the upper bound of an evaluation's error lies above its budget, as a share of it; 0 where there is none."""
        counts = PairedErrors.from_values(values)
        if self.error_budget is None or counts is None:
            return 0.0
        return excess(self.error_budget, counts, self.config.search.confidence)

    @cached_property
    def objectives(self) -> tuple[str, ...]:
        """Names of the metrics that are minimised."""
        return tuple(dict.fromkeys(OBJECTIVES[name] for name in self.config.search.objectives))

    def screen_violations(self, values: Mapping[str, float]) -> dict[str, float]:
        """Budgets other than the error's, and the error that recovery is trusted to win back."""
        recovering = self.config.recovery.epochs > 0
        limits = [limit for limit in self.screen_limits if not (recovering and limit.metric == "error_pct")]
        out = {limit.metric: limit.violation(values) for limit in limits}
        if recovering:
            allowed = self.baseline["validation_error_pct"] + self.config.search.screen_error
            out["screen_error"] = (values["error_pct"] - allowed) / 100
        return out

    def finalist_violations(self, values: Mapping[str, float]) -> dict[str, float]:
        """The same for the choice of finalists: the error is judged by its upper bound, where what it takes was counted."""
        out, counts = self.screen_violations(values), PairedErrors.from_values(values)
        if counts is None:
            return out
        if "screen_error" in out:
            allowed = counts.dense_error_pct + self.config.search.screen_error
            out["screen_error"] = (self._surest_error(counts) - allowed) / 100
        elif self.error_budget is not None:
            out["error_pct"] = self.bound_excess(values)
        return out

    def finalist_values(self, values: Mapping[str, float]) -> dict[str, float]:
        """The figures by which finalists are chosen: the error is its upper bound, where what it takes was counted."""
        counts = PairedErrors.from_values(values)
        return {**values, **({} if counts is None else {"error_pct": self._surest_error(counts)})}

    def _surest_error(self, counts: PairedErrors) -> float:
        """The upper bound of the error in per cent beside the dense network's on the same pictures."""
        return error_bound_pct(Budget("error", "plus", 0.0), counts, self.config.search.confidence)

    def rows(self, fidelity: str) -> list[Evaluation]:
        """Evaluations of a rung on this network and data, by this version."""
        context = self.prepared.context_hash
        rows = self.ledger.rows(fidelity)
        return [row for row in rows if row.key.data_hash == context and row.key.code_version == VERSION]

    def key(self, policy: Policy, fidelity: str) -> EvaluationKey:
        """What makes an evaluation of this policy the same as another."""
        return self.key_of(policy.digest, fidelity)

    def key_of(self, policy_hash: str, fidelity: str) -> EvaluationKey:
        """The same from the policy's digest."""
        seed = derive_seed(self.config.seed, policy_hash, fidelity)
        return EvaluationKey(policy_hash, fidelity, self.prepared.context_hash, seed, VERSION)

    def show(self, phase: str, done: int, of: int) -> None:
        """Tell the listener where a phase stands."""
        rows = [row for row in self.rows(RUNG_SHOWN[phase]) if row.state in ("done", "failed")]
        good = [row for row in rows if row.state == "done"]
        metrics = [] if phase == "bank" else [row.values for row in good]
        missed = np.array([total(self.screen_violations(values)) for values in metrics])
        size = len(front_of(scaled_values(metrics, self.objectives), missed)) if metrics else 0
        keeping = [values for values, miss in zip(metrics, missed) if miss <= 0]
        wanted = dict.fromkeys([*self.objectives, *(limit.metric for limit in self.validation_limits)])
        best = {name: min(values[name] for values in keeping) for name in wanted if keeping}
        spent = [row.seconds.get("total", 0.0) for row in good]
        left = (of - done) * float(np.mean(spent)) / self.prepared.workers if spent and phase != "test" else None
        self.listener.progress(Progress(phase, done, of, len(rows) - len(good), size, best, left))


def nothing_left(what: str, failed: Sequence[Evaluation]) -> SearchError:
    """The error where all failed, with the reasons, the most common first."""
    return _stopped(what, [reason_of(row) for row in failed])


def came_out_dense(session: Session) -> SearchError:
    """The error where no screened candidate differs from the dense network: because all others failed, or for want of choice."""
    what = "every candidate came out as the dense network"
    failed = [row for rung in SCREENING_RUNGS for row in session.rows(rung) if row.state == "failed"]
    reasons = [reason_of(row) for row in failed]
    # What was refused before it was tried has no row.
    left_dense = json.loads(session.ledger.meta("left_dense") or "{}").values()
    reasons += [reason for reason in left_dense if reason not in reasons]
    if not reasons:
        return SearchError(f"{what}; expected menus that change a layer, widen space")
    return _stopped(f"{what} but for those that failed", reasons)


def _stopped(what: str, reasons: Sequence[str]) -> SearchError:
    return SearchError(f"{what}, {told(reasons)}. Mend that and start a new run; a failed evaluation stays failed")


def total(missed: Mapping[str, float]) -> float:
    """Sum of what is above a bound."""
    return sum(max(0.0, value) for value in missed.values())
