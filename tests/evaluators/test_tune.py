"""Trainings as trials of Ray Tune: processes and drivers are really killed, and nothing that was trained is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from paretopress.evaluators import tune
from paretopress.evaluators.pool import Done, InProcessPool, Job, Pool
from paretopress.evaluators.tune import Epoch, TunePool
from paretopress.evaluators.workbench import Workbench
from paretopress.evaluators.worker import CandidateFactory
from paretopress.policies.errors import WorkError
from paretopress.policies.policy import Policy, Step
from paretopress.tests.contracts.pool import build_actor, build_nothing, job
from paretopress.tests.evaluators.digits_bench import MIXED, make_bench, untimed

torch.set_num_threads(1)

# Between its last two layers no more than one number is left: it cannot tell ten digits apart, however it is trained.
ONE_NUMBER = Policy({"fc1": (Step.of("svd", rank=1),)})
UNKNOWN = Policy({"conv9": (Step.of("quantize", bits=8),)})


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return make_bench()


@pytest.fixture(scope="module")
def undisturbed(bench: Workbench) -> dict[str, Any]:
    """What a recovery that nothing happens to comes to, in this process."""
    with InProcessPool(CandidateFactory(bench)) as pool:
        result = answers(pool, recover("mixed", MIXED))["mixed"].result
    assert result is not None
    return result


def recover(name: str, policy: Policy) -> Job:
    return Job(name, policy.to_json(), "recover", 600.0, {"seed": 3})


def opened(bench: Workbench, storage: Path, heard: Callable[[Epoch], None], **options: Any) -> TunePool:
    return TunePool(CandidateFactory(bench), storage, 1, 1, on_epoch=heard, **options)


def answers(pool: Pool, *jobs: Job) -> dict[str, Done]:
    """Of jobs that are handed in together, however long they take."""
    for each in jobs:
        pool.submit(each)
    done = [answer for _ in jobs if (answer := pool.next_done(None))]
    assert pool.next_done(0) is None
    assert sorted(answer.job_id for answer in done) == sorted(each.id for each in jobs)
    return {answer.job_id: answer for answer in done}


def assert_same(done: Done, expected: dict[str, Any]) -> None:
    assert done.ok and done.result is not None, done.fault
    assert done.result["artefacts"] == expected["artefacts"]
    assert untimed(done.result["metrics"]) == untimed(expected["metrics"])


def test_a_trial_killed_in_the_middle_of_training_goes_on_from_its_last_epoch(
    foreign_ray: None, bench: Workbench, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    epochs: list[tuple[int, int]] = []

    def kill_once(epoch: Epoch) -> None:
        epochs.append((epoch.number, epoch.pid))
        if epochs == [(1, epoch.pid), (2, epoch.pid), (3, epoch.pid)]:
            os.kill(epoch.pid, signal.SIGKILL)
            assert is_gone(epoch.pid)

    with opened(bench, tmp_path, kill_once) as pool:
        done = answers(pool, recover("mixed", MIXED), recover("unknown", UNKNOWN))
    assert [number for number, _ in epochs] == [1, 2, 3, 4], "no epoch was trained twice, and none was left out"
    killed = epochs[2][1]
    assert killed not in (os.getpid(), epochs[3][1]), "the trial went on in another process"
    assert_same(done["mixed"], undisturbed)
    fault = done["unknown"].fault
    assert fault is not None and (fault.kind, fault.error_class) == ("candidate", "PolicyError")
    assert "layer 'conv9' is unknown" in fault.message

    epochs.clear()
    with opened(bench, tmp_path, kill_once) as pool:
        assert_same(answers(pool, recover("mixed", MIXED))["mixed"], undisturbed)
    assert not epochs, "an answer that was kept is not worked for again"


DRIVER = """
import os, signal, sys
from pathlib import Path
from paretopress.tests.evaluators.test_tune import MIXED, make_bench, opened, recover

def kill_the_driver(epoch):
    print(epoch.number, flush=True)
    if epoch.number == 3:
        os.kill(os.getpid(), signal.SIGKILL)

