from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from paretopress.evaluators.pool import InProcessPool, Pool, cause_of_death, fault_of
from paretopress.evaluators.ray_pool import MAX_BUILD_FAILURES, RayPool, _callers_sigterm
from paretopress.evaluators.rehearsal import own_end
from paretopress.policies.errors import WorkError
from paretopress.tests.contracts.pool import (
    PATIENCE_SECONDS,
    OpenPool,
    PoolContract,
    build_actor,
    build_when_told,
    finish,
    job,
)


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
        assert fault.message.startswith(f"the worker's process {pid} on ") and len(fault.message) < 200
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
        with pytest.raises(WorkError, match="the evaluators cannot be built: ActorDiedError") as given_up:
            pool.next_done(PATIENCE_SECONDS)
    assert "what builds a worker ends its process (exit code 3); mend that" in str(given_up.value)


def test_workers_that_are_killed_while_they_are_built_are_replaced_however_many(
    ray_pool: RayPool, tmp_path: Path
) -> None:
    killed = list[str]()
    with RayPool(partial(build_when_told, tmp_path), workers=1, threads_per_worker=1) as pool:
        pool.submit(job("patient"))
        while sum(title.startswith("ray::_Worker.build") for title in killed) < MAX_BUILD_FAILURES + 1:
            assert pool.next_done(0.1) is None, "nothing can be built before it is told"
            killed += [_kill(int(path.stem)) for path in tmp_path.glob("*.pid") if path.unlink() is None]
        (tmp_path / "go").touch()
        answer = pool.next_done(PATIENCE_SECONDS)
        assert answer is not None and answer.ok, answer
    assert len(killed) > MAX_BUILD_FAILURES + 1, "trials of the factory were killed as well"


@pytest.mark.parametrize(
    ("factory", "end"),
    [
        (partial(os._exit, 3), "exit code 3"),
        (partial(sys.exit, 0), "exit code 0"),
        (os.abort, "SIGABRT"),
        (partial(signal.raise_signal, signal.SIGSEGV), "SIGSEGV"),
        (partial(signal.raise_signal, signal.SIGKILL), None),
        (partial(int, "no number"), None),
        (dict, None),
    ],
    ids=["exits", "exits in peace", "aborts", "crashes", "is killed", "raises", "returns"],
)
def test_how_a_factory_ends_its_process_is_read_from_one_of_its_own(
    factory: Callable[[], object], end: str | None
) -> None:
    assert own_end(pickle.dumps(factory)) == end


class _Exits:
    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (5,)


def test_what_ends_a_process_while_it_is_unpickled_is_found_as_well() -> None:
    assert own_end(pickle.dumps(_Exits())) == "exit code 5"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "its worker process has died. Worker exit type: SYSTEM_ERROR ... End of file. ... OOM killer",
            "killed from outside",
        ),
        ("Worker exits unexpectedly. Worker exits with an exit code 4.", "left with exit code 4"),
        ("Worker exits with an exit code 1. The process receives a SIGTERM.", "ended from outside, by SIGTERM"),
        ("Task was killed due to the node running low on memory.", "memory of its node was used up"),
        ("The actor is dead because its node has died. Node Id: 12", "its node is gone"),
    ],
)
def test_a_lost_worker_is_told_in_a_few_words(text: str, cause: str) -> None:
    told = cause_of_death(text)
    assert cause in told and len(told) < 100


def test_starting_ray_leaves_sigterm_to_whom_the_caller_gave_it() -> None:
    def mine(number: int, frame: object) -> None:
        raise AssertionError("never sent")

    def rays(number: int, frame: object) -> None:
        sys.exit(1)

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with _callers_sigterm():
            signal.signal(signal.SIGTERM, rays)
        assert signal.getsignal(signal.SIGTERM) is mine
        with pytest.raises(KeyboardInterrupt), _callers_sigterm():
            signal.signal(signal.SIGTERM, rays)
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("Ray's handler hears what comes while it starts")
        assert signal.getsignal(signal.SIGTERM) is mine
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with _callers_sigterm():
            signal.signal(signal.SIGTERM, rays)
        assert signal.getsignal(signal.SIGTERM) is rays, "where nobody set one, Ray's ends its processes with this one"
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_cluster_without_room_is_told(ray_pool: RayPool) -> None:
    with RayPool(build_actor, workers=1, threads_per_worker=3, startup_timeout_s=1) as pool:
        pool.submit(job("never"))
        with pytest.raises(WorkError, match="none of 1 workers of 3 cores within 1 s"):
            pool.next_done(30)


def test_a_cluster_out_of_reach_is_told() -> None:
    with pytest.raises(WorkError, match=r"cannot reach the Ray cluster at 127\.0\.0\.1:9"):
        RayPool(build_actor, workers=1, address="127.0.0.1:9")


def test_workers_start_where_the_interpreters_path_has_a_blank(tmp_path: Path) -> None:
    """Ray puts its path into a shell's command without quotes."""
    environment = tmp_path / "a folder"
    environment.mkdir()
    for entry in Path(sys.prefix).iterdir():
        (environment / entry.name).symlink_to(entry)
    code = (
        "from paretopress.evaluators.ray_pool import RayPool\n"
        "from paretopress.tests.contracts.pool import build_actor, finish, job\n"
        "with RayPool(build_actor, workers=1, threads_per_worker=1) as pool:\n"
        "    print(finish(pool, job('a', 'threads'))['a'].result)\n"
    )
    python = str(environment / "bin" / Path(sys.executable).name)
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0 and "'torch': 1" in done.stdout, done.stdout + done.stderr


def test_a_refused_connection_may_pass_and_a_missing_file_may_not() -> None:
    assert fault_of(ConnectionRefusedError(111, "refused")).kind == "infrastructure"
    assert fault_of(FileNotFoundError(2, "no such file")).kind == "candidate"


def _kill(pid: int) -> str:
    """Kill a process, and return how it was called."""
    title = " ".join(psutil.Process(pid).cmdline())
    os.kill(pid, signal.SIGKILL)
    assert _is_gone(pid), "it was not killed, so nothing was tested"
    return title


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
