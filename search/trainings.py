"""Training the networks that a run starts from: in this process, or as a trial of Ray Tune."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from ..evaluators.cores import all_cores, available_cores
from ..evaluators.models import load_weights, save_weights
from ..evaluators.pool import Done, Job
from ..evaluators.training.task import TrainingTask
from ..evaluators.tune import Epoch, TunePool
from ..policies.errors import CandidateError, WorkError
from ..policies.files import write_bytes
from .rundir import RunDirectory
from .sections.search import PoolConfig

Say = Callable[[str], None]


def train_network(
    task: TrainingTask, weights: Path, checkpoint: Path, settings: PoolConfig, run: RunDirectory, say: Say
) -> None:
    """Train a network in place and write its weights to a file; what was killed goes on from its last epoch.

    Parameters
    ----------
    checkpoint
        Where a training in this process keeps its state.

    Raises
    ------
    CandidateError
        Where the training diverges.
    """

    def told(epoch: int, loss: float) -> None:
        say(f"  epoch {epoch}/{task.epochs}: loss {loss:.4f}")

    if settings.train == "tune":
        done = _trial(task, weights.stem, settings, run.trials / weights.stem, told)
        write_bytes(weights, _weights(done, weights.stem))
        load_weights(task.model, weights)
        run.drop_trials(weights.stem)
        return
    # No worker is at work yet: all cores are free.
    with all_cores():
        task.carry_out(checkpoint, told)
    save_weights(task.model, weights, task.metadata)
    checkpoint.unlink(missing_ok=True)


def _trial(
    task: TrainingTask, name: str, settings: PoolConfig, trials: Path, told: Callable[[int, float], None]
) -> Done | None:
    def on_epoch(epoch: Epoch) -> None:
        told(epoch.number, epoch.figures["loss"])

    with TunePool(task, trials, 1, available_cores(), settings.address, on_epoch=on_epoch) as pool:
        # How long an epoch takes is not known before the first.
        pool.submit(Job(name, "{}", name, math.inf))
        return pool.next_done(None)


def _weights(done: Done | None, name: str) -> bytes:
    if done is not None and done.result is not None:
        return bytes(done.result["weights"])
    assert done is not None and done.fault is not None, "a pool that does not wait for a time answers"
    if done.fault.error_class == CandidateError.__name__:
        raise CandidateError(done.fault.message)
    raise WorkError(f"training the {name} network failed: {done.fault.message}; mend that and resume the run")
