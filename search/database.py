"""One SQLite file in a run directory: held by one driver, and errors that say what to do."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..policies.errors import ParetopressError, RunDirectoryError, WorkError


@contextmanager
def locked(directory: Path, name: str) -> Iterator[None]:
    """Hold a run directory (made where missing) for one driver, by the lock file ``name`` in it.

    Raises
    ------
    RunDirectoryError
        At once where another driver holds it, or it cannot be written to.
    """
    lock = FileLock(directory / name, thread_local=False)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunDirectoryError(
            f"another driver is working on {directory}; wait until it ends, or choose another run directory"
        ) from error
    except OSError as error:
        raise RunDirectoryError(
            f"expected a directory to write to, cannot use {directory} ({error.strerror}); choose another run directory"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def connected(path: Path, mode: str, busy_timeout_s: float) -> Iterator[sqlite3.Connection]:
    """A connection to an SQLite file that commits only when told; ``mode`` is SQLite's: ``mode=rwc``, ``mode=ro``."""
    with clear_errors(path):
        uri = f"{path.absolute().as_uri()}?{mode}"
        connection = sqlite3.connect(uri, uri=True, timeout=busy_timeout_s, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours: ``RunDirectoryError`` for what is no database, else ``WorkError`` with advice."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explain(path, error) from error


def _explain(path: Path, error: sqlite3.Error) -> ParetopressError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # The primary code; the higher bits tell variants.
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CANTOPEN):
        return RunDirectoryError(f"expected a ledger in {path}, cannot read it ({error}); choose another run directory")
    advice = {
        sqlite3.SQLITE_FULL: "the disk is full; free some space",
        sqlite3.SQLITE_IOERR: "the disk cannot be read or written; check its space and health",
        sqlite3.SQLITE_BUSY: "another process locks the file; end it",
        sqlite3.SQLITE_READONLY: "it is open for reading only; open it for writing",
    }.get(code, "check the file and its disk")
    return WorkError(f"cannot use {path} ({error}): {advice} and start again; what was recorded is kept")
