"""Evaluation by Ray actors: one process a worker, killed and replaced where it dies, hangs or takes too long."""

from __future__ import annotations

import io
import logging
import math
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from torch import Tensor

from ..policies.errors import WorkError
from .paths import package_variables
from .pool import (
    Done,
    Evaluate,
    EvaluatorFactory,
    Fault,
    FaultKind,
    Job,
    cannot_build,
    cause_of_death,
    check_open,
    check_room,
    fault_of,
    hand_over,
    one_line,
    run_job,
)
from .rehearsal import own_end

MAX_BUILD_FAILURES = 3
"""Workers that a factory may kill, one after another, before it is given up."""
MAX_KILLED = 30
"""Workers that may be killed from outside while they are built, none coming up between: enough to outlast what kills them."""
_POLL_S = 1.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_enable_metrics_collection": "0",
    # Ray prints a dead worker's obituary on the driver's standard output; the pool reports it as a fault.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    # By default workers give way to whatever else runs, and measure their own waiting.
    "RAY_worker_niceness": "0",
}


class _Worker:
    """Lives in an actor's process."""

    def __init__(self) -> None:
        self._evaluate: Evaluate | None = None

    def rehearse(self, factory: bytes) -> Fault | None:
        """Try the pickled factory in a process of its own: the fault where it ends that process."""
        end = own_end(factory)
        if end is None:
            return None
        return Fault("infrastructure", "ActorDiedError", f"what builds a worker ends its process ({end})")

    def build(self, factory: EvaluatorFactory, threads: int) -> tuple[str, int, Fault | None]:
        """Host, process id, and why the factory failed, if it did."""
        import torch

        torch.set_num_threads(threads)
        fault = None
        try:
            self._evaluate = factory()
        except Exception as error:
            fault = fault_of(error)
        return socket.gethostname(), os.getpid(), fault

    def receive(self, value: object) -> None:
        hand_over(self._evaluate, value)

    def run(self, job: Job) -> Done:
        assert self._evaluate is not None, "the pool gives jobs only to workers that are built"
        return run_job(self._evaluate, job)


@dataclass
class _Slot:
    """A worker's place: building (``ready`` is false), idle (nothing is ``awaited``), or evaluating ``job``.

    Before it is ``built`` a rehearsal may be awaited; ``answered`` says that either came to its end.
    """

    actor: Any
    awaited: Any
    built: Any
    started_s: float
    deadline_s: float
    answered: bool = False
    ready: bool = False
    job: Job | None = None
    host: str = "unknown"
    pid: int = 0


