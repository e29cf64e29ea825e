from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from paretopress.evaluators.pool import Done, Fault, FaultKind, Job
from paretopress.policies.errors import WorkError
from paretopress.search.dispatch import RETRIES, Dispatcher
from paretopress.search.ledger import Evaluation, EvaluationKey, Ledger

Answers = Mapping[str, list[FaultKind | float]]
"""Policy -> what each attempt comes to: a fault, or the error that is measured."""


class FakePool:
    """Answers as told, the last answer over and over, in the order of submission."""

    def __init__(self, answers: Answers, capacity: int = 2) -> None:
        self.capacity = capacity
        self.jobs: list[Job] = []
        self.stray: deque[Done] = deque()
        self._answers = answers
        self._waiting: deque[Job] = deque()

    def submit(self, job: Job) -> None:
        assert len(self._waiting) < self.capacity, "more jobs are under way than the pool takes"
        self.jobs.append(job)
        self._waiting.append(job)

    def next_done(self, timeout_s: float | None) -> Done | None:
        if self.stray:
            return self.stray.popleft()
        return self.answer(self._waiting.popleft()) if self._waiting else None

    def answer(self, job: Job) -> Done:
        outcomes = self._answers.get(job.policy_json, [1.0])
        attempt = sum(other.policy_json == job.policy_json for other in self.jobs)
        outcome = outcomes[min(attempt, len(outcomes)) - 1]
        if isinstance(outcome, str):
            return Done(job.id, False, None, Fault(outcome, "SomeError", f"a {outcome} fault"), "host", 1.0)
        return result(job.id, outcome)

    def share(self, value: object) -> None:
        raise AssertionError("a dispatcher shares nothing by itself")

    def close(self) -> None:
        self._waiting.clear()

    def __enter__(self) -> FakePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def result(job_id: str, error: float, seconds: float = 1.0) -> Done:
    content = {"metrics": {"error_pct": error}, "seconds": {"build": 0.1}, "artefacts": {"model.onnx": b"file"}}
    return Done(job_id, True, content, None, "host", seconds)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path) as ledger:
        yield ledger


def register(ledger: Ledger, *policies: str) -> list[tuple[EvaluationKey, dict[str, Any]]]:
    keys = [EvaluationKey(policy, "screen", "data", 0, "1") for policy in policies]
    for key in keys:
        ledger.register(key, key.policy_hash, "sampler")
    return [(key, {"seed": 7}) for key in keys]


def keep(key: EvaluationKey, artefacts: Mapping[str, bytes]) -> dict[str, str]:
    return {name: f"digest of {content!r}" for name, content in artefacts.items()}


def dispatch(ledger: Ledger, pool: FakePool, *policies: str, min_timeout_s: float = 60.0) -> dict[str, Evaluation]:
    """The rows once all is done; no row is reported twice."""
    seen: list[EvaluationKey] = []
    dispatcher = Dispatcher(ledger, pool, min_timeout_s, keep, lambda row: seen.append(row.key))
    dispatcher.run(register(ledger, *policies))
    assert len(seen) == len(set(seen))
    return {row.key.policy_hash: row for row in ledger.rows()}


def test_every_evaluation_is_carried_out_once_and_recorded(ledger: Ledger) -> None:
    pool = FakePool({"b": [2.5]})
    rows = dispatch(ledger, pool, "a", "b", "c")
    assert [(row.state, row.attempt) for row in rows.values()] == [("done", 1)] * 3
    assert rows["b"].values == {"error_pct": 2.5} and rows["b"].host == "host"
    assert rows["a"].artefacts == {"model.onnx": "digest of b'file'"}
    assert rows["a"].seconds == {"build": 0.1, "total": 1.0}
    assert sorted(job.policy_json for job in pool.jobs) == ["a", "b", "c"]
    assert {job.payload["seed"] for job in pool.jobs} == {7} and len({job.id for job in pool.jobs}) == 3


@pytest.mark.parametrize(("kind", "tries"), [("infrastructure", 4), ("timeout", 2), ("memory", 2), ("candidate", 1)])
def test_a_fault_is_tried_again_as_often_as_it_is_worth(ledger: Ledger, kind: FaultKind, tries: int) -> None:
    assert RETRIES[kind] == tries - 1
    pool = FakePool({"faulty": [kind]})
    rows = dispatch(ledger, pool, "faulty", "sound")
    assert (rows["faulty"].state, rows["faulty"].attempt) == ("failed", tries)
    assert (rows["faulty"].error_class, rows["faulty"].error) == ("SomeError", f"a {kind} fault")
    assert rows["faulty"].values == {}
    assert (rows["sound"].state, rows["sound"].attempt) == ("done", 1)
    ids = [job.id for job in pool.jobs if job.policy_json == "faulty"]
    assert len(ids) == len(set(ids)) == tries, "every attempt has an id of its own"


def test_a_fault_that_passes_leaves_no_trace_but_its_attempts(ledger: Ledger) -> None:
    row = dispatch(ledger, FakePool({"a": ["infrastructure"] * 3 + [0.5]}), "a")["a"]
    assert (row.state, row.attempt, row.values, row.error) == ("done", 4, {"error_pct": 0.5}, None)


