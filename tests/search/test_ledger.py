from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from paretopress.policies.errors import CandidateError, RunDirectoryError, SearchError, WorkError
from paretopress.search.ledger import EvaluationKey, Lease, Ledger
from paretopress.search.records import TrialRecord

VALUES = {"error_pct": 1.5, "stored_bytes": 1234.0}


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with Ledger(tmp_path, clock) as ledger:
        yield ledger


def key(policy: int | str = 0, fidelity: str = "probe") -> EvaluationKey:
    return EvaluationKey(f"hash{policy}", fidelity, "data", 7, "0.1.0")


def register(ledger: Ledger, policy: int | str = 0) -> EvaluationKey:
    return ledger.register(key(policy), f'{{"policy":{policy}}}', "sampler", {"number": policy}).key


def complete(ledger: Ledger, lease: Lease, values: dict[str, float] | None = None) -> bool:
    return ledger.complete(lease, values or VALUES, {"budget": -0.5}, {"m.onnx": "ab12"}, "host1", {"export": 0.1})


def test_a_row_keeps_all_that_was_recorded(ledger: Ledger, clock: Clock) -> None:
    fresh = ledger.register(key(), '{"layers":{}}', "uniform", {"number": 3, "params": {"b": 0.1, "a": 2}})
    assert (fresh.state, fresh.attempt, fresh.origin, fresh.created_s) == ("pending", 0, "uniform", 100.0)
    clock.now = 110.0
    lease = ledger.lease(key(), 200.0)
    clock.now = 130.0
    assert complete(ledger, lease)
    row = ledger.get(key())
    assert (row.key, row.policy_json, row.state, row.attempt, row.epoch) == (key(), '{"layers":{}}', "done", 1, 1)
    assert (row.created_s, row.started_s, row.finished_s, row.lease_deadline_s) == (100.0, 110.0, 130.0, 200.0)
    assert (row.values, row.constraints, row.artefacts) == (VALUES, {"budget": -0.5}, {"m.onnx": "ab12"})
    assert (row.host, row.seconds, row.error) == ("host1", {"export": 0.1}, None)
    assert row.trial == {"number": 3, "params": {"b": 0.1, "a": 2}} and list(row.trial["params"]) == ["b", "a"]


def test_registering_twice_finds_the_first_row_as_it_is(ledger: Ledger) -> None:
    register(ledger)
    complete(ledger, ledger.lease(key(), 200.0))
    again = ledger.register(key(), "{}", "uniform", {})
    assert (again.state, again.values, again.origin) == ("done", VALUES, "sampler")
    assert len(ledger.rows()) == 1


def test_a_thousand_requests_for_two_hundred_policies_make_two_hundred_evaluations(ledger: Ledger) -> None:
    requests = [number % 200 for number in range(1000)]
    random.Random(0).shuffle(requests)
    evaluations = 0
    for policy in requests:
        if ledger.get(register(ledger, policy)).state == "pending":
            complete(ledger, ledger.lease(key(policy), 200.0))
            evaluations += 1
    assert evaluations == 200
    assert ledger.counts() == {"pending": 0, "leased": 0, "done": 200, "failed": 0}


def test_an_answer_counts_once(ledger: Ledger) -> None:
    lease = ledger.lease(register(ledger), 200.0)
    assert complete(ledger, lease)
    assert not complete(ledger, lease, {"error_pct": 9.0})
    assert not ledger.fail(lease, "CandidateError", "too late")
    assert not ledger.release(lease)
    assert ledger.get(key()).values == VALUES


def test_a_late_answer_of_an_earlier_attempt_is_refused(ledger: Ledger) -> None:
    first = ledger.lease(register(ledger), 200.0)
    assert ledger.release(first)
    assert not complete(ledger, first)
    second = ledger.lease(key(), 300.0)
    assert second.attempt == 2
    assert not complete(ledger, first, {"error_pct": 9.0})
    assert complete(ledger, second)
    assert ledger.get(key()).values == VALUES


def test_a_leased_row_is_leased_again_only_after_its_deadline(ledger: Ledger, clock: Clock) -> None:
    late = ledger.lease(register(ledger), 200.0)
    with pytest.raises(SearchError, match="is leased"):
        ledger.lease(key(), 300.0)
    clock.now = 200.0
    assert ledger.lease(key(), 300.0).attempt == 2
    assert not complete(ledger, late)


