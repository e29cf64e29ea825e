"""The main job: screen many policies, recover the best, measure the files that ship, write the front.

ask -> lease -> evaluate -> record -> tell, over the ledger. Whatever stops a run, starting it again on the same directory
goes on from what was recorded.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from .. import __version__
from ..evaluators.accuracy import error_interval
from ..evaluators.candidate import CandidateFactory, bounds, file_error
from ..evaluators.latency import LatencyProbe
from ..evaluators.pool import InProcessPool, Pool
from ..evaluators.ray_pool import RayPool
from ..policies.errors import ParetopressError, PolicyError, SearchError
from ..policies.files import write_bytes, write_text
from ..policies.plan import make_plan
from ..policies.policy import Policy
from .budgets import Limit
from .config import OBJECTIVES, Config
from .dispatch import Dispatcher
from .front import FrontData, Member, scaled_values, violations
from .intervals import with_intervals
from .ledger import Evaluation, EvaluationKey, Ledger
from .pareto import front as front_of
from .pareto import select
from .prepare import Prepared, measure_baseline
from .progress import Listener, Progress
from .records import TrialRecord
from .rundir import RunDirectory, sha256
from .seeds import derive_seed
from .study import Asked, Outcome, Study

UNIFORM_SHARE = 0.5
HOPELESS_AFTER = 16
DENSE = Policy()


@dataclass
class Search:
    """One run, from its first question to its front.

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
    _started: float = field(default_factory=time.monotonic)

    def __call__(self) -> FrontData:
        """Go on to the end.

        Raises
        ------
        SearchError
            Where every candidate failed.
        """
        self.listener.say("measuring the dense network")
        baseline = self._baseline
        size, latency = baseline["stored_bytes"] / 1000, baseline["latency_ms"]
        self.listener.say(f"dense: {baseline['error_pct']:.2f} % error, {size:.1f} kB stored, {latency:.3f} ms")
        with self._pool() as pool:
            dispatcher = Dispatcher(self.ledger, pool, self.config.pool.min_timeout_s, self._keep)
            self._screen(dispatcher)
            finalists = self._finalists()
            self._recover(dispatcher, finalists)
        # The pool is closed: nothing else runs while latency is measured.
        self._test(finalists)
        found = self._front(finalists)
        for member in found:
            write_text(self.run.policy(member.id), member.policy.to_yaml())
        found.write(self.run.front)
        return found

    @cached_property
    def _baseline(self) -> dict[str, float]:
        key = self._key(DENSE, "test")
        row = self.ledger.register(key, DENSE.to_json(), "dense", {})
        if row.state == "done":
            return dict(row.values)
        lease = self.ledger.lease(key, time.time())
        values = measure_baseline(self.prepared, self.config)
        self.ledger.complete(lease, values, {}, {}, "driver", {})
        return values

    @cached_property
    def _validation_limits(self) -> tuple[Limit, ...]:
        """The budgets as they bind on validation data."""
        dense = {**self._baseline, "error_pct": self._baseline["validation_error_pct"]}
        return tuple(budget.resolve(dense) for budget in self.config.limits())

    @cached_property
    def _test_limits(self) -> tuple[Limit, ...]:
        return tuple(budget.resolve(self._baseline) for budget in self.config.limits())

    @cached_property
    def _objectives(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(OBJECTIVES[name] for name in self.config.search.objectives))

    # Screening

    def _screen(self, dispatcher: Dispatcher) -> None:
        settings = self.config.search
        study = Study(self.prepared.space, self._objectives, settings.sampler, self.config.seed, settings.evaluations)
        uniform = self._uniform()
        records = self.ledger.trials()
        told = 0
        while told < max(settings.evaluations, len(records)):
            if told == len(records):
                count = min(settings.batch, settings.evaluations - told)
                asked = study.ask(uniform[told : told + count], count)
                records = [*records, *self._note(asked)]
            batch = records[told:]
            self._evaluate(dispatcher, batch, told)
            for record in batch:
                study.tell(record, self._outcome(record))
            told = len(records)
            study.write_journal(self.run.journal)
            self._give_up_where_hopeless(records)

    def _uniform(self) -> list[dict[str, int]]:
        everything = [{k: int(v) for k, v in choices.items()} for choices in self.prepared.space.uniform()]
        room = max(1, round(UNIFORM_SHARE * self.config.search.evaluations))
        if len(everything) <= room:
            return everything
        return [everything[i] for i in np.unique(np.linspace(0, len(everything) - 1, room).round().astype(int))]

    def _note(self, asked: Sequence[Asked]) -> list[TrialRecord]:
        """Register what was asked: the evaluations first, then their trials, so that a trial always has its row."""
        records = []
        for question in asked:
            policy, complaint = self._normalised(question.policy)
            key = self._key(policy, "screen")
            row = self.ledger.register(key, policy.to_json(), question.origin, {"number": question.number})
            if complaint is not None and row.state == "pending":
                self.ledger.fail(self.ledger.lease(key, time.time()), "PolicyError", complaint)
            records.append(
                TrialRecord(question.number, policy.digest, question.origin, question.choices, question.attributes)
            )
        self.ledger.add_trials(records)
        return records

    def _normalised(self, policy: Policy) -> tuple[Policy, str | None]:
        try:
            return make_plan(policy, self.prepared.bench.graph).policy, None
        except PolicyError as error:
            return policy, str(error)

    def _evaluate(self, dispatcher: Dispatcher, batch: Sequence[TrialRecord], before: int) -> None:
        keys = {record.policy_hash: self._key_of(record.policy_hash, "screen") for record in batch}
        open_rows = sum(self.ledger.get(key).state in ("pending", "leased") for key in keys.values())
        start, counter = before + len(batch) - open_rows, iter(range(1, open_rows + 1))
        dispatcher.on_done = lambda _: self._show("screen", start + next(counter), self.config.search.evaluations)
        dispatcher.run((key, {}) for key in keys.values())

    def _outcome(self, record: TrialRecord) -> Outcome:
        row = self.ledger.get(self._key_of(record.policy_hash, "screen"))
        if row.state != "done":
            return Outcome(None, {}, f"{row.error_class}: {row.error}")
        return Outcome(tuple(row.values[name] for name in self._objectives), self._screen_violations(row.values))

    def _screen_violations(self, values: Mapping[str, float]) -> dict[str, float]:
        """Budgets that recovery will not change, and the error that it is trusted to win back."""
        recovering = self.config.recovery.epochs > 0
        limits = [limit for limit in self._validation_limits if not (recovering and limit.metric == "error_pct")]
        out = {limit.metric: limit.violation(values) for limit in limits}
        if recovering:
            allowed = self._baseline["validation_error_pct"] + self.config.search.screen_error
            out["screen_error"] = (values["error_pct"] - allowed) / 100
        return out

    def _give_up_where_hopeless(self, records: Sequence[TrialRecord]) -> None:
        # The dense network says nothing about whether compression works.
        hashes = dict.fromkeys(record.policy_hash for record in records if record.policy_hash != DENSE.digest)
        rows = [self.ledger.get(self._key_of(policy_hash, "screen")) for policy_hash in hashes]
        asked_all = len(records) >= self.config.search.evaluations
        if any(row.state == "done" for row in rows) or not (rows and (asked_all or len(rows) >= HOPELESS_AFTER)):
            return
        raise _nothing_left(f"all {len(rows)} candidates failed", rows)

    # Finalists

    def _finalists(self) -> list[Policy]:
        rows = [row for row in self._rows("screen") if row.state == "done" and row.key.policy_hash != DENSE.digest]
        if not rows:
            raise SearchError(
                "every candidate came out as the dense network; expected menus that change a layer, widen space"
            )
        values = scaled_values([row.values for row in rows], self._objectives)
        missed = np.array([_total(self._screen_violations(row.values)) for row in rows])
        chosen = select(values, missed, self.config.search.finalists)
        return [Policy.from_text(rows[i].policy_json) for i in chosen]

    def _recover(self, dispatcher: Dispatcher, finalists: Sequence[Policy]) -> None:
        wanted = []
        for policy in finalists:
            key = self._key(policy, "recover")
            row = self.ledger.register(key, policy.to_json(), "finalist", {})
            if row.state == "done" and not self._intact(row):
                self.ledger.reopen(key, "its files are missing or damaged")
            wanted.append((key, {"seed": key.seed}))
        done = iter(range(1, len(wanted) + 1))
        dispatcher.on_done = lambda _: self._show("recover", next(done), len(wanted))
        self.listener.say(f"recovering and exporting {len(wanted)} finalists")
        dispatcher.run(wanted)

    def _intact(self, row: Evaluation) -> bool:
        for name, digest in row.artefacts.items():
            path = self.run.artefact(row.key.policy_hash[:12], name)
            if not path.is_file() or sha256(path.read_bytes()) != digest:
                return False
        return True

    def _test(self, finalists: Sequence[Policy]) -> None:
        probe: LatencyProbe | None = None
        for number, policy in enumerate(finalists, 1):
            recovered = self.ledger.get(self._key(policy, "recover"))
            key = self._key(policy, "test")
            if recovered.state != "done":
                continue
            row = self.ledger.register(key, policy.to_json(), "finalist", {})
            if row.state == "done" and row.artefacts != recovered.artefacts:
                self.ledger.reopen(key, "its file was made again and is not the one that was tested")
            elif row.state != "pending":
                continue
            if probe is None:
                probe = LatencyProbe(
                    self.prepared.bench.reference, self.prepared.example.numpy(), self.config.latency.threads
                )
            lease = self.ledger.lease(key, time.time())
            start = time.perf_counter()
            try:
                values = self._measure_file(policy, probe)
                self.ledger.complete(
                    lease, values, {}, recovered.artefacts, "driver", {"total": time.perf_counter() - start}
                )
            except ParetopressError as error:
                self.ledger.fail(lease, type(error).__name__, str(error))
            self._show("test", number, len(finalists))

    def _measure_file(self, policy: Policy, probe: LatencyProbe) -> dict[str, float]:
        data = self.prepared.data
        assert data.test is not None
        onnx = self.run.artefact(policy.id, "model.onnx").read_bytes()
        error = file_error(onnx, data, data.test, self.prepared.threads * self.prepared.workers)
        latency = probe.measure(onnx, pairs=self.config.latency.pairs, seed=self.config.seed)
        return {
            "error_pct": error,
            **bounds("error_ci95", error_interval(error, len(data.test))),
            "latency_ratio": latency.ratio,
            **bounds("latency_ratio_ci95", latency.interval),
            "latency_ms": latency.latency_ms,
            "latency_wide": float(latency.wide),
        }

    # The front

    def _front(self, finalists: Sequence[Policy]) -> FrontData:
        measured = [(policy, found) for policy in finalists if (found := self._measured(policy)) is not None]
        if not measured:
            failed = [row for rung in ("recover", "test") for row in self._rows(rung) if row.state == "failed"]
            raise _nothing_left(f"all {len(finalists)} finalists failed", failed)
        # Membership is decided on validation data; the test split only says how good the members are.
        validation = [metrics | {"error_pct": metrics["validation_error_pct"]} for _, metrics in measured]
        values = scaled_values(validation, self._objectives)
        missed = np.array([_total(violations(metrics, self._validation_limits)) for metrics in validation])
        members = []
        for index in front_of(values, missed):
            policy, metrics = measured[index]
            misses = violations(metrics, self._test_limits)
            members.append(Member(policy.id, policy, not misses, metrics, misses))
        budgets = {limit.metric: limit.bound for limit in self._test_limits}
        return FrontData(with_intervals(self._baseline), budgets, self._objectives, tuple(members))

    def _measured(self, policy: Policy) -> dict[str, Any] | None:
        recovered = self.ledger.get(self._key(policy, "recover"))
        if recovered.state != "done":
            return None
        tested = self.ledger.get(self._key(policy, "test"))
        if tested.state != "done":
            return None
        validation = {"validation_error_pct": recovered.values["error_pct"]}
        return with_intervals({**recovered.values, **validation, **tested.values})

    # Bookkeeping

    def _rows(self, fidelity: str) -> list[Evaluation]:
        context = self.prepared.context_hash
        rows = self.ledger.rows(fidelity)
        return [row for row in rows if row.key.data_hash == context and row.key.code_version == __version__]

    def _key(self, policy: Policy, fidelity: str) -> EvaluationKey:
        return self._key_of(policy.digest, fidelity)

    def _key_of(self, policy_hash: str, fidelity: str) -> EvaluationKey:
        seed = derive_seed(self.config.seed, policy_hash, fidelity)
        return EvaluationKey(policy_hash, fidelity, self.prepared.context_hash, seed, __version__)

    def _keep(self, key: EvaluationKey, artefacts: Mapping[str, bytes]) -> dict[str, str]:
        for name, content in artefacts.items():
            write_bytes(self.run.artefact(key.policy_hash[:12], name), content)
        return {name: sha256(content) for name, content in artefacts.items()}

    def _pool(self) -> Pool:
        settings = self.config.pool
        factory = CandidateFactory(self.prepared.bench)
        if settings.kind == "in-process":
            return InProcessPool(factory)
        return RayPool(factory, self.prepared.workers, self.prepared.threads, settings.address)

    def _show(self, phase: str, done: int, total: int) -> None:
        rows = [
            row for row in self._rows("screen" if phase == "screen" else "recover") if row.state in ("done", "failed")
        ]
        good = [row for row in rows if row.state == "done"]
        metrics = [row.values for row in good]
        missed = np.array([_total(self._screen_violations(values)) for values in metrics])
        size = len(front_of(scaled_values(metrics, self._objectives), missed)) if good else 0
        keeping = [values for values, miss in zip(metrics, missed) if miss <= 0]
        best = {name: min(values[name] for values in keeping) for name in self._objectives if keeping}
        spent = [row.seconds.get("total", 0.0) for row in good]
        left = (total - done) * float(np.mean(spent)) / self.prepared.workers if spent and phase != "test" else None
        self.listener.progress(Progress(phase, done, total, len(rows) - len(good), size, best, left))


def _nothing_left(what: str, failed: Sequence[Evaluation]) -> SearchError:
    (reason, count), *_ = Counter(f"{row.error_class}: {row.error}" for row in failed).most_common(1)
    return SearchError(
        f"{what}, {count} with: {reason}. Mend that and start a new run; a failed evaluation stays failed"
    )


def _total(missed: Mapping[str, float]) -> float:
    return sum(max(0.0, value) for value in missed.values())