def test_faults_of_different_kinds_are_counted_apart(ledger: Ledger) -> None:
    row = dispatch(ledger, FakePool({"a": ["timeout", "memory", "infrastructure", 0.5]}), "a")["a"]
    assert (row.state, row.attempt) == ("done", 4)


def test_after_a_lack_of_memory_the_batches_are_halved(ledger: Ledger) -> None:
    pool = FakePool({"a": ["infrastructure", "memory", 0.5]})
    assert dispatch(ledger, pool, "a")["a"].state == "done"
    assert [job.payload for job in pool.jobs] == [{"seed": 7}, {"seed": 7}, {"seed": 7, "halvings": 1}]


def test_what_is_recorded_already_is_not_evaluated_again(ledger: Ledger) -> None:
    dispatch(ledger, FakePool({"bad": ["candidate"]}), "good", "bad")
    before = ledger.rows()
    pool = FakePool({})
    rows = dispatch(ledger, pool, "good", "bad", "new")
    assert [job.policy_json for job in pool.jobs] == ["new"]
    assert [rows["good"], rows["bad"]] == before


def test_artefacts_are_kept_before_the_row_is_complete(ledger: Ledger) -> None:
    states = []

    def keep_and_look(key: EvaluationKey, artefacts: Mapping[str, bytes]) -> dict[str, str]:
        states.append(ledger.get(key).state)
        return keep(key, artefacts)

    Dispatcher(ledger, FakePool({}), 60.0, keep_and_look).run(register(ledger, "a"))
    assert states == ["leased"] and ledger.rows()[0].state == "done"


def test_where_artefacts_cannot_be_kept_the_row_is_not_complete(ledger: Ledger, tmp_path: Path) -> None:
    def fill_disk(key: EvaluationKey, artefacts: Mapping[str, bytes]) -> dict[str, str]:
        raise WorkError("cannot write model.onnx: No space left on device")

    with pytest.raises(WorkError, match="No space left"):
        Dispatcher(ledger, FakePool({}), 60.0, fill_disk).run(register(ledger, "a"))
    assert ledger.rows()[0].state == "leased"
    ledger.close()
    with Ledger(tmp_path) as again:
        assert dispatch(again, FakePool({}), "a")["a"].attempt == 2


def test_late_and_repeated_answers_are_ignored(ledger: Ledger) -> None:
    class Chatty(FakePool):
        """The worker that was given up answers after all, wrongly, and everything is said twice."""

        def answer(self, job: Job) -> Done:
            done = super().answer(job)
            if self.jobs[-1].id.endswith(".2"):
                self.stray.append(result(self.jobs[0].id, 99.0))
            self.stray.append(done)
            return done

    pool = Chatty({"a": ["infrastructure", 0.5], "b": [0.7]})
    rows = dispatch(ledger, pool, "a", "b", "c")
    assert len(pool.jobs) == 4
    assert {name: (row.values["error_pct"], row.attempt) for name, row in rows.items()} == {
        "a": (0.5, 2),
        "b": (0.7, 1),
        "c": (1.0, 1),
    }


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_measurement_that_is_no_number_is_a_failure(ledger: Ledger, number: float) -> None:
    row = dispatch(ledger, FakePool({"a": [number]}), "a")["a"]
    assert (row.state, row.error_class) == ("failed", "CandidateError")
    assert row.error is not None and "expected a finite number for error_pct" in row.error


def test_timeouts_follow_the_durations_that_were_seen(ledger: Ledger) -> None:
    class Slow(FakePool):
        def answer(self, job: Job) -> Done:
            return result(job.id, 1.0, seconds=20.0)

    pool = Slow({}, capacity=1)
    dispatch(ledger, pool, *"abcdefg", min_timeout_s=60.0)
    assert [job.timeout_s for job in pool.jobs] == [1800.0] * 5 + [100.0] * 2, "5 times the 95th percentile"


def test_a_long_rung_is_given_time_by_what_the_one_below_it_took(ledger: Ledger) -> None:
    class Slow(FakePool):
        def answer(self, job: Job) -> Done:
            return result(job.id, 1.0, seconds=30.0)

    pool = Slow({}, capacity=1)
    dispatcher = Dispatcher(ledger, pool, 60.0, keep, as_long_as={"recover": ("tune", 120.0)})
    for policy, rung in (("a", "recover"), ("a", "tune"), ("b", "recover")):
        key = EvaluationKey(policy, rung, "data", 0, "1")
        ledger.register(key, policy, "finalist")
        dispatcher.run([(key, {})])
    unknown, short, expected = (job.timeout_s for job in pool.jobs)
    assert (unknown, short, expected) == (5 * 120 * 60.0, 1800.0, 5 * 120 * 30.0)


def test_timeouts_are_never_below_the_least(ledger: Ledger) -> None:
    pool = FakePool({}, capacity=1)
    dispatch(ledger, pool, *"abcdefg", min_timeout_s=60.0)
    assert pool.jobs[-1].timeout_s == 60.0


def test_a_pool_that_loses_jobs_is_told_of_instead_of_waited_for(ledger: Ledger) -> None:
    class Lossy(FakePool):
        def next_done(self, timeout_s: float | None) -> Done | None:
            return None

    with pytest.raises(WorkError, match="the pool has lost 2 evaluations; resume the run"):
        dispatch(ledger, Lossy({}), "a", "b", "c")
