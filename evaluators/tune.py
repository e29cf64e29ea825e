"""Trainings as trials of Ray Tune: each keeps its state after every epoch, and goes on from it where its process dies.

Tune can restore an experiment from what it pickled, but a pickle that lies in a run directory is never read here. A driver
that starts again makes a new experiment of what is not done yet, and each of its trials takes up the last whole state that
the experiments before it kept (safetensors); what is done, the ledger knows.
"""

from __future__ import annotations

import logging
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from ..policies.errors import WorkError
from .pool import (
    Done,
    Evaluate,
    EvaluatorFactory,
    Fault,
    Job,
    cannot_build,
    check_open,
    check_room,
    hand_over,
    one_line,
)
from .ray_pool import cpus_per_worker, start_ray
from .trial import go_on, lost, name_of, newest_whole, outcome, read_answer, take_up

Scheduler = Literal["none", "asha"]
MAX_FAILURES = 2
"""How often a trial whose process died is started again; what is tried beyond that is the caller's business."""
MOST_JOBS = 256
_PATIENCE_S = 60.0
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # The newer way to print has no silence.
    "RAY_AIR_NEW_OUTPUT": "0",
    # A trial that is exported and measured has nothing new to say about its epochs.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Paths of data sets may be relative to where the driver stands.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


@dataclass(frozen=True)
class Epoch:
    """An epoch of a trial that is done and kept.

    Parameters
    ----------
    job
        Whose.
    number
        Epochs that are done.
    figures
        ``loss``, and ``error_pct`` under a scheduler.
    host, pid
        Where its process runs.
    """

    job: Job
    number: int
    figures: Mapping[str, float]
    host: str
    pid: int


