"""A factory tried in a process of its own, whose end can be read: Ray says only that a worker's process is gone."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from contextlib import suppress

FROM_OUTSIDE = frozenset({"SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGSTOP", "SIGXCPU"})
"""Signals that a process does not meet by its own faults; the system's own choice where memory ends is SIGKILL."""
_DONE = b"rehearsed"
# What the factory raises is told by the worker, which calls it again; where the worker is gone, nobody waits.
_CHILD = """
import os, pickle, sys, threading
def leave_with_parent():
    while os.read(0, 4096):
        pass
    os._exit(1)
sys.path[:] = pickle.load(sys.stdin.buffer)
factory = pickle.load(sys.stdin.buffer)
threading.Thread(target=leave_with_parent, daemon=True).start()
try:
    pickle.loads(factory)()
except Exception:
    pass
sys.stdout.flush()
os.write(1, b"rehearsed")
os._exit(0)
"""


def own_end(factory: bytes) -> str | None:
    """Say how a factory ends the process that unpickles and calls it: ``exit code 3``, ``SIGSEGV``.

    Parameters
    ----------
    factory
        Pickled by cloudpickle, by the driver: what unpickling it does to a process is part of the trial.

    Returns
    -------
    str or None
        ``None`` where it returns or raises, and where the process was killed from outside.
    """
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        # Where the child is gone before it has read all, its end is what counts.
        with suppress(BrokenPipeError):
            pickle.dump(sys.path, child.stdin)
            pickle.dump(factory, child.stdin)
            child.stdin.flush()
        said = child.stdout.read()
        code = child.wait()
        # Closing flushes what the child has not read.
        with suppress(BrokenPipeError):
            child.stdin.close()
    return None if said.endswith(_DONE) else _own(code)


def _own(code: int) -> str | None:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
    return None if name in FROM_OUTSIDE else name