class RayPool(AbstractContextManager["RayPool"]):
    """One Ray actor a worker; Ray itself retries nothing.

    A job whose worker dies comes back as an ``infrastructure`` fault within seconds; one that passes its ``timeout_s``
    as a ``timeout``, and its worker is killed. Either way a fresh worker takes the place, and what the old one may
    still answer is never looked at. All of this happens in ``next_done`` only.

    Parameters
    ----------
    factory
        Sent once; must be importable in the workers or picklable by cloudpickle.
    workers
        How many processes.
    threads_per_worker
        For torch, OpenMP and BLAS; ``None``: cores ÷ workers, at least 1.
    address
        Of a running Ray cluster; ``None`` starts Ray on this machine and stops it on ``close``. Where Ray is
        initialised in this process already, that one is used and left running.
    startup_timeout_s
        How long to wait for the first worker (for Ray to find room for it, and for the factory).

    Raises
    ------
    WorkError
        Where Ray cannot be started or reached. From ``next_done`` where no worker can be built: the factory raised, it
        ended three workers in a row, thirty were killed from outside with none coming up, or Ray found no room for any.
    """

    def __init__(
        self,
        factory: EvaluatorFactory,
        workers: int,
        threads_per_worker: int | None = None,
        address: str | None = None,
        *,
        startup_timeout_s: float = 180.0,
    ) -> None:
        assert workers >= 1, "the configuration asks for at least one worker"
        self._closed = False
        self._slots: list[_Slot] = []
        self._waiting: deque[Job] = deque()
        self._finished: deque[Done] = deque()
        self._build_failures = self._killed = 0
        self._shared: Any = None
        self._factory_here, self._pickled = factory, None
        self._startup_timeout_s = startup_timeout_s
        self._ray, self._owns_ray = start_ray(workers, threads_per_worker, address)
        try:
            cpus = float(self._ray.cluster_resources().get("CPU", 1.0))
            self._threads = threads_per_worker or max(1, int(cpus) // workers)
            self._actor_class = self._ray.remote(_Worker).options(
                num_cpus=cpus_per_worker(cpus, workers, self._threads),
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy="SPREAD",
                runtime_env={"env_vars": dict.fromkeys(_THREAD_VARIABLES, str(self._threads)) | package_variables()},
            )
            self._factory = self._ray.put(factory)
            self._slots.extend(self._new_slot() for _ in range(workers))
        except BaseException:
            self.close()
            raise

    @property
    def capacity(self) -> int:
        return len(self._slots)

    def pids(self) -> list[int]:
        """Process ids of the workers that are built, each on its own host."""
        return [slot.pid for slot in self._slots if slot.ready]

    def submit(self, job: Job) -> None:
        check_room(self._closed, self._under_way(), self.capacity)
        self._waiting.append(job)
        self._hand_out()

    def share(self, value: object) -> None:
        check_open(self._closed)
        # Put once where all workers of a node read it; a worker carries out its calls in order, so it comes before jobs.
        self._shared = self._ray.put(value)
        for slot in self._slots:
            slot.actor.receive.remote(self._shared)

    def next_done(self, timeout_s: float | None) -> Done | None:
        check_open(self._closed)
        limit_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while not self._finished:
            if not self._under_way():
                return None
            self._hand_out()
            remaining_s = limit_s - time.monotonic()
            self._look(max(0.0, min(_POLL_S, remaining_s)))
            if remaining_s <= 0:
                break
        return self._finished.popleft() if self._finished else None

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._ray.is_initialized():
            for slot in self._slots:
                self._ray.kill(slot.actor)
            if self._owns_ray:
                self._ray.shutdown()
        self._waiting.clear()
        self._finished.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _under_way(self) -> int:
        return len(self._waiting) + len(self._finished) + sum(slot.job is not None for slot in self._slots)

    def _hand_out(self) -> None:
        idle = (slot for slot in self._slots if slot.ready and slot.job is None)
        for slot in idle:
            if not self._waiting:
                return
            slot.job = self._waiting.popleft()
            slot.awaited = slot.actor.run.remote(slot.job)
            slot.started_s = time.monotonic()
            slot.deadline_s = slot.started_s + slot.job.timeout_s

    def _look(self, wait_s: float) -> None:
        """Wait for any worker to answer, then settle what came and what is overdue."""
        awaited = {slot.awaited: index for index, slot in enumerate(self._slots) if slot.awaited is not None}
        until_deadline_s = min(slot.deadline_s for slot in self._slots) - time.monotonic()
        self._ray.wait(list(awaited), timeout=max(0.0, min(wait_s, until_deadline_s)))
        # All that is there counts, also where the caller came back after a deadline.
        answered, _ = self._ray.wait(list(awaited), num_returns=len(awaited), timeout=0)
        for reference in answered:
            self._settle(awaited[reference])
        now_s = time.monotonic()
        for index, slot in enumerate(self._slots):
            if slot.deadline_s <= now_s:
                self._expire(index)
        self._hand_out()

    def _settle(self, index: int) -> None:
        slot = self._slots[index]
        try:
            answer = self._ray.get(slot.awaited)
        except self._ray.exceptions.RayError as error:
            self._lose(index, self._fault_of_ray(error, slot))
            return
        if slot.job is not None:
            slot.awaited, slot.deadline_s, slot.job = None, math.inf, None
            self._finished.append(answer)
            return
        if slot.awaited is not slot.built:
            self._settle_rehearsal(index, answer)
            return
        slot.awaited, slot.deadline_s, slot.answered = None, math.inf, True
        slot.host, slot.pid, fault = answer
        if fault is not None:
            self._lose(index, fault)
        else:
            slot.ready = True
            self._build_failures = self._killed = 0

    def _settle_rehearsal(self, index: int, fault: Fault | None) -> None:
        slot = self._slots[index]
        if fault is not None:
            slot.answered = True
            self._lose(index, fault)
            return
        slot.awaited, slot.deadline_s = slot.built, time.monotonic() + self._startup_timeout_s

    def _expire(self, index: int) -> None:
        slot = self._slots[index]
        if slot.job is not None:
            self._lose(index, Fault("timeout", "TimeoutError", f"no result within {slot.job.timeout_s:g} s"))
        elif any(other.ready for other in self._slots):
            # A node is gone or busy: the others work on, and Ray starts this worker as soon as there is room again.
            slot.deadline_s = time.monotonic() + self._startup_timeout_s
        else:
            raise WorkError(
                f"Ray has started none of {self.capacity} workers of {self._threads} cores within"
                f" {self._startup_timeout_s:g} s; free some cores of the cluster or ask for fewer workers or threads"
            )

    def _lose(self, index: int, fault: Fault) -> None:
        """Report the loss of a worker and put a fresh one in its place; answers of the old one are never looked at."""
        slot = self._slots[index]
        self._ray.kill(slot.actor)
        if slot.job is None:
            self._count_unbuilt(slot, fault)
        else:
            seconds = time.monotonic() - slot.started_s
            self._finished.append(Done(slot.job.id, False, None, fault, slot.host, seconds))
        self._slots[index] = self._new_slot()

    def _count_unbuilt(self, slot: _Slot, fault: Fault) -> None:
        """Give the factory up where it is to blame for workers that are not built.

        Ray cannot tell a process that was killed from one that ended itself. So what counts against the factory is its own
        answer alone: once a worker is gone without one, the next workers try the factory in a process of its own, whose end
        they read. A worker that disappears all the same was killed from outside, and is replaced like any other.
        """
        if slot.answered:
            self._build_failures += 1
            if fault.kind == "candidate" or self._build_failures >= MAX_BUILD_FAILURES:
                raise cannot_build(fault)
            return
        self._killed += 1
        if fault.kind == "candidate":
            raise cannot_build(fault)
        # As long as another works, the run goes on.
        if self._killed >= MAX_KILLED and not any(other.ready for other in self._slots):
            raise cannot_build(replace(fault, message=f"{self._killed} workers in a row: {fault.message}"))

    def _new_slot(self) -> _Slot:
        actor = self._actor_class.remote()
        now_s = time.monotonic()
        rehearsed = actor.rehearse.remote(self._pickled_factory()) if self._killed or self._build_failures else None
        built = actor.build.remote(self._factory, self._threads)
        if self._shared is not None:
            actor.receive.remote(self._shared)
        return _Slot(actor, built if rehearsed is None else rehearsed, built, now_s, now_s + self._startup_timeout_s)

    def _pickled_factory(self) -> Any:
        """The factory as bytes, which a worker gets without unpickling them; made where the first worker was lost."""
        if self._pickled is None:
            self._pickled = self._ray.put(self._ray.cloudpickle.dumps(self._factory_here))
        return self._pickled

    def _fault_of_ray(self, error: Exception, slot: _Slot) -> Fault:
        exceptions = self._ray.exceptions
        if isinstance(error, exceptions.RayTaskError):
            # Code of ours that ran to its end: a factory that cannot be loaded, a result that cannot be sent.
            if isinstance(error.cause, ModuleNotFoundError):
                return Fault("candidate", type(error.cause).__name__, _unknown_module(error.cause))
            return Fault("candidate", type(error.cause).__name__, one_line(str(error.cause)))
        kind: FaultKind = "memory" if isinstance(error, exceptions.OutOfMemoryError) else "infrastructure"
        where = f"process {slot.pid} on {slot.host}" if slot.ready else "process, which was being built,"
        return Fault(kind, type(error).__name__, f"the worker's {where} is gone: {cause_of_death(str(error))}")


def _unknown_module(error: ModuleNotFoundError) -> str:
    return (
        f"the workers have no module '{error.name}', which the network or its data needs; install it, put its folder on"
        " PYTHONPATH (on every node), or choose pool.kind: in-process"
    )


def start_ray(workers: int, threads: int | None, address: str | None) -> tuple[Any, bool]:
    """Ray's module, and whether it was started here."""
    if address is not None:
        _check_reachable(address)
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return ray, False
    cpus = None if address else max(os.cpu_count() or 1, workers * (threads or 1))
    try:
        with _callers_sigterm():
            ray.init(
                address=address or "local",
                num_cpus=cpus,
                include_dashboard=None if address else False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": package_variables(), **({} if address else local_environment())},
            )
    # Where its processes do not come up in time, Ray raises an Exception of no class of its own.
    except Exception as error:
        where = f"reach the Ray cluster at {address}" if address else "start Ray on this machine"
        raise WorkError(
            f"cannot {where}: {one_line(str(error))}; check that, or use workers in this process"
        ) from error
    return ray, True


def local_environment() -> dict[str, str]:
    """Make the runtime environment of a Ray on this machine: its workers' shell command does not quote the interpreter's path."""
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


def pickle_without_tensors(value: object) -> bytes:
    """Return a value as Ray pickles it, but for the numbers of tensors, to see whether that can be done."""
    from ray.cloudpickle import CloudPickler

    class Pickler(CloudPickler):
        def persistent_id(self, part: object) -> str | None:
            return "tensor" if isinstance(part, Tensor) else None

    content = io.BytesIO()
    Pickler(content).dump(value)
    return content.getvalue()


@contextmanager
def _callers_sigterm() -> Iterator[None]:
    """Give SIGTERM back to the handler that the caller had set: Ray puts its own in place, which ends the process at once."""
    before = signal.getsignal(signal.SIGTERM)
    is_set = before not in (signal.SIG_DFL, None) and threading.current_thread() is threading.main_thread()
    try:
        yield
    except SystemExit as leaving:
        # Where the signal comes while Ray starts, its handler is the one that hears it.
        if is_set:
            raise KeyboardInterrupt from leaving
        raise
    finally:
        if is_set:
            signal.signal(signal.SIGTERM, before)


def _check_reachable(address: str) -> None:
    """Ray tries an address that nobody answers at for minutes; this takes seconds."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise WorkError(
            f"cannot reach the Ray cluster at {address} ({error.strerror or error});"
            " start it there with `ray start --head`, or give no address"
        ) from error


def cpus_per_worker(cpus: float, workers: int, threads: int) -> float:
    """Cores that an actor reserves: one a thread where there are as many, else an even share (Ray: whole above 1)."""
    share = min(float(threads), cpus / workers)
    return float(int(share)) if share >= 1 else math.floor(share * 100) / 100