class TunePool(AbstractContextManager["TunePool"]):
    """A pool whose jobs are trainings: those that are handed in together are one experiment.

    An experiment runs in a thread beside the caller from the first ``next_done`` after they were handed in; jobs that come
    while it runs are the next one's. A trial whose process dies, or that is not heard of for its job's ``timeout_s``, is
    started again from its last epoch, at most twice; then it comes back as an ``infrastructure`` fault.

    Parameters
    ----------
    factory
        As for ``RayPool``; a worker's function that has a method ``with_checkpoints`` is given a place for its states by
        it before its job.
    storage
        A directory for the experiments that every node of the cluster reaches.
    workers, threads_per_worker, address
        As for ``RayPool``.
    scheduler
        ``asha`` stops the worse half of the trials at 1, 2, 4, ... epochs by their error on validation pictures
        (1810.05934); a stopped one comes back as a ``candidate`` fault. Only for candidates that cost the same.
    max_epochs
        Of a trial, for the scheduler.
    on_epoch
        Called in the experiment's thread, when the state is kept and before the trial goes on.

    Raises
    ------
    WorkError
        From ``next_done`` where Ray cannot be started or reached, or an experiment fails as a whole. Ray is started for the
        first job that no experiment before has kept the answer of.
    """

    def __init__(
        self,
        factory: EvaluatorFactory,
        storage: Path,
        workers: int,
        threads_per_worker: int | None = None,
        address: str | None = None,
        *,
        scheduler: Scheduler = "none",
        max_epochs: int = 1,
        on_epoch: Callable[[Epoch], None] = lambda _: None,
    ) -> None:
        os.environ.update(_SETTINGS)
        self._storage = storage.absolute()
        self._scheduler, self._max_epochs, self._on_epoch = scheduler, max_epochs, on_epoch
        self._workers = workers
        self._closed = threading.Event()
        self._waiting: list[Job] = []
        self._under_way: set[str] = set()
        self._answers: queue.Queue[Done | WorkError | None] = queue.Queue()
        self._experiment: threading.Thread | None = None
        self._factory = factory
        self._shared: object = None
        self._threads_per_worker, self._address = threads_per_worker, address
        self._ray: Any = None
        self._owns_ray = False
        # What goes wrong comes back as a fault.
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)

    @property
    def capacity(self) -> int:
        return MOST_JOBS

    def submit(self, job: Job) -> None:
        check_room(self._closed.is_set(), len(self._under_way), self.capacity)
        self._under_way.add(job.id)
        self._waiting.append(job)

    def share(self, value: object) -> None:
        check_open(self._closed.is_set())
        self._shared = value

    def next_done(self, timeout_s: float | None) -> Done | None:
        check_open(self._closed.is_set())
        limit_s = None if timeout_s is None else time.monotonic() + timeout_s
        while self._under_way:
            if self._experiment is None:
                self._start()
            try:
                answer = self._answers.get(timeout=None if limit_s is None else max(0.0, limit_s - time.monotonic()))
            except queue.Empty:
                return None
            if isinstance(answer, WorkError):
                raise answer
            if answer is not None:
                self._under_way.discard(answer.job_id)
                return answer
            self._experiment = None
        return None

    def _start(self) -> None:
        """Begin an experiment of all that waits, but for what one before has kept the answers of."""
        if not self._waiting:
            raise WorkError(
                f"an experiment has ended without the answers of {len(self._under_way)} trials; resume the run"
            )
        jobs, self._waiting = self._waiting, []
        known = [answer for job in jobs if (answer := self._known(job)) is not None]
        for answer in known:
            self._answers.put(answer)
        answered = {answer.job_id for answer in known}
        unanswered = [job for job in jobs if job.id not in answered]
        if unanswered and self._ray is None:
            self._ray, self._owns_ray = start_ray(self._workers, self._threads_per_worker, self._address)
        self._experiment = threading.Thread(target=self._carry_out, args=(unanswered,), daemon=True)
        self._experiment.start()

    def _known(self, job: Job) -> Done | None:
        kept = newest_whole(self._storage, name_of(job))
        return None if kept is None else read_answer(kept, job)

    def _carry_out(self, jobs: list[Job]) -> None:
        """One experiment, in its own thread: every way out of it ends with ``None``."""
        try:
            if jobs:
                self._tuner(jobs).fit()
        except _ClosedError:
            # Nobody waits for what is left of it.
            return
        except WorkError as error:
            self._answers.put(error)
        except Exception as error:
            self._answers.put(WorkError(f"the training experiment failed: {one_line(str(error))}; resume the run"))
        finally:
            self._answers.put(None)

    def _tuner(self, jobs: list[Job]) -> Any:
        from ray import tune

        cpus = float(self._ray.cluster_resources().get("CPU", 1.0))
        threads = self._threads_per_worker or max(1, int(cpus) // self._workers)
        names = [name_of(job) for job in jobs]
        trial = tune.with_parameters(
            _train,
            factory=self._factory,
            shared=self._shared,
            jobs=jobs,
            kept=[newest_whole(self._storage, name) for name in names],
            threads=threads,
            validates=self._scheduler != "none",
        )
        watcher = _watcher(jobs, self._answers.put, self._on_epoch, self._closed)
        return tune.Tuner(
            tune.with_resources(trial, {"cpu": cpus_per_worker(cpus, self._workers, threads)}),
            param_space={"index": tune.grid_search(list(range(len(jobs))))},
            tune_config=tune.TuneConfig(
                scheduler=self._scheduling(),
                max_concurrent_trials=self._workers,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: names[trial.config["index"]],
            ),
            run_config=tune.RunConfig(
                name=_next_name(self._storage),
                storage_path=str(self._storage),
                failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                callbacks=[watcher],
                verbose=0,
            ),
        )

    def _scheduling(self) -> Any:
        if self._scheduler == "none":
            return None
        from ray.tune.schedulers import ASHAScheduler

        return ASHAScheduler(
            time_attr="epoch",
            metric="error_pct",
            mode="min",
            max_t=max(1, self._max_epochs),
            reduction_factor=2,
            # Who has come to the end is measured and exported, however it compares.
            stop_last_trials=False,
        )

    def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        if self._experiment is not None:
            self._experiment.join(_PATIENCE_S)
        if self._owns_ray and self._ray.is_initialized():
            self._ray.shutdown()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _ClosedError(Exception):
    """Ends an experiment whose pool was closed."""


def _train(
    config: dict[str, Any],
    factory: EvaluatorFactory,
    shared: object,
    jobs: list[Job],
    kept: list[Path | None],
    threads: int,
    validates: bool,
) -> None:
    """A trial, in its own process: takes up what is kept of it, and keeps what it comes to."""
    import torch
    from ray import tune

    torch.set_num_threads(threads)
    job, before, given = jobs[config["index"]], kept[config["index"]], tune.get_checkpoint()
    with tempfile.TemporaryDirectory(prefix="paretopress-") as scratch:
        folder = Path(scratch)

        def report(figures: Mapping[str, Any], keeps: bool = True) -> None:
            tune.report(dict(figures), checkpoint=tune.Checkpoint.from_directory(folder) if keeps else None)

        take_up(folder, Path(given.path) if given else None, before)
        go_on(folder, job, lambda: _built(factory, shared), report, validates)


def _built(factory: EvaluatorFactory, shared: object) -> Evaluate:
    evaluate = factory()
    hand_over(evaluate, shared)
    return evaluate


def _watcher(
    jobs: Sequence[Job],
    answer: Callable[[Done | WorkError], None],
    on_epoch: Callable[[Epoch], None],
    closed: threading.Event,
) -> Any:
    """Tune's callback; its base class is Ray's, which is not imported before it is needed."""
    from ray.tune import Callback

    class Watcher(_Watching, Callback):
        def __reduce__(self) -> tuple[Any, ...]:
            # Tune pickles all parts of an experiment, for a restore that is never asked for.
            return Callback, ()

    return Watcher(jobs, answer, on_epoch, closed)


@dataclass(eq=False)
class _Watching:
    """Says what became of each trial, and kills those that are not heard of: the events that Tune tells of.

    Parameters
    ----------
    jobs
        Those of the trials, by the index in their configuration.
    answer, on_epoch
        Told of each answer, and of each epoch whose state is kept.
    closed
        Set where nobody waits any longer.
    """

    jobs: Sequence[Job]
    answer: Callable[[Done | WorkError], None]
    on_epoch: Callable[[Epoch], None]
    closed: threading.Event
    _heard_s: dict[str, float] = field(default_factory=dict)
    _hung: set[str] = field(default_factory=set)
    _failed: WorkError | None = None

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        from ray import kill

        now_s = time.monotonic()
        for trial in trials:
            if now_s - self._heard_s.get(trial.trial_id, now_s) > self._job(trial).timeout_s:
                self._hung.add(trial.trial_id)
                self._heard_s.pop(trial.trial_id)
                kill(trial.temporary_state.ray_actor)

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._failed is not None:
            raise self._failed
        if self.closed.is_set():
            raise _ClosedError

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._heard_s[trial.trial_id] = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        self._heard_s[trial.trial_id] = time.monotonic()
        self._hung.discard(trial.trial_id)

    def on_trial_save(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        last = trial.last_result
        if "epoch" in last:
            figures = {name: last[name] for name in ("loss", "error_pct") if name in last}
            self.on_epoch(Epoch(self._job(trial), last["epoch"], figures, last["hostname"], last["pid"]))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._heard_s.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._heard_s.pop(trial.trial_id, None)
        # Tune also pickles the exception, but its text is enough to tell what happened.
        text = Path(trial.error_file).read_text(encoding="utf-8")
        times = 0 if trial.trial_id not in self._hung else MAX_FAILURES + 1
        self.answer(lost(self._job(trial), trial.last_result, text, times))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._heard_s.pop(trial.trial_id, None)
        last = trial.last_result
        if "unbuilt" in last:
            self._failed = cannot_build(Fault(**last["unbuilt"]))
        else:
            kept = Path(trial.checkpoint.path) if trial.checkpoint else None
            self.answer(outcome(self._job(trial), last, kept))

    def _job(self, trial: Any) -> Job:
        return self.jobs[trial.config["index"]]


def _next_name(storage: Path) -> str:
    """A number that no experiment in this directory has: what lies there is never read as one of Tune's."""
    taken = [int(path.name) for path in storage.glob("*") if path.name.isdigit()]
    return f"{max(taken, default=0) + 1:06d}"