def test_a_failure_is_final_and_keeps_its_reason(ledger: Ledger) -> None:
    assert ledger.fail(ledger.lease(register(ledger), 200.0), "CandidateError", "rank 9 of 8", host="host2")
    row = ledger.get(key())
    assert (row.state, row.error_class, row.error, row.host) == ("failed", "CandidateError", "rank 9 of 8", "host2")
    with pytest.raises(SearchError, match="is failed"):
        ledger.lease(key(), 200.0)


def test_a_row_whose_artefact_is_damaged_is_evaluated_anew(ledger: Ledger) -> None:
    old = ledger.lease(register(ledger), 200.0)
    complete(ledger, old)
    ledger.reopen(key(), "m.onnx: hash mismatch")
    row = ledger.get(key())
    assert (row.state, row.values, row.artefacts, row.error) == ("pending", {}, {}, "m.onnx: hash mismatch")
    assert not complete(ledger, old)
    assert complete(ledger, ledger.lease(key(), 200.0))
    assert ledger.get(key()).error is None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_refused(ledger: Ledger, value: float) -> None:
    lease = ledger.lease(register(ledger), 200.0)
    with pytest.raises(CandidateError, match="finite number for error_pct"):
        complete(ledger, lease, {"error_pct": value})
    assert ledger.get(key()).state == "leased"


def test_rows_come_in_order_and_by_fidelity_and_state(ledger: Ledger) -> None:
    for policy in (3, 1, 2):
        register(ledger, policy)
    ledger.register(key(1, "full"), "{}", "sampler", {})
    complete(ledger, ledger.lease(key(1), 200.0))
    assert [row.key.policy_hash for row in ledger.rows("probe")] == ["hash3", "hash1", "hash2"]
    assert [row.key for row in ledger.rows(state="done")] == [key(1)]
    assert [row.key for row in ledger.rows("full", "pending")] == [key(1, "full")]


def test_meta_is_kept(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        assert ledger.meta("run_id") is None
        ledger.set_meta("run_id", "a")
        ledger.set_meta("run_id", "b")
    with Ledger.read(tmp_path) as reader:
        assert (reader.meta("run_id"), reader.meta("schema_version")) == ("b", "1")


def test_a_batch_of_questions_is_kept_whole_or_not_at_all(ledger: Ledger) -> None:
    first = [TrialRecord(number, "hash0", "uniform", {"conv1": number}, {"generation": 0}) for number in range(3)]
    ledger.add_trials(first)
    with pytest.raises(WorkError, match="UNIQUE"):
        ledger.add_trials([TrialRecord(3, "hash1", "sampler", {}), TrialRecord(2, "hash1", "sampler", {})])
    assert ledger.trials() == first


def test_opening_again_raises_the_epoch_and_frees_dead_leases(tmp_path: Path) -> None:
    with Ledger(tmp_path) as first:
        dead = first.lease(register(first), time.time() + 999)
    with Ledger(tmp_path) as second:
        assert (first.epoch, second.epoch) == (1, 2)
        row = second.get(key())
        assert (row.state, row.attempt, row.lease_deadline_s) == ("pending", 1, None)
        assert not complete(second, dead)
        assert second.lease(key(), time.time() + 999).attempt == 2
        assert not complete(second, dead), "an answer of the first driver's worker was counted"


def test_a_second_driver_is_refused_at_once(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        start = time.monotonic()
        with pytest.raises(RunDirectoryError, match="another driver is working on"):
            Ledger(tmp_path)
        assert time.monotonic() - start < 1
        register(ledger)
    with Ledger(tmp_path) as after:
        assert len(after.rows()) == 1


def test_a_driver_without_its_lock_is_fenced_off_by_the_epoch(tmp_path: Path) -> None:
    with Ledger(tmp_path) as old:
        lease = old.lease(register(old), time.time() + 999)
        (tmp_path / "ledger.lock").unlink()
        with Ledger(tmp_path) as new:
            assert not complete(old, lease)
            for write in (lambda: register(old, 1), lambda: old.lease(key(), 9e9), lambda: old.set_meta("a", "b")):
                with pytest.raises(SearchError, match="has taken this run"):
                    write()
            assert complete(new, new.lease(key(), time.time() + 999))
            assert new.counts()["done"] == 1


def test_a_report_reads_while_the_driver_writes(ledger: Ledger, tmp_path: Path) -> None:
    register(ledger)
    with Ledger.read(tmp_path) as reader:
        assert len(reader.rows()) == 1
        register(ledger, 1)
        assert len(reader.rows()) == 2
        with pytest.raises(WorkError, match="open for reading only"):
            complete(reader, Lease(key(), 1, 1, 200.0))


def test_a_finished_run_is_read_from_a_read_only_medium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(tmp_path) as ledger:
        register(ledger)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    before = sorted(tmp_path.iterdir())
    with Ledger.read(tmp_path) as reader:
        assert len(reader.rows()) == 1
        assert sorted(tmp_path.iterdir()) == before


def test_what_is_no_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"found none in"):
        Ledger.read(tmp_path)
    text, other, newer = tmp_path / "text", tmp_path / "other", tmp_path / "newer"
    for directory in (text, other):
        directory.mkdir()
    (text / "ledger.sqlite").write_text("no database " * 1000)
    with sqlite3.connect(other / "ledger.sqlite") as database:
        database.execute("CREATE TABLE songs (title TEXT)")
    database.close()
    with Ledger(newer) as ledger:
        ledger._db.execute("UPDATE meta SET value = '2' WHERE name = 'schema_version'")
    for directory, reason in ((text, "not a database"), (other, "no ledger"), (newer, "schema version 2")):
        before = (directory / "ledger.sqlite").read_bytes()
        for open_it in (Ledger, Ledger.read):
            with pytest.raises(RunDirectoryError, match=reason):
                open_it(directory)
        assert (directory / "ledger.sqlite").read_bytes() == before


def test_a_damaged_ledger_is_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        for policy in range(300):
            register(ledger, policy)
    with (tmp_path / "ledger.sqlite").open("r+b") as file:
        file.seek(3 * 4096)
        file.write(os.urandom(4 * 4096))
    with pytest.raises(RunDirectoryError, match=r"damaged|cannot read it"):
        Ledger(tmp_path)


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match="cannot use"):
        Ledger(tmp_path / "file" / "run")


