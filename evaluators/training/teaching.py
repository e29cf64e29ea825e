"""What a way of learning from a teacher is, and carrying one out with the training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import nn

from ..data import DataSet
from .loop import Loss, Recipe, train


@dataclass(frozen=True)
class Stage:
    """A training of its own: what ``loop.train`` takes.

    Parameters
    ----------
    model
        What is trained: the student, or the student with what is trained together with it and thrown away afterwards.
    data, recipe
        On what, and how.
    loss
        Of the model's outputs.
    """

    model: nn.Module
    data: DataSet
    recipe: Recipe
    loss: Loss


class Teaching(Protocol):
    """A way of learning from a teacher: a frozen dataclass of its hyper-parameters.

    The teacher is one network in evaluation mode; several are one as an ``ensemble.Ensemble``. It is never changed.
    """

    def loss(self, teacher: nn.Module, label_smoothing: float = 0.0) -> Loss:
        """Of the student's outputs, as any training takes it."""
        ...

    def stages(self, student: nn.Module, teacher: nn.Module, data: DataSet, recipe: Recipe) -> tuple[Stage, ...]:
        """The trainings, one after the other, each of which goes on with what the last one left in the student.

        Together they have as many steps as the recipe.

        Raises
        ------
        CandidateError
            Where nothing can be learned from what the student computes.
        """
        ...


def teach(
    student: nn.Module,
    teacher: nn.Module,
    teaching: Teaching,
    data: DataSet,
    recipe: Recipe,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> None:
    """Train the student in place; a checkpoint and ``on_epoch`` work as in ``loop.train``, epochs counted over all stages.

    Raises
    ------
    CandidateError
        Where the training diverges.
    """
    stages = teaching.stages(student, teacher, data, recipe)
    files = [_checkpoint(checkpoint, len(stages) - 1 - number) for number in range(len(stages))]
    # A stage's checkpoint holds all that the stages before it have taught.
    start = max((number for number, file in enumerate(files) if file is not None and file.exists()), default=0)
    for number, (stage, file) in enumerate(zip(stages, files)):
        if number >= start:
            before = sum(earlier.recipe.epochs for earlier in stages[:number])
            told = _from(on_epoch, before)
            train(stage.model, stage.data, stage.recipe, seed=seed, loss=stage.loss, checkpoint=file, on_epoch=told)
    for file in files[:-1]:
        if file is not None:
            file.unlink(missing_ok=True)


def _checkpoint(path: Path | None, stages_left: int) -> Path | None:
    return path.with_stem(f"{path.stem}-{stages_left}-left") if path is not None and stages_left else path


def _from(on_epoch: Callable[[int, float], None] | None, before: int) -> Callable[[int, float], None] | None:
    return None if on_epoch is None else lambda epoch, loss: on_epoch(before + epoch, loss)
