"""Where candidates are evaluated: the protocol, what goes in and comes out, and the pool of this very process."""

from __future__ import annotations

import errno
import re
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from ..policies.errors import ParetopressError, WorkError

FaultKind = Literal["candidate", "infrastructure", "timeout", "memory"]

_MAX_MESSAGE = 1_000
_NO_MEMORY = ("out of memory", "can't allocate", "failed to allocate", "bad_alloc", "bad allocation")
_PASSING_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ESTALE, errno.EROFS}
)


@dataclass(frozen=True)
class Job:
    """One evaluation to be done.

    Parameters
    ----------
    id
        Comes back with the result.
    policy_json
        Canonical JSON of the policy.
    fidelity
        Name of the rung.
    timeout_s
        Wall time from the start of the evaluation, after which a pool that can kill its workers gives it up.
    payload
        Plain data that only the evaluator reads: seed, batch size, where to write artefacts.
    """

    id: str
    policy_json: str
    fidelity: str
    timeout_s: float
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Fault:
    """Why an evaluation gave no result.

    Parameters
    ----------
    kind
        ``candidate``: deterministic, not to be tried again; ``memory``: worth one more try with a smaller batch;
        ``timeout`` and ``infrastructure`` (a dead worker, a full disk): nothing is known about the candidate.
    error_class
        Name of the exception.
    message
        One line.
    """

    kind: FaultKind
    error_class: str
    message: str


@dataclass(frozen=True)
class Done:
    """What became of a job: a result, or a fault.

    ``result`` is the evaluator's dictionary and may hold bytes; ``seconds`` is the wall time of the evaluation.
    """

    job_id: str
    ok: bool
    result: dict[str, Any] | None
    fault: Fault | None
    host: str
    seconds: float


Evaluate = Callable[[Job], dict[str, Any]]
EvaluatorFactory = Callable[[], Evaluate]


class Pool(Protocol):
    """Evaluates jobs, each exactly once as far as the caller can see; what is tried again is the caller's business.

    A pool is made with an evaluator factory, which every worker calls once, before its first job.
    """

    @property
    def capacity(self) -> int:
        """How many jobs may be submitted and not yet returned."""
        ...

    def submit(self, job: Job) -> None:
        """Hand in a job.

        Raises
        ------
        WorkError
            Where ``capacity`` jobs are under way already, or the pool is closed.
        """
        ...

    def share(self, value: object) -> None:
        """Give every worker a value, those that come later too, before its next job; a new one takes the old one's place.

        A worker's function that has a method ``receive`` is called with it there; others do without.
        """
        ...

    def next_done(self, timeout_s: float | None) -> Done | None:
        """The next job that is done, in any order.

        ``None`` where none is done within ``timeout_s`` (seconds; ``None`` waits as long as it takes), and at once
        where none is under way.

        Raises
        ------
        WorkError
            Where the evaluator factory fails, so that no job can ever be done, or the pool is closed.
        """
        ...

    def close(self) -> None:
        """Give up what is under way and free the workers; a second call does nothing."""
        ...

    def __enter__(self) -> Pool: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class InProcessPool(AbstractContextManager["InProcessPool"]):
    """Evaluates in this process, one job after another, inside ``next_done``.

    It cannot interrupt an evaluation: ``timeout_s`` of a job and of ``next_done`` bind nothing here.
    """

    def __init__(self, factory: EvaluatorFactory, capacity: int = 1) -> None:
        self._factory = factory
        self._capacity = capacity
        self._evaluate: Evaluate | None = None
        self._waiting: deque[Job] = deque()
        self._shared: object = None
        self._closed = False

    @property
    def capacity(self) -> int:
        return self._capacity

    def submit(self, job: Job) -> None:
        check_room(self._closed, len(self._waiting), self._capacity)
        self._waiting.append(job)

    def share(self, value: object) -> None:
        check_open(self._closed)
        self._shared = value
        hand_over(self._evaluate, value)

    def next_done(self, timeout_s: float | None) -> Done | None:
        check_open(self._closed)
        if not self._waiting:
            return None
        if self._evaluate is None:
            self._evaluate = self._build()
            hand_over(self._evaluate, self._shared)
        return run_job(self._evaluate, self._waiting.popleft())

    def _build(self) -> Evaluate:
        try:
            return self._factory()
        except Exception as error:
            raise cannot_build(fault_of(error)) from error

    def close(self) -> None:
        self._closed = True
        self._waiting.clear()
        self._evaluate = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def hand_over(evaluate: Evaluate | None, value: object) -> None:
    """Give a worker's function what is shared with it, if it wants any and there is any."""
    receive = getattr(evaluate, "receive", None)
    if receive is not None and value is not None:
        receive(value)


def run_job(evaluate: Evaluate, job: Job) -> Done:
    """Evaluate a job here and now; whatever it raises becomes a fault."""
    start = time.perf_counter()
    try:
        result, fault = evaluate(job), None
    except Exception as error:
        result, fault = None, fault_of(error)
    return Done(job.id, fault is None, result, fault, socket.gethostname(), time.perf_counter() - start)


def fault_of(error: BaseException) -> Fault:
    """The fault that an evaluator's exception stands for."""
    return Fault(_kind(error), type(error).__name__, one_line(_describe(error)))


def one_line(text: str) -> str:
    """Text on one line, of at most 1,000 characters."""
    return " ".join(text.split())[:_MAX_MESSAGE]


def check_open(closed: bool) -> None:
    """Raise ``WorkError`` on a closed pool."""
    if closed:
        raise WorkError("this pool is closed; open a new one")


def check_room(closed: bool, under_way: int, capacity: int) -> None:
    """Raise ``WorkError`` where a pool can take no further job."""
    check_open(closed)
    if under_way >= capacity:
        raise WorkError(f"expected at most {capacity} jobs under way, this is one more; call next_done first")


def cannot_build(fault: Fault) -> WorkError:
    """The error for an evaluator factory that fails."""
    return WorkError(f"the evaluators cannot be built: {fault.error_class}: {fault.message}; mend that and start again")


def cause_of_death(text: str) -> str:
    """Say in a few words why a worker's process is gone, from what Ray writes about it; its own text is a paragraph."""
    if any(sign in text.lower() for sign in ("low on memory", "outofmemory", "out of memory error")):
        return "it was ended because the memory of its node was used up"
    if "node" in text.lower() and any(
        sign in text.lower() for sign in ("node has died", "node died", "node was terminated")
    ):
        return "its node is gone"
    if "receives a SIGTERM" in text:
        return "it was ended from outside, by SIGTERM"
    if code := re.search(r"exit code (\d+)", text):
        return f"it left with exit code {code[1]}"
    return "it was killed from outside, as the system does where memory ends, or it crashed"


def _kind(error: BaseException) -> FaultKind:
    if any(_is_out_of_memory(cause) for cause in _causes(error)):
        return "memory"
    if isinstance(error, (ConnectionError, TimeoutError)):
        return "infrastructure"
    if isinstance(error, OSError) and error.errno in _PASSING_ERRNOS:
        return "infrastructure"
    return "candidate"


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    # Ours speak of budgets and files in words of their own; runtimes report memory only in the text.
    return not isinstance(error, ParetopressError) and any(sign in str(error).lower() for sign in _NO_MEMORY)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _describe(error: BaseException) -> str:
    """The message; for an exception that nobody raised on purpose, also where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, ParetopressError) or not frames:
        return str(error)
    return f"{error} ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
