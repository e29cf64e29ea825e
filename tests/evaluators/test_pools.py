from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from paretopress.evaluators.pool import InProcessPool, Pool, fault_of
from paretopress.evaluators.ray_pool import RayPool
from paretopress.policies.errors import WorkError
from paretopress.tests.contracts.pool import PATIENCE_SECONDS, OpenPool, PoolContract, build_actor, finish, job


class TestInProcessPool(PoolContract):
    @pytest.fixture
    def pool(self) -> Iterator[Pool]:
        with InProcessPool(build_actor, capacity=2) as pool:
            yield pool

    @pytest.fixture
    def open_pool(self) -> OpenPool:
        return InProcessPool


@pytest.fixture(scope="module")
def ray_pool(foreign_ray: None) -> Iterator[RayPool]:
    with RayPool(build_actor, workers=2) as pool:
        yield pool


class TestRayPool(PoolContract):
    @pytest.fixture
    def pool(self, ray_pool: RayPool) -> RayPool:
        return ray_pool

    @pytest.fixture
    def open_pool(self, foreign_ray: None) -> OpenPool:
        return partial(RayPool, workers=1, threads_per_worker=1)

    def test_workers_are_processes_with_their_threads_set(self, ray_pool: RayPool) -> None:
        done = finish(ray_pool, *(job(f"job{index}", "threads") for index in range(4)))
        for answer in done.values():
            assert answer.result is not None
            assert answer.result["torch"] == 1 and answer.result["openmp"] == "1"
            assert answer.result["pid"] in ray_pool.pids() and answer.result["pid"] != os.getpid()

    def test_a_killed_worker_costs_its_own_job_only(self, ray_pool: RayPool, tmp_path: Path) -> None:
        ray_pool.submit(job("killed", "sleep", pid_file=str(tmp_path / "killed"), seconds=60))
        ray_pool.submit(job("spared", "sleep", pid_file=str(tmp_path / "spared"), seconds=1))
        pid = _read_pid(tmp_path / "killed")
        os.kill(pid, signal.SIGKILL)
        start = time.monotonic()
        done = {answer.job_id: answer for _ in range(2) if (answer := ray_pool.next_done(20))}
        assert time.monotonic() - start < 10
        assert _is_gone(pid), "the worker was not killed, so nothing was tested"
        assert done["spared"].ok
        fault = done["killed"].fault
        assert fault is not None and (fault.kind, fault.error_class) == ("infrastructure", "ActorDiedError")
        assert all(answer.ok for answer in finish(ray_pool, job("a"), job("b"), job("c")).values())
        assert pid not in ray_pool.pids()

    def test_a_stopped_worker_is_killed_at_its_timeout_and_its_late_answer_refused(
        self, ray_pool: RayPool, tmp_path: Path
    ) -> None:
        ray_pool.submit(job("stopped", "sleep", timeout_s=2, pid_file=str(tmp_path / "pid"), seconds=0.5))
        pid = _read_pid(tmp_path / "pid")
        os.kill(pid, signal.SIGSTOP)
        assert _becomes(pid, psutil.STATUS_STOPPED), "the worker was not stopped, so nothing was tested"
        answer = ray_pool.next_done(20)
        assert answer is not None and answer.job_id == "stopped" and answer.fault is not None
        assert answer.fault.kind == "timeout" and "within 2 s" in answer.fault.message
        assert 2 <= answer.seconds < 4
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        finish(ray_pool, job("a"), job("b"), job("c"))
        assert pid not in ray_pool.pids()
        assert _is_gone(pid)

    def test_a_result_that_cannot_be_sent_is_a_fault_of_the_candidate(self, ray_pool: RayPool) -> None:
        fault = finish(ray_pool, job("lock", "lock"))["lock"].fault
        assert fault is not None and fault.kind == "candidate" and "pickle" in fault.message


def test_a_ray_of_its_own_is_stopped_on_close_and_keeps_standard_output_clean(tmp_path: Path) -> None:
    script = (
        "from paretopress.evaluators.ray_pool import RayPool\n"
        "from paretopress.tests.contracts.pool import build_actor, finish, job\n"
        "with RayPool(build_actor, workers=1, threads_per_worker=1) as pool:\n"
        "    print(finish(pool, job('exits', 'exit'))['exits'].fault.kind)\n"
        "import ray\n"
        "print(ray.is_initialized())\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert (run.stdout, run.stderr, run.returncode) == ("infrastructure\nFalse\n", "", 0)


def test_a_factory_that_kills_its_workers_is_given_up_after_three(ray_pool: RayPool) -> None:
    with RayPool(partial(os._exit, 3), workers=1, threads_per_worker=1) as pool:
        pool.submit(job("never"))
        with pytest.raises(WorkError, match="the evaluators cannot be built: ActorDiedError"):
            pool.next_done(PATIENCE_SECONDS)


def test_a_cluster_without_room_is_told(ray_pool: RayPool) -> None:
    with RayPool(build_actor, workers=1, threads_per_worker=3, startup_timeout_s=1) as pool:
        pool.submit(job("never"))
        with pytest.raises(WorkError, match="none of 1 workers of 3 cores within 1 s"):
            pool.next_done(30)


def test_a_cluster_out_of_reach_is_told() -> None:
    with pytest.raises(WorkError, match=r"cannot reach the Ray cluster at 127\.0\.0\.1:9"):
        RayPool(build_actor, workers=1, address="127.0.0.1:9")


def test_a_refused_connection_may_pass_and_a_missing_file_may_not() -> None:
    assert fault_of(ConnectionRefusedError(111, "refused")).kind == "infrastructure"
    assert fault_of(FileNotFoundError(2, "no such file")).kind == "candidate"


def _read_pid(path: Path) -> int:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, "the job never started"
        time.sleep(0.02)
    return int(path.read_text())


def _becomes(pid: int, status: str) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if psutil.Process(pid).status() == status:
            return True
        time.sleep(0.02)
    return False


def _is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid):
            return True
        time.sleep(0.05)
    return False
