"""The last stages: recover the finalists, measure their files, and say which of them make the front."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluators.accuracy import bounds, error_interval, file_error
from ..evaluators.holdout import whole_test
from ..evaluators.latency import LatencyProbe
from ..policies.errors import ParetopressError
from ..policies.policy import Policy
from .certainty import PairedErrors
from .dispatch import Dispatcher
from .front import FrontData, Member, scaled_values, violations
from .intervals import with_intervals
from .ledger import Evaluation
from .pareto import certain_front
from .promotion import promote
from .session import DENSE, Session, came_out_dense, nothing_left, total

TRIED_FOR_ONE = 4


@dataclass(frozen=True)
class Finals:
    """What follows the screening."""

    session: Session

    def choose(self, dispatcher: Dispatcher) -> list[Policy]:
        """The finalists: the best screened candidates, trained for a moment, and of these the best.

        Training changes the order: what a network lost may come back at once, or not at all.
        """
        settings, recovery = self.session.config.search, self.session.config.recovery
        if not recovery.epochs or not recovery.tryout:
            return self._best(self._screened(), settings.finalists)
        tried = self._best(self._screened(), TRIED_FOR_ONE * settings.finalists)
        if len(tried) <= settings.finalists:
            return tried
        self._try_out(dispatcher, tried)
        rows = [self.session.ledger.get(self.session.key(policy, "tune")) for policy in tried]
        done = [row for row in rows if row.state == "done"]
        return self._best(done, settings.finalists) if done else tried[: settings.finalists]

    def _try_out(self, dispatcher: Dispatcher, policies: Sequence[Policy]) -> None:
        wanted = []
        for policy in policies:
            key = self.session.key(policy, "tune")
            self.session.ledger.register(key, policy.to_json(), "finalist", {})
            wanted.append((key, {"seed": key.seed}))
        done = iter(range(1, len(wanted) + 1))
        dispatcher.on_done = lambda _: self.session.show("tune", next(done), len(wanted))
        self.session.listener.say(f"training {len(wanted)} candidates for a moment")
        dispatcher.run(wanted)

    def _screened(self) -> list[Evaluation]:
        rows = [
            row for row in self.session.rows("screen") if row.state == "done" and row.key.policy_hash != DENSE.digest
        ]
        if not rows:
            raise came_out_dense(self.session)
        return rows

    def _best(self, rows: Sequence[Evaluation], count: int) -> list[Policy]:
        """By constrained rank, and crowding inside bins of latency."""
        values = scaled_values([self.session.finalist_values(row.values) for row in rows], self.session.objectives)
        missed = np.array([total(self.session.finalist_violations(row.values)) for row in rows])
        latency = next((i for i, name in enumerate(self.session.objectives) if name.startswith("latency")), None)
        chosen = promote(values, missed, count, latency)
        return [Policy.from_text(rows[i].policy_json) for i in chosen]

    def recover(self, dispatcher: Dispatcher, finalists: Sequence[Policy]) -> None:
        """Fine-tune and export each of them, on the pool."""
        wanted = []
        for policy in finalists:
            key = self.session.key(policy, "recover")
            row = self.session.ledger.register(key, policy.to_json(), "finalist", {})
            if row.state == "done" and not self.session.run.holds(policy.id, row.artefacts):
                self.session.ledger.reopen(key, "its files are missing or damaged")
            elif row.state == "done" and PairedErrors.from_values(row.values) is None:
                self.session.ledger.reopen(key, "its mistakes were not counted beside the dense network's")
            wanted.append((key, {"seed": key.seed}))
        done = iter(range(1, len(wanted) + 1))

        def told(row: Evaluation) -> None:
            if row.values.get("recovery_failed"):
                name = row.key.policy_hash[:12]
                self.session.listener.say(f"the recovery of {name} diverged, it stays as it was: lower recovery.lr")
            self.session.show("recover", next(done), len(wanted))

        dispatcher.on_done = told
        self.session.listener.say(f"recovering and exporting {len(wanted)} finalists")
        dispatcher.run(wanted)

    def test(self, finalists: Sequence[Policy]) -> None:
        """Measure each exported file on the test split and time it; nothing else may run beside it."""
        probe: LatencyProbe | None = None
        for number, policy in enumerate(finalists, 1):
            recovered = self.session.ledger.get(self.session.key(policy, "recover"))
            key = self.session.key(policy, "test")
            if recovered.state != "done":
                continue
            row = self.session.ledger.register(key, policy.to_json(), "finalist", {})
            if row.state == "done" and row.artefacts != recovered.artefacts:
                self.session.ledger.reopen(key, "its file was made again and is not the one that was tested")
            elif row.state != "pending":
                continue
            if probe is None:
                probe = self._probe()
            lease = self.session.ledger.lease(key, time.time())
            start = time.perf_counter()
            try:
                values = self._measure_file(policy, probe)
                self.session.ledger.complete(
                    lease, values, {}, recovered.artefacts, "driver", {"total": time.perf_counter() - start}
                )
            except ParetopressError as error:
                self.session.ledger.fail(lease, type(error).__name__, str(error))
            self.session.show("test", number, len(finalists))

    def _probe(self) -> LatencyProbe:
        prepared = self.session.prepared
        threads, known_ms = self.session.config.latency.threads, self.session.baseline["latency_ms"]
        return LatencyProbe(prepared.bench.reference, prepared.example.numpy(), threads, known_ms)

    def _measure_file(self, policy: Policy, probe: LatencyProbe) -> dict[str, float]:
        data = self.session.prepared.data
        assert data.test is not None
        onnx = self.session.run.artefact(policy.id, "model.onnx").read_bytes()
        error = file_error(onnx, data, data.test, self.session.prepared.threads * self.session.prepared.workers)
        latency = probe.measure(onnx, pairs=self.session.config.latency.pairs, seed=self.session.config.seed)
        return {
            "error_pct": error,
            **bounds("error_ci95", error_interval(error, len(data.test))),
            "latency_ratio": latency.ratio,
            **bounds("latency_ratio_ci95", latency.interval),
            "latency_ms": latency.latency_ms,
            "latency_wide": float(latency.wide),
        }

    def front(self, finalists: Sequence[Policy]) -> FrontData:
        """The finalists that no other dominates which is at least as certain to keep the budgets."""
        measured = [(policy, found) for policy in finalists if (found := self._measured(policy)) is not None]
        if not measured:
            failed = [row for rung in ("recover", "test") for row in self.session.rows(rung) if row.state == "failed"]
            raise nothing_left(f"all {len(finalists)} finalists failed", failed)
        # Membership is decided on validation data; the test split only says how good the members are.
        validation = [metrics | {"error_pct": metrics["validation_error_pct"]} for _, metrics in measured]
        values = scaled_values(validation, self.session.objectives)
        missed = np.array([total(violations(metrics, self.session.validation_limits)) for metrics in validation])
        excesses = np.array([self.session.bound_excess(metrics) for metrics in validation])
        members = []
        for index in certain_front(values, missed, excesses):
            policy, metrics = measured[index]
            members.append(self._member(policy, metrics, validation[index], float(excesses[index])))
        budgets = {limit.metric: limit.bound for limit in self.session.test_limits}
        return FrontData(with_intervals(self.session.baseline), budgets, self.session.objectives, tuple(members))

    def _member(
        self, policy: Policy, metrics: Mapping[str, Any], validation: Mapping[str, Any], bound_excess: float
    ) -> Member:
        misses = violations(metrics, self.session.test_limits)
        early = violations(validation, self.session.validation_limits)
        return Member(
            policy.id, policy, not misses, metrics, misses, validation_misses=early, bound_excess=bound_excess
        )

    def _measured(self, policy: Policy) -> dict[str, Any] | None:
        recovered = self.session.ledger.get(self.session.key(policy, "recover"))
        if recovered.state != "done":
            return None
        tested = self.session.ledger.get(self.session.key(policy, "test"))
        if tested.state != "done":
            return None
        validation = {"validation_error_pct": recovered.values["error_pct"]}
        whole = whole_test(self.session.prepared.data, recovered.values["error_pct"], tested.values["error_pct"])
        return with_intervals({**recovered.values, **validation, **tested.values, **whole})
