"""From a configuration to the networks that a student learns from, and how it does."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..evaluators.data import DataSet
from ..evaluators.models import build_model, load_weights
from ..evaluators.training.ensemble import as_one
from ..evaluators.training.hints import Hint
from ..evaluators.training.loop import train
from ..evaluators.training.methods import make_hint, make_teaching
from ..evaluators.training.teaching import teach
from ..evaluators.workbench import Settings
from ..policies.errors import InputError, ModelError
from ..policies.own_network import into_evaluation, settle_calls
from .sections.training import TeacherConfig, TrainConfig


def read_teachers(
    section: TrainConfig, student: nn.Module, data: DataSet, seed: int, where: str
) -> tuple[nn.Module, ...]:
    """The section's teachers, in evaluation mode.

    Parameters
    ----------
    student
        What learns from them: teachers without a name are built like it, and all have its outputs.
    where
        The section's name, for messages.

    Raises
    ------
    ModelError
        Where a network cannot be built, its weights do not fit, or its outputs are others than the student's.
    """
    example = data.preprocess(data.calibration.images[:1])
    found = []
    for number, entry in enumerate(section.teachers):
        try:
            teacher = into_evaluation(_teacher(entry, student, data, seed))
        except InputError as error:
            raise ModelError(f"{where}.teachers.{number}: {error}") from error
        _check_outputs(teacher, student, example, f"{where}.teachers.{number}")
        settle_calls(teacher, example)
        found.append(teacher)
    return tuple(found)


def settled_hint(
    section: TrainConfig, student: nn.Module, teachers: Sequence[nn.Module], x: Tensor, where: str
) -> Hint | None:
    """The section's hint with both layers named; ``None`` where it asks for none.

    Raises
    ------
    ConfigError
        Where a layer is unknown, or the two cannot be compared.
    """
    if section.teach != "hints":
        return None
    hint, networks = section.hint, (student, as_one(teachers))
    return make_hint(hint.student, hint.guide, hint.share, networks, x, f"{where}.hint")


def known_by(settings: Settings, digests: Sequence[str]) -> str:
    """What results are known by beside the settings that are shown: nothing where the dense network's soft targets teach."""
    if settings.teach == "soft" and not digests:
        return ""
    return f"{settings.teach}{settings.hint}{','.join(digests)}"


def learned(
    model: nn.Module,
    data: DataSet,
    section: TrainConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> None:
    """Train the dense network in place by its recipe: from labels, or from the recipe's teachers too.

    Raises
    ------
    InputError
        Where the teachers do not fit.
    CandidateError
        Where the training diverges.
    """
    recipe, where = section.recipe(), "model.train"
    teachers = read_teachers(section, model, data, seed, where)
    if not teachers:
        train(model, data, recipe, seed=seed, checkpoint=checkpoint, on_epoch=on_epoch)
        return
    example = data.preprocess(data.calibration.images[:1])
    hint = settled_hint(section, model, teachers, example, where)
    teaching = make_teaching(section.teach, section.temperature, section.teacher_weight, hint)
    teach(model, as_one(teachers), teaching, data, recipe, seed=seed, checkpoint=checkpoint, on_epoch=on_epoch)


def _teacher(entry: TeacherConfig, student: nn.Module, data: DataSet, seed: int) -> nn.Module:
    if entry.name is None:
        model = copy.deepcopy(student)
    else:
        channels = data.input_shape[0] if data.input_shape[0] != 3 else None
        classes = entry.num_classes or data.num_classes
        model = build_model(entry.name, num_classes=classes, in_channels=channels, seed=seed, **entry.arguments)
    load_weights(model, entry.weights)
    return model


def _check_outputs(teacher: nn.Module, student: nn.Module, x: Tensor, where: str) -> None:
    try:
        with torch.no_grad():
            came = teacher(x.clone())
    except Exception as error:
        raise ModelError(f"{where}: the network fails on pictures of shape {tuple(x.shape)}: {error}") from error
    with torch.no_grad():
        expected = tuple(into_evaluation(copy.deepcopy(student))(x).shape)
    shape = tuple(came.shape) if isinstance(came, Tensor) else type(came).__name__
    if shape != expected:
        raise ModelError(f"{where}: expected logits {expected} like those of the network that learns; came {shape}")
