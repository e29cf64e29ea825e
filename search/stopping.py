"""SIGTERM ends a command as ctrl-C does."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` where SIGTERM comes, once; afterwards the signal does what it did before.

    Whoever ends processes often sends it twice (to the process and to its group): while the command closes what it has
    opened, another one changes nothing. A process that was started to ignore SIGTERM goes on ignoring it, and outside of
    the main thread, where Python hears no signals, nothing is done.
    """
    before = signal.getsignal(signal.SIGTERM)
    if before == signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        # None stands for a handler that was not set from Python, which cannot be put back.
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, _go_on_closing)
    raise KeyboardInterrupt


def _go_on_closing(number: int, frame: FrameType | None) -> None:
    """Nothing: a handler of its own, unlike SIG_IGN, is not handed on to processes that are started meanwhile."""
