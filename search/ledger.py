"""The durable record of evaluations, and the cache of their results: one SQLite file, one writer.

A row stands for one evaluation and moves between four states::

    pending ── lease ──> leased ── complete ──> done
       ^                   │ │
       └──── release ──────┘ └────── fail ────> failed         (reopen: done, failed ──> pending)

Workers may run an evaluation more than once, answer late or answer twice. Every lease carries the row's attempt and the
driver's epoch, and an answer counts only while the row is leased under both: at-least-once work, exactly-once counting.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Any

from ..policies.errors import RunDirectoryError, SearchError
from .database import clear_errors, connected, locked
from .records import (
    COLUMNS,
    CREATE_EVALUATIONS,
    CREATE_META,
    CREATE_TRIALS,
    KEY_MATCHES,
    STATES,
    Evaluation,
    EvaluationKey,
    Lease,
    State,
    TrialRecord,
    numbers_to_json,
    read_row,
    to_json,
)

__all__ = ["STATES", "Evaluation", "EvaluationKey", "Lease", "Ledger", "State"]

SCHEMA_VERSION = 1
LEDGER_FILE = "ledger.sqlite"
LOCK_FILE = "ledger.lock"


class Ledger(AbstractContextManager["Ledger"]):
    """Opens ``directory/ledger.sqlite`` for writing, and makes it where there is none.

    Opening raises the driver's epoch and returns the leases of dead drivers to pending; attempts are kept. What a
    method wrote is on the disk (WAL, ``synchronous=FULL``) before it returns.

    Parameters
    ----------
    directory
        The run's directory.
    clock
        Seconds, for the rows' times.
    busy_timeout_s
        How long to wait where another process locks the file.

    Raises
    ------
    RunDirectoryError
        Where another driver holds the run, or the file is no ledger, damaged, or of another schema version.
    WorkError
        From every method, where the file cannot be read or written (a full disk, a lock); nothing recorded is lost.
    """

    def __init__(
        self, directory: Path, clock: Callable[[], float] = time.time, *, busy_timeout_s: float = 10.0
    ) -> None:
        self.path = directory / LEDGER_FILE
        self.epoch = 0
        self._clock = clock
        with ExitStack() as resources:
            resources.enter_context(locked(directory, LOCK_FILE))
            self._db = resources.enter_context(connected(self.path, "mode=rwc", busy_timeout_s))
            self._prepare()
            self._resources = resources.pop_all()

    @classmethod
    def read(cls, directory: Path) -> Ledger:
        """Open for reading only, also while a driver writes; takes no lock and leaves the epoch as it is.

        Raises
        ------
        RunDirectoryError
            Where there is no ledger, or it is damaged or of another schema version.
        """
        ledger = cls.__new__(cls)
        ledger.path, ledger.epoch, ledger._clock = directory / LEDGER_FILE, 0, time.time
        if not ledger.path.is_file():
            raise RunDirectoryError(f"expected a run directory with {LEDGER_FILE}, found none in {directory}")
        # On a read-only medium SQLite cannot make its shared-memory file; without a log beside it, none is needed.
        frozen = not os.access(directory, os.W_OK) and not (directory / f"{LEDGER_FILE}-wal").exists()
        with ExitStack() as resources:
            ledger._db = resources.enter_context(connected(ledger.path, "immutable=1" if frozen else "mode=ro", 10.0))
            ledger._check_schema()
            ledger._resources = resources.pop_all()
        return ledger

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and give up the run; a second call does nothing."""
        self._resources.close()

    def register(
        self, key: EvaluationKey, policy_json: str, origin: str, trial: Mapping[str, Any] | None = None
    ) -> Evaluation:
        """The row of this key, made where there is none; an existing row is the cache hit and stays as it is.

        Parameters
        ----------
        origin
            Who asked for it: ``sampler``, ``uniform``, ``reference``.
        trial
            The sampler's number and parameters, plain JSON.
        """
        row = self._find(key)
        if row is None:
            values = (*astuple(key), policy_json, origin, to_json(trial or {}), self._clock())
            columns = "policy_hash, fidelity, data_hash, seed, code_version, policy_json, origin, trial, created_s"
            with self._transaction():
                self._db.execute(f"INSERT INTO evaluations ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        return row or self.get(key)

    def lease(self, key: EvaluationKey, deadline_s: float) -> Lease:
        """Lease a pending row, or one whose lease has run out, until ``deadline_s`` by the ledger's clock.

        Raises
        ------
        SearchError
            Where the row is in another state, or another driver has taken the run over.
        """
        now = self._clock()
        with self._transaction():
            taken = self._db.execute(
                "UPDATE evaluations SET state = 'leased', attempt = attempt + 1, epoch = ?, lease_deadline_s = ?,"
                f" started_s = ?, error_class = NULL, error = NULL WHERE {KEY_MATCHES}"
                " AND (state = 'pending' OR (state = 'leased' AND lease_deadline_s <= ?))",
                (self.epoch, deadline_s, now, *astuple(key), now),
            ).rowcount
        row = self.get(key)
        if not taken:
            raise SearchError(f"expected a pending evaluation to lease; that of {key.policy_hash[:12]} is {row.state}")
        return Lease(key, row.attempt, self.epoch, deadline_s)

    def complete(
        self,
        lease: Lease,
        values: Mapping[str, float],
        constraints: Mapping[str, float],
        artefacts: Mapping[str, str],
        host: str,
        seconds: Mapping[str, float],
    ) -> bool:
        """Record a result; ``False``, and nothing recorded, where the answer is late or a duplicate.

        Raises
        ------
        CandidateError
            Where a number is not finite; record it with ``fail``.
        """
        measured = (numbers_to_json(values), numbers_to_json(constraints), to_json(artefacts), numbers_to_json(seconds))
        assignments = "state = 'done', \"values\" = ?, constraints = ?, artefacts = ?, seconds = ?, host = ?"
        return self._answer(lease, f"{assignments}, finished_s = ?", (*measured, host, self._clock()))

    def fail(self, lease: Lease, error_class: str, error: str, host: str | None = None) -> bool:
        """Record that the evaluation failed for good, and why; ``False`` where the answer is late or a duplicate."""
        assignments = "state = 'failed', error_class = ?, error = ?, host = ?, finished_s = ?"
        return self._answer(lease, assignments, (error_class, error, host, self._clock()))

    def release(self, lease: Lease) -> bool:
        """Return a leased row to pending, to be tried again; ``False`` where the lease is void."""
        return self._answer(lease, "state = 'pending', lease_deadline_s = NULL", ())

    def release_all_leases(self) -> int:
        """Return the leased rows of earlier epochs to pending (opening does it), and say how many there were."""
        with self._transaction():
            return self._db.execute(
                "UPDATE evaluations SET state = 'pending', lease_deadline_s = NULL"
                " WHERE state = 'leased' AND epoch < ?",
                (self.epoch,),
            ).rowcount

    def reopen(self, key: EvaluationKey, reason: str) -> None:
        """Return a done or failed row to pending and drop its values: an artefact is gone or damaged."""
        with self._transaction():
            self._db.execute(
                "UPDATE evaluations SET state = 'pending', error_class = 'Reopened', error = ?, \"values\" = '{}',"
                " constraints = '{}', artefacts = '{}', seconds = '{}', host = NULL, finished_s = NULL,"
                f" lease_deadline_s = NULL WHERE {KEY_MATCHES} AND state IN ('done', 'failed')",
                (reason, *astuple(key)),
            )

    def find(self, key: EvaluationKey) -> Evaluation | None:
        """The row of a key, or ``None`` where it was never registered."""
        return self._find(key)

    def get(self, key: EvaluationKey) -> Evaluation:
        """The row of a key; a ``SearchError`` where it was never registered."""
        row = self._find(key)
        if row is None:
            raise SearchError(f"expected a registered evaluation, found no row for {key}; register it first")
        return row

    def rows(self, fidelity: str | None = None, state: State | None = None) -> list[Evaluation]:
        """The rows in the order of their registration, of one fidelity or state where given."""
        sql = f"SELECT {COLUMNS} FROM evaluations WHERE ?1 IN (fidelity, '') AND ?2 IN (state, '') ORDER BY rowid"
        return [read_row(row) for row in self._select(sql, (fidelity or "", state or ""))]

    def add_trials(self, trials: Sequence[TrialRecord]) -> None:
        """Record a batch of questions, all or none."""
        rows = [(t.number, t.policy_hash, t.origin, to_json(t.choices), to_json(t.attributes)) for t in trials]
        with self._transaction():
            self._db.executemany("INSERT INTO trials VALUES (?, ?, ?, ?, ?)", rows)

    def trials(self) -> list[TrialRecord]:
        """Every question that was recorded, by number."""
        found = self._select("SELECT number, policy_hash, origin, choices, attributes FROM trials ORDER BY number")
        return [TrialRecord(*row[:3], *map(json.loads, row[3:])) for row in found]

    def counts(self) -> dict[State, int]:
        """How many rows are in each state."""
        found = dict(self._select("SELECT state, count(*) FROM evaluations GROUP BY state"))
        return {state: found.get(state, 0) for state in STATES}

    def meta(self, name: str) -> str | None:
        """A fact about the run (``run_id``, ``config_hash``), or ``None``."""
        found = self._select("SELECT value FROM meta WHERE name = ?", (name,))
        return found[0][0] if found else None

    def set_meta(self, name: str, value: str) -> None:
        """Record a fact about the run, in place of the one of that name."""
        assert name not in ("schema_version", "epoch"), "the ledger keeps these itself"
        with self._transaction():
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))

    def _answer(self, lease: Lease, assignments: str, values: tuple[Any, ...]) -> bool:
        valid = f"{KEY_MATCHES} AND state = 'leased' AND attempt = ? AND epoch = ?"
        values = (*values, *astuple(lease.key), lease.attempt, lease.epoch)
        with self._transaction(fenced=False):
            return self._db.execute(f"UPDATE evaluations SET {assignments} WHERE {valid}", values).rowcount == 1

    def _find(self, key: EvaluationKey) -> Evaluation | None:
        found = self._select(f"SELECT {COLUMNS} FROM evaluations WHERE {KEY_MATCHES}", astuple(key))
        return read_row(found[0]) if found else None

    def _select(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with clear_errors(self.path):
            return self._db.execute(sql, values).fetchall()

    @contextmanager
    def _transaction(self, fenced: bool = True) -> Iterator[None]:
        """Commit at the end, roll back on an error; ``fenced`` refuses a driver whose run another has taken over."""
        assert self.epoch or not fenced, "this ledger is open for reading only"
        with clear_errors(self.path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if fenced and self.epoch != (current := int(self.meta("epoch") or 0)):
                    raise SearchError(
                        f"another driver (epoch {current}) has taken this run (epoch {self.epoch}) over; stop"
                    )
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # After a full disk SQLite may have rolled back by itself; the first error is the one to tell.
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    def _prepare(self) -> None:
        is_new = not self._select("SELECT 1 FROM sqlite_master")
        if not is_new:
            self._check_schema()  # Before anything is written: the file may be somebody else's.
        with clear_errors(self.path):
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
        if is_new:
            self._create()
        if (damage := self._select("PRAGMA quick_check(1)")[0][0]) != "ok":
            raise RunDirectoryError(f"{self.path} is damaged ({damage}); restore it from a copy or start a new run")
        with self._transaction(fenced=False):
            self._db.execute("UPDATE meta SET value = value + 1 WHERE name = 'epoch'")
            self.epoch = int(self.meta("epoch") or 0)
        self.release_all_leases()

    def _create(self) -> None:
        with self._transaction(fenced=False):
            self._db.execute(CREATE_META)
            self._db.execute(CREATE_EVALUATIONS)
            self._db.execute(CREATE_TRIALS)
            self._db.execute("INSERT INTO meta VALUES ('schema_version', ?), ('epoch', '0')", (str(SCHEMA_VERSION),))

    def _check_schema(self) -> None:
        if not self._select("SELECT 1 FROM sqlite_master WHERE name = 'meta'"):
            raise RunDirectoryError(f"{self.path} is a database but no ledger; choose another run directory")
        version = self.meta("schema_version")
        if version != str(SCHEMA_VERSION):
            raise RunDirectoryError(
                f"{self.path} has schema version {version}, this release reads version {SCHEMA_VERSION};"
                " open it with the release that wrote it or start a new run"
            )