with opened(make_bench(), Path(sys.argv[1]), kill_the_driver) as pool:
    pool.submit(recover("mixed", MIXED))
    pool.next_done(None)
"""


def test_a_killed_driver_goes_on_with_every_trial_where_it_was(
    foreign_ray: None, bench: Workbench, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    command = [sys.executable, "-W", "error", "-c", DRIVER, str(tmp_path)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert (killed.returncode, killed.stdout, killed.stderr) == (-signal.SIGKILL, "1\n2\n3\n", "")
    epochs: list[int] = []
    with opened(bench, tmp_path, lambda epoch: epochs.append(epoch.number)) as pool:
        done = answers(pool, recover("mixed", MIXED))["mixed"]
    assert epochs == [4]
    assert_same(done, undisturbed)


def test_the_worse_half_is_stopped_early_where_a_scheduler_is_asked_for(
    foreign_ray: None, bench: Workbench, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    epochs: list[tuple[str, int]] = []

    def heard(epoch: Epoch) -> None:
        epochs.append((epoch.job.id, epoch.number))

    with opened(bench, tmp_path, heard, scheduler="asha", max_epochs=4) as pool:
        done = answers(pool, recover("mixed", MIXED), recover("one number", ONE_NUMBER))
    assert_same(done["mixed"], undisturbed)
    assert epochs == [("mixed", 1), ("mixed", 2), ("mixed", 3), ("mixed", 4), ("one number", 1)]
    fault = done["one number"].fault
    assert fault is not None and (fault.kind, fault.error_class) == ("candidate", "StoppedEarly")
    assert fault.message.startswith("stopped early by the scheduler after 1 epochs, its error then ")


def test_results_and_faults_come_back_as_from_any_pool(foreign_ray: None, tmp_path: Path) -> None:
    with TunePool(build_actor, tmp_path, workers=2, threads_per_worker=1) as pool:
        assert pool.next_done(None) is None
        done = answers(pool, job("a"), job("refused", "refuse"), job("full", "fill_disk"), job("threads", "threads"))
        assert done["a"].result is not None and done["a"].result["blob"] == bytes(range(256)) * 1000
        faults = {name: done[name].fault for name in ("refused", "full")}
        assert {name: fault and fault.kind for name, fault in faults.items()} == {
            "refused": "candidate",
            "full": "infrastructure",
        }
        threads = done["threads"].result
        assert threads is not None and threads["torch"] == 1 and threads["pid"] != os.getpid()
        pool.close()
        with pytest.raises(WorkError, match="closed"):
            pool.submit(job("late"))


def test_a_factory_that_fails_is_told_with_its_cause(foreign_ray: None, tmp_path: Path) -> None:
    with TunePool(build_nothing, tmp_path, workers=1, threads_per_worker=1) as pool:
        pool.submit(job("never"))
        with pytest.raises(WorkError, match="DataError: expected pictures, found none"):
            pool.next_done(300)


def test_a_trial_that_is_not_heard_of_is_killed(
    foreign_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune, "MAX_FAILURES", 0)
    with TunePool(build_actor, tmp_path, workers=1, threads_per_worker=1) as pool:
        asleep = job("asleep", "sleep", timeout_s=2, pid_file=str(tmp_path / "pid"), seconds=600)
        fault = answers(pool, asleep)["asleep"].fault
    assert fault is not None and (fault.kind, fault.message) == ("timeout", "not heard of within 2 s, 1 times")


def test_a_pool_that_is_closed_leaves_its_experiment(foreign_ray: None, tmp_path: Path) -> None:
    pool = TunePool(build_actor, tmp_path, workers=1, threads_per_worker=1)
    pool.submit(job("asleep", "sleep", pid_file=str(tmp_path / "pid"), seconds=600))
    while not (tmp_path / "pid").exists():
        assert pool.next_done(0.1) is None
    pid = int((tmp_path / "pid").read_text())
    pool.close()
    assert is_gone(pid)


def is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.05)
    return False
