"""What every pool must do. A pool's tests subclass ``PoolContract`` and give the two fixtures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paretopress.evaluators.pool import Done, EvaluatorFactory, Job, Pool
from paretopress.policies.errors import CandidateError, DataError, WorkError

OpenPool = Callable[[EvaluatorFactory], Pool]


def build_actor() -> Callable[[Job], dict[str, Any]]:
    """An evaluator that does what the job's payload says."""
    import torch

    torch.set_num_threads(1)
    return _act


def build_nothing() -> Callable[[Job], dict[str, Any]]:
    """A factory that fails as one does whose data set is missing."""
    raise DataError("expected pictures, found none")


def build_when_told(folder: Path) -> Callable[[Job], dict[str, Any]]:
    """A factory that says in a folder which process it is called in, and comes to its end once ``go`` lies there."""
    (folder / f"{os.getpid()}.pid").write_text("")
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (folder / "go").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return _act


class _Listener:
    """Answers with the last value that was shared."""

    def __init__(self) -> None:
        self.heard: Any = None

    def receive(self, value: Any) -> None:
        self.heard = value

    def __call__(self, job: Job) -> dict[str, Any]:
        if job.payload["act"] == "exit":
            os._exit(7)
        return {"heard": self.heard}


def build_listener() -> Callable[[Job], dict[str, Any]]:
    """An evaluator that takes what is shared."""
    return _Listener()


def _act(job: Job) -> dict[str, Any]:
    match job.payload["act"]:
        case "echo":
            return {"policy": job.policy_json, "fidelity": job.fidelity, "blob": bytes(range(256)) * 1000}
        case "refuse":
            raise CandidateError("rank 9 is above\nthe full rank 8")
        case "divide":
            return {"value": 1 / 0}
        case "allocate":
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        case "allocate_and_wrap":
            raise CandidateError("the export failed") from MemoryError()
        case "fill_disk":
            raise OSError(28, "No space left on device")
        case "sleep":
            Path(job.payload["pid_file"]).write_text(str(os.getpid()))
            time.sleep(job.payload["seconds"])
            return {"slept": True}
        case "exit":
            os._exit(7)
        case "lock":
            import threading

            return {"not picklable": threading.Lock()}
        case "threads":
            import torch

            return {"torch": torch.get_num_threads(), "openmp": os.environ.get("OMP_NUM_THREADS"), "pid": os.getpid()}
    raise AssertionError(job.payload)


def job(name: str, act: str = "echo", timeout_s: float = 60.0, **payload: Any) -> Job:
    return Job(name, f'{{"policy":"{name}"}}', "probe", timeout_s, {"act": act, **payload})


PATIENCE_SECONDS = 180
"""A worker that starts on a loaded machine imports torch for a minute."""


def finish(pool: Pool, *jobs: Job) -> dict[str, Done]:
    """Put jobs through a pool as its room allows; each must come back exactly once."""
    waiting, done = list(jobs), []
    while len(done) < len(jobs):
        while waiting and len(jobs) - len(waiting) - len(done) < pool.capacity:
            pool.submit(waiting.pop(0))
        answer = pool.next_done(PATIENCE_SECONDS)
        assert answer is not None, f"no answer within {PATIENCE_SECONDS} s"
        done.append(answer)
    assert pool.next_done(0) is None
    assert sorted(answer.job_id for answer in done) == sorted(job.id for job in jobs)
    return {answer.job_id: answer for answer in done}


