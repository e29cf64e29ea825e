"""Lease, submit, wait, record: evaluations on a pool, each counted exactly once."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..evaluators.pool import Done, FaultKind, Job, Pool
from ..policies.errors import CandidateError, WorkError
from .ledger import Evaluation, EvaluationKey, Lease, Ledger

# How often an evaluation is tried again after a fault that says nothing, or little, about the candidate.
RETRIES: Mapping[FaultKind, int] = {"candidate": 0, "infrastructure": 3, "timeout": 1, "memory": 1}
ENOUGH_DURATIONS = 5
UNKNOWN_DURATION_FACTOR = 30.0

KeepArtefacts = Callable[[EvaluationKey, Mapping[str, bytes]], dict[str, str]]
"""Writes an evaluation's files and returns name -> SHA-256."""


@dataclass
class Dispatcher:
    """Carries evaluations to a pool and their results to the ledger.

    Parameters
    ----------
    ledger, pool
        Where results are recorded and made.
    min_timeout_s
        Least time before an evaluation is taken for hung.
    keep
        Writes artefacts before their evaluation is recorded.
    on_done
        Called with each row as it is recorded.
    as_long_as
        Rung -> a rung below it and how many times as long it takes: what to expect before any of its own are done.
    """

    ledger: Ledger
    pool: Pool
    min_timeout_s: float
    keep: KeepArtefacts
    on_done: Callable[[Evaluation], None] = lambda _: None
    as_long_as: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    _durations: dict[str, deque[float]] = field(default_factory=dict)
    _faults: dict[EvaluationKey, dict[FaultKind, int]] = field(default_factory=dict)

    def run(self, wanted: Iterable[tuple[EvaluationKey, Mapping[str, Any]]]) -> None:
        """Evaluate every registered row that is not done or failed yet; returns when all are.

        Raises
        ------
        WorkError
            Where the pool cannot work at all.
        """
        pending = deque(
            (key, payload) for key, payload in wanted if self.ledger.get(key).state in ("pending", "leased")
        )
        under_way: dict[str, tuple[Lease, Mapping[str, Any]]] = {}
        while pending or under_way:
            while pending and len(under_way) < self.pool.capacity:
                key, payload = pending.popleft()
                lease, job = self._start(key, payload)
                under_way[job.id] = (lease, payload)
            done = self.pool.next_done(None)
            if done is None:
                raise WorkError(f"the pool has lost {len(under_way)} evaluations; resume the run")
            if done.job_id not in under_way:
                continue
            lease, payload = under_way.pop(done.job_id)
            if self._record(lease, done):
                self.on_done(self.ledger.get(lease.key))
            else:
                pending.append((lease.key, _next_payload(payload, done)))

    def _start(self, key: EvaluationKey, payload: Mapping[str, Any]) -> tuple[Lease, Job]:
        timeout = self._timeout(key.fidelity)
        lease = self.ledger.lease(key, time.time() + 2 * timeout)
        policy = self.ledger.get(key).policy_json
        job = Job(f"{key.policy_hash[:12]}.{key.fidelity}.{lease.attempt}", policy, key.fidelity, timeout, payload)
        self.pool.submit(job)
        return lease, job

    def _record(self, lease: Lease, done: Done) -> bool:
        """Whether the evaluation is settled; otherwise it is to be tried again."""
        if done.result is not None:
            try:
                artefacts = self.keep(lease.key, done.result["artefacts"])
                seconds = {**done.result["seconds"], "total": done.seconds}
                accepted = self.ledger.complete(lease, done.result["metrics"], {}, artefacts, done.host, seconds)
                assert accepted, "this driver alone holds the lease"
            except CandidateError as error:
                self.ledger.fail(lease, type(error).__name__, str(error), done.host)
            else:
                self._durations.setdefault(lease.key.fidelity, deque(maxlen=50)).append(done.seconds)
            return True
        assert done.fault is not None
        counts = self._faults.setdefault(lease.key, {})
        counts[done.fault.kind] = counts.get(done.fault.kind, 0) + 1
        if counts[done.fault.kind] <= RETRIES[done.fault.kind]:
            self.ledger.release(lease)
            return False
        self.ledger.fail(lease, done.fault.error_class, done.fault.message, done.host)
        return True

    def _timeout(self, fidelity: str) -> float:
        known = self._durations.get(fidelity, ())
        if len(known) >= ENOUGH_DURATIONS:
            return max(self.min_timeout_s, 5 * float(np.percentile(list(known), 95)))
        below, times = self.as_long_as.get(fidelity, ("", 1.0))
        shorter = self._durations.get(below, ())
        expected_s = times * max(shorter) if shorter else times * self.min_timeout_s
        return max(self.min_timeout_s * UNKNOWN_DURATION_FACTOR, 5 * expected_s)


def _next_payload(payload: Mapping[str, Any], done: Done) -> Mapping[str, Any]:
    """What a further try is told: after a lack of memory, to halve its batches."""
    if done.fault is not None and done.fault.kind == "memory":
        return {**payload, "halvings": int(payload.get("halvings", 0)) + 1}
    return payload
