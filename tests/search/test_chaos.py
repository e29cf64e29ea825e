"""Processes of a search are killed; nothing that was recorded is lost, nothing is counted twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from paretopress.evaluators.models import build_model, save_weights
from paretopress.policies.errors import RunDirectoryError
from paretopress.search.ledger import Evaluation, Ledger
from paretopress.tests.search.runs import front_of, rows, with_weights, write_config

pytestmark = pytest.mark.chaos

EVALUATIONS = 16
PATIENCE_S = 120.0
MAIN = "import sys; from paretopress.search.cli import main; main(sys.argv[1:])"


@dataclass
class Driver:
    """A command line in a process of its own, with the processes that Ray started for it."""

    process: subprocess.Popen[bytes]
    log: Path

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_for(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert self.process.poll() is None, f"the driver has ended before its time:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"nothing happened:\n{self.log.read_text()}"
            time.sleep(0.05)

    def finish(self) -> dict[str, object]:
        """The summary that the command prints at its end."""
        assert self.process.wait(PATIENCE_S) == 0, self.log.read_text()
        summary = json.loads(self.log.read_text().splitlines()[-1])
        assert isinstance(summary, dict)
        return summary

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        assert self.process.wait(10) == -signal.SIGKILL, "the driver was not killed, so nothing was tested"


@contextmanager
def driving(log: Path, *arguments: str) -> Iterator[Driver]:
    """Run a command; whatever it has started is ended with the block, each process by its id."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *arguments, "--json"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    driver, known = Driver(process, log), dict[int, psutil.Process]()
    kill_only = driver.kill

    def kill() -> None:
        known.update({child.pid: child for child in driver.descendants()})
        kill_only()

    driver.kill = kill  # type: ignore[method-assign]
    try:
        yield driver
    finally:
        if process.poll() is None:
            kill()
        for child in known.values():
            # psutil compares the time of creation as well, so a pid that was given anew is left alone.
            if child.is_running():
                child.kill()
        psutil.wait_procs(list(known.values()), timeout=10)


def make_config_file(tmp_path: Path) -> Path:
    """Evaluations of about a third of a second. The network is untrained: it is the machinery that is tried here."""
    save_weights(build_model("family:digits_cnn", num_classes=10, in_channels=1), tmp_path / "weights.safetensors")
    plain = with_weights(
        tmp_path / "weights.safetensors",
        budgets={"stored": "100kB"},
        space={"precision": ["float32", "w8a8", "w4a8"], "sparsity": [0.0, 0.5, 0.8]},
        search__evaluations=EVALUATIONS,
        search__batch=8,
        recovery__epochs=0,
        latency={"screen_seconds": 0.25, "pairs": 50},
        pool={"kind": "ray", "workers": 2},
    )
    return write_config(tmp_path / "chaos.yaml", plain)


def done(found: list[Evaluation]) -> list[Evaluation]:
    return [row for row in found if row.state == "done"]


def finished_rows(run: Path) -> list[Evaluation]:
    """What is recorded for good, also while a driver writes or before it has made a ledger."""
    try:
        return done(rows(run))
    except RunDirectoryError:
        return []


@dataclass(frozen=True)
class Story:
    """What stood in the ledger when each driver was killed, and once the last had come to the end."""

    run: Path
    killed: list[list[Evaluation]]
    end: list[Evaluation]
    summary: dict[str, object]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Two drivers are killed in the middle of the search; the third loses a worker and comes to the end."""
    directory = tmp_path_factory.mktemp("chaos")
    run, config, killed = directory / "run", make_config_file(directory), list[list[Evaluation]]()
    for number, command in enumerate([("search", str(config), "--out", str(run)), ("resume", str(run))]):
        enough = len(finished_rows(run)) + 3
        with driving(directory / f"log{number}", *command) as driver:
            driver.wait_for(lambda: len(finished_rows(run)) >= enough)  # noqa: B023
            driver.kill()
        assert not (run / "front.json").exists(), "it was killed in the middle"
        killed.append(rows(run))
    with driving(directory / "log_end", "resume", str(run)) as driver:
        driver.wait_for(lambda: len(finished_rows(run)) > len(done(killed[-1])))
        kill_a_busy_worker(driver)
        summary = driver.finish()
    return Story(run, killed, rows(run), summary)


def kill_a_busy_worker(driver: Driver) -> None:
    busy = list[psutil.Process]()

    def find() -> bool:
        busy[:] = [child for child in driver.descendants() if _title(child).startswith("ray::_Worker.run")]
        return bool(busy)

    driver.wait_for(find)
    busy[0].kill()
    gone, _ = psutil.wait_procs(busy[:1], timeout=10)
    assert gone, "the worker was not killed, so nothing was tested"


def test_a_killed_driver_loses_nothing_that_was_recorded(story: Story) -> None:
    first, second = (done(found) for found in story.killed)
    assert 3 <= len(first) < len(second) < len(done(story.end))
    assert [row for row in second if row in first] == first
    assert [row for row in story.end if row in second] == second, "the same figures, finished at the same time"
    assert {row.epoch for row in story.end} == {1, 2, 3}, "three drivers have worked on it"


def test_nothing_is_counted_twice_whatever_was_killed(story: Story) -> None:
    with Ledger.read(story.run) as ledger:
        trials = ledger.trials()
    assert [trial.number for trial in trials] == list(range(len(trials)))
    assert {row.state for row in story.end} == {"done"}
    assert len({row.key for row in story.end}) == len(story.end)
    screened, stitched = (
        {row.key.policy_hash for row in story.end if row.key.fidelity == rung} for rung in ("screen", "stitch")
    )
    assert len(screened) == EVALUATIONS and screened < stitched
    assert {trial.policy_hash for trial in trials} <= stitched, (
        "the middle of the menus is stitched without being asked for"
    )
    tested = [row for row in story.end if row.key.fidelity == "test"]
    assert [row.attempt for row in tested] == [1] * 3, "two finalists and the dense network, each tested once"


def test_a_killed_worker_costs_its_evaluation_only(story: Story) -> None:
    before = {row.key: row.attempt for row in story.killed[-1]}
    tries = [row.attempt - before.get(row.key, 0) for row in story.end if row not in done(story.killed[-1])]
    assert sorted(tries) == [1] * (len(tries) - 1) + [2], "one evaluation was tried again, and no other"


def test_the_run_comes_to_its_front_and_report(story: Story) -> None:
    assert story.summary["front"] == len(front_of(story.run)["front"]) > 0
    assert (story.run / "report.html").is_file() and (story.run / "optuna-journal.log").is_file()


def test_sigterm_ends_a_driver_and_its_workers_as_ctrl_c_does(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with driving(tmp_path / "log", "search", str(make_config_file(tmp_path)), "--out", str(run)) as driver:
        driver.wait_for(lambda: len(finished_rows(run)) >= 2)
        started, recorded = driver.descendants(), finished_rows(run)
        for _ in range(2):  # as those do who signal a process and its group
            os.kill(driver.process.pid, signal.SIGTERM)
            time.sleep(0.1)
        assert driver.process.wait(PATIENCE_S) == 1
    said = driver.log.read_text()
    assert f"stopped; nothing recorded is lost. Go on by: paretopress resume {run}" in said
    assert not any(sign in said for sign in ("Traceback", "SIGTERM", "SystemExit", "File ")), said
    assert started and not psutil.wait_procs(started, timeout=15)[1], "its workers are gone with it"
    assert [row for row in finished_rows(run) if row in recorded] == recorded and (run / "report.html").is_file()
    assert not any(row.state == "failed" for row in rows(run))


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""