class PoolContract:
    @pytest.fixture
    def pool(self) -> Pool:
        """A pool of ``build_actor``; may be shared by the tests."""
        raise NotImplementedError

    @pytest.fixture
    def open_pool(self) -> OpenPool:
        """Opens a pool of a factory."""
        raise NotImplementedError

    def test_every_job_comes_back_once_with_its_own_result(self, pool: Pool) -> None:
        done = finish(pool, *(job(f"job{index}") for index in range(7)))
        for name, answer in done.items():
            assert answer.ok and answer.fault is None and answer.result is not None
            assert answer.result["policy"] == f'{{"policy":"{name}"}}'
            assert answer.result["fidelity"] == "probe"
            assert answer.host and answer.seconds >= 0

    def test_results_carry_bytes(self, pool: Pool) -> None:
        answer = finish(pool, job("bytes"))["bytes"]
        assert answer.result is not None
        assert answer.result["blob"] == bytes(range(256)) * 1000

    @pytest.mark.parametrize(
        ("act", "kind", "error_class", "message"),
        [
            ("refuse", "candidate", "CandidateError", "rank 9 is above the full rank 8"),
            ("divide", "candidate", "ZeroDivisionError", "division by zero (pool.py, line "),
            ("allocate", "memory", "RuntimeError", "can't allocate memory"),
            ("allocate_and_wrap", "memory", "CandidateError", "the export failed"),
            ("fill_disk", "infrastructure", "OSError", "No space left on device"),
        ],
    )
    def test_a_failing_job_reports_its_reason_and_costs_no_other(
        self, pool: Pool, act: str, kind: str, error_class: str, message: str
    ) -> None:
        done = finish(pool, job("before"), job("failing", act), job("after"))
        failing = done["failing"]
        assert done["before"].ok and done["after"].ok
        assert not failing.ok and failing.result is None and failing.fault is not None
        assert (failing.fault.kind, failing.fault.error_class) == (kind, error_class)
        assert message in failing.fault.message and "\n" not in failing.fault.message

    def test_no_more_jobs_than_the_capacity_are_taken(self, pool: Pool) -> None:
        jobs = [job(f"job{index}") for index in range(pool.capacity)]
        for each in jobs:
            pool.submit(each)
        with pytest.raises(WorkError, match="call next_done first"):
            pool.submit(job("one more"))
        names = {answer.job_id for _ in jobs if (answer := pool.next_done(PATIENCE_SECONDS))}
        assert names == {each.id for each in jobs}

    def test_next_done_of_an_idle_pool_returns_at_once(self, pool: Pool) -> None:
        start = time.monotonic()
        assert pool.next_done(None) is None
        assert time.monotonic() - start < 1

    def test_closing_twice_is_allowed_and_final(self, open_pool: OpenPool) -> None:
        with open_pool(build_actor) as pool:
            pool.submit(job("given up"))
            pool.close()
            pool.close()
            with pytest.raises(WorkError, match="closed"):
                pool.submit(job("late"))
            with pytest.raises(WorkError, match="closed"):
                pool.next_done(0)

    def test_a_factory_that_fails_is_told_with_its_cause(self, open_pool: OpenPool) -> None:
        with open_pool(build_nothing) as pool:
            pool.submit(job("never"))
            with pytest.raises(WorkError, match="DataError: expected pictures, found none"):
                pool.next_done(PATIENCE_SECONDS)

    def test_what_is_shared_reaches_every_worker_before_its_next_job(self, open_pool: OpenPool) -> None:
        with open_pool(build_listener) as pool:
            before = finish(pool, *(job(f"before{i}") for i in range(pool.capacity)))
            pool.share({"bank": b"first"})
            first = finish(pool, *(job(f"first{i}") for i in range(2 * pool.capacity)))
            pool.share({"bank": b"second"})
            second = finish(pool, *(job(f"second{i}") for i in range(2 * pool.capacity)))
        heard = [{str(done.result) for done in answers.values()} for answers in (before, first, second)]
        assert heard == [{"{'heard': None}"}, {"{'heard': {'bank': b'first'}}"}, {"{'heard': {'bank': b'second'}}"}]

    def test_a_function_that_wants_nothing_is_given_nothing(self, pool: Pool) -> None:
        pool.share({"bank": b"unheard"})
        assert finish(pool, job("after"))["after"].ok
