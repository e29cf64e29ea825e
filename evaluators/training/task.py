"""The training of one network as a job that any pool carries out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from ...policies.state import tensors_of
from ..paths import ModulePath
from ..pool import Job
from ..torchvision_guard import Guard
from .checkpoints import UNKEPT, Checkpoints, OnEpoch

CarryOut = Callable[[Path | None, OnEpoch], None]
"""(checkpoint, on_epoch), both as ``loop.train`` takes them: trains the task's network in place."""


@dataclass(frozen=True)
class TrainingTask:
    """A network and its training; as a pool's factory, it makes the function that carries it out, once.

    Parameters
    ----------
    model
        Trained in place, in the process that it is sent to.
    carry_out
        Its training; it holds this very network, and is sent together with it.
    epochs
        How long it takes.
    metadata
        What is written beside the trained weights, see ``provenance.Provenance.metadata``.
    """

    model: nn.Module
    carry_out: CarryOut
    epochs: int
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        # The network's class may live where only the driver looks, or in timm or torchvision, which need the guard before
        # they are first imported.
        return _rebuild, (ModulePath.here(), Guard.here(), self.model, self.carry_out, self.epochs, self.metadata)

    def __call__(self) -> Trainer:
        # The network's module may set another where it is imported.
        torch.set_default_dtype(torch.float32)
        return Trainer(self)


def _rebuild(
    _: ModulePath, __: Guard, model: nn.Module, carry_out: CarryOut, epochs: int, metadata: Mapping[str, str]
) -> TrainingTask:
    return TrainingTask(model, carry_out, epochs, metadata)


@dataclass(frozen=True)
class Trainer:
    """Answers with the trained network's ``weights`` as safetensors."""

    task: TrainingTask
    checkpoints: Checkpoints = UNKEPT

    def with_checkpoints(self, checkpoints: Checkpoints) -> Trainer:
        """The same with a place for its state."""
        return replace(self, checkpoints=checkpoints)

    def __call__(self, job: Job) -> dict[str, Any]:
        self.task.carry_out(self.checkpoints.of(0), lambda epoch, mean: self.checkpoints.heard(epoch, {"loss": mean}))
        state = tensors_of(self.task.model)
        tensors = {name: value.contiguous().clone() for name, value in state.items()}
        return {"weights": save(tensors, dict(self.task.metadata))}