def test_a_locked_file_is_told_and_loses_nothing(tmp_path: Path) -> None:
    with Ledger(tmp_path, busy_timeout_s=0.1) as ledger:
        register(ledger)
        other = sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(WorkError, match="another process locks the file"):
            register(ledger, 1)
        other.execute("ROLLBACK")
        other.close()
        register(ledger, 1)
        assert len(ledger.rows()) == 2


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        for policy in range(20):
            register(ledger, policy)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        written = (tmp_path / "ledger.sqlite-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (written + 20_000, limits[1]))
        recorded = 20
        try:
            with pytest.raises(WorkError, match=r"free some space|check its space"):
                for policy in range(20, 1000):
                    register(ledger, policy)
                    recorded += 1
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert 20 < recorded < 1000, "the disk was never full, so nothing was tested"
        register(ledger, "after")
    with Ledger(tmp_path) as ledger:
        expected = {f"hash{policy}" for policy in [*range(recorded), "after"]}
        assert {row.key.policy_hash for row in ledger.rows()} == expected


WRITER = """
import sys
from pathlib import Path
from paretopress.search.ledger import EvaluationKey, Ledger
with Ledger(Path(sys.argv[1])) as ledger:
    for number in range(1_000_000):
        key = EvaluationKey(f"hash{ledger.epoch}-{number}", "probe", "data", 7, "0.1.0")
        ledger.register(key, "{}", "sampler", {"number": number})
        lease = ledger.lease(key, 9e9)
        ledger.complete(lease, {"error_pct": float(number)}, {}, {}, "host", {})
        print(key.policy_hash, number, flush=True)
"""


def _write_and_kill(directory: Path, lines: int) -> list[str]:
    """Start a driver, let it report some results, kill it; what it had reported as recorded."""
    command = [sys.executable, "-c", WRITER, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=directory) as process:
        assert process.stdout is not None
        reported = [process.stdout.readline().rstrip() for _ in range(lines)]
        process.send_signal(signal.SIGKILL)
        reported += process.stdout.read().splitlines()
    assert process.returncode == -signal.SIGKILL, "the driver was not killed, so nothing was tested"
    return reported


@pytest.mark.chaos
def test_a_killed_driver_loses_nothing_that_it_reported(tmp_path: Path) -> None:
    reported: list[str] = []
    for kill in range(5):
        reported += _write_and_kill(tmp_path, 20 + 17 * kill)
    with Ledger(tmp_path) as ledger:
        assert ledger.epoch == 6
        done = {row.key.policy_hash: row.values["error_pct"] for row in ledger.rows(state="done")}
        assert len(reported) >= 5 * 20
        for line in filter(lambda line: line.count(" ") == 1, reported):
            name, value = line.split()
            assert done[name] == float(value)
        assert len(done) <= len(reported) + 5
        assert ledger.counts()["leased"] == 0


@pytest.mark.chaos
def test_a_truncated_log_opens_to_the_last_commit(tmp_path: Path) -> None:
    crashed, commits = tmp_path / "crashed", []
    with Ledger(tmp_path / "run") as ledger:
        wal = tmp_path / "run" / "ledger.sqlite-wal"
        for policy in range(30):
            register(ledger, policy)
            commits.append(wal.stat().st_size)
        shutil.copytree(tmp_path / "run", crashed)
    log = (crashed / "ledger.sqlite-wal").read_bytes()
    assert len(log) == commits[-1] > 0
    for size in range(0, len(log), len(log) // 17):
        shutil.rmtree(tmp_path / "again", ignore_errors=True)
        shutil.copytree(crashed, tmp_path / "again", ignore=shutil.ignore_patterns("*-shm"))
        (tmp_path / "again" / "ledger.sqlite-wal").write_bytes(log[:size])
        with Ledger(tmp_path / "again") as ledger:
            whole = sum(commit <= size for commit in commits)
            assert [row.key for row in ledger.rows()] == [key(policy) for policy in range(whole)]
            register(ledger, "after")


def test_ten_thousand_rows_are_read_within_two_seconds(tmp_path: Path) -> None:
    trial = {"number": 1, "params": {f"layer{index}.bits": index for index in range(40)}}
    with Ledger(tmp_path) as ledger:
        register(ledger)
        complete(ledger, ledger.lease(key(), time.time() + 999))
        ledger._db.execute("UPDATE evaluations SET trial = ?", (json.dumps(trial),))
        columns = [row[1] for row in ledger._db.execute("PRAGMA table_info(evaluations)")][1:]
        names = ", ".join(f'"{name}"' for name in columns)
        ledger._db.execute(
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9999)"
            f" INSERT INTO evaluations (policy_hash, {names}) SELECT 'copy' || i, {names} FROM evaluations, n"
        )
    start = time.perf_counter()
    with Ledger(tmp_path) as ledger:
        rows = ledger.rows()
    assert time.perf_counter() - start < 2
    assert len(rows) == 10_000 and rows[-1].trial == trial


class LedgerMachine(RuleBasedStateMachine):
    """Any order of requests, leases, answers (also late and double ones), crashes and re-openings."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.directory = Path(self.temporary.name)
        self.clock = Clock()
        self.ledger = Ledger(self.directory, self.clock)
        self.leases: list[Lease] = []
        self.accepted: dict[EvaluationKey, float | None] = {}

    @rule(policy=st.integers(0, 3))
    def request(self, policy: int) -> None:
        row = self.ledger.register(key(policy), "{}", "sampler", {})
        if row.state == "pending":
            self.leases.append(self.ledger.lease(key(policy), self.clock.now + 10))

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), value=st.floats(0, 1), fails=st.booleans())
    def answer(self, data: st.DataObject, value: float, fails: bool) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        taken = self.ledger.fail(lease, "E", "e") if fails else complete(self.ledger, lease, {"error_pct": value})
        if taken:
            assert lease.key not in self.accepted, "two answers were counted"
            assert lease is max((it for it in self.leases if it.key == lease.key), key=lambda it: it.attempt)
            self.accepted[lease.key] = None if fails else value

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        if self.ledger.release(lease):
            assert lease.key not in self.accepted

    @rule()
    def wait_and_lease_the_overdue(self) -> None:
        self.clock.now += 20
        for row in self.ledger.rows(state="leased"):
            self.leases.append(self.ledger.lease(row.key, self.clock.now + 10))

    @rule()
    def reopen(self) -> None:
        self.ledger.close()
        self.ledger = Ledger(self.directory, self.clock)
        assert self.ledger.counts()["leased"] == 0

    @invariant()
    def what_was_accepted_is_recorded(self) -> None:
        for row in self.ledger.rows():
            assert (row.key in self.accepted) == (row.state in ("done", "failed"))
            assert row.values.get("error_pct") == self.accepted.get(row.key)
            assert row.attempt == max((it.attempt for it in self.leases if it.key == row.key), default=0)

    def teardown(self) -> None:
        self.ledger.close()
        self.temporary.cleanup()


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)
