"""The training loop: one for dense networks, recovery and everything else that trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from ...policies.errors import CandidateError
from ...policies.files import write_atomically
from ...policies.layout import layout
from ...policies.own_network import into_evaluation
from ...policies.state import load_tensors, tensors_of
from ..data import DataSet, Pictures
from .augment import Augment
from .penalties.base import Penalty

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(input (N, C, H, W), logits (N, K), labels (N,)) -> scalar."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Parameters
    ----------
    epochs, batch_size
        Passes over the training pictures, and pictures a step.
    optimizer
        ``sgd`` (Nesterov, momentum 0.9) or ``adamw``.
    lr
        Peak learning rate of the one-cycle schedule (linear warm-up over ``warmup``, then cosine to zero).
    warmup
        Share of the steps that warm up.
    weight_decay
        Applied to tensors of two or more dimensions.
    label_smoothing
        Of the cross-entropy.
    augment
        Random changes of the pictures.
    penalties
        Terms of the weights that are added to the loss.
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.1
    warmup: float = 0.15
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    augment: Augment = field(default_factory=Augment)
    penalties: tuple[Penalty, ...] = ()


def cross_entropy(recipe: Recipe) -> Loss:
    """The ordinary loss of a classifier."""

    def loss(_: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)

    return loss


def train(
    model: nn.Module,
    data: DataSet,
    recipe: Recipe,
    *,
    seed: int,
    loss: Loss | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> None:
    """Train in place on ``data.train``; where a checkpoint is given, go on from it and keep it up to date.

    ``on_step`` is told the number of each step that was taken and of all steps.

    Raises
    ------
    CandidateError
        Where the loss is no longer finite.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    data_layout = layout(model, _batch(data, data.train.take(slice(0, 1)))[0])
    model.to(memory_format=data_layout)  # type: ignore[call-overload]
    steps = len(_starts(len(data.train), recipe.batch_size))
    for penalty in recipe.penalties:
        penalty.start(model)
    optimizer = _optimizer(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _one_cycle(recipe, steps * recipe.epochs))
    start = _restore(checkpoint, model, optimizer, schedule, steps) if checkpoint is not None else 0
    loss = _penalized(loss or cross_entropy(recipe), model, recipe.penalties)
    for epoch in range(start, recipe.epochs):
        after = _told(on_step, epoch * steps, steps * recipe.epochs)
        mean = _epoch(model, data, recipe, (seed, epoch), loss, optimizer, schedule, after, data_layout)
        if not np.isfinite(mean):
            raise CandidateError(f"training diverged in epoch {epoch + 1} (loss {mean}); lower the learning rate")
        if checkpoint is not None:
            _save(checkpoint, model, optimizer, epoch + 1)
        if on_epoch is not None:
            on_epoch(epoch + 1, mean)
    for penalty in recipe.penalties:
        penalty.finish(model)
    # What is measured next must not depend on how the weights lie in memory.
    into_evaluation(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _epoch(
    model: nn.Module,
    data: DataSet,
    recipe: Recipe,
    seed: tuple[int, int],
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    after_step: Callable[[int], None],
    data_layout: torch.memory_format,
) -> float:
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    torch.manual_seed(generator.initial_seed())
    order = torch.randperm(len(data.train), generator=generator).numpy()
    model.train()
    total = 0.0
    for number, start in enumerate(_starts(len(order), recipe.batch_size), 1):
        x, labels = _batch(data, data.train.take(order[start : start + recipe.batch_size]))
        x = recipe.augment(x, generator).contiguous(memory_format=data_layout)
        value = loss(x, model(x), labels)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        schedule.step()
        after_step(number)
        total += float(value.detach()) * len(labels)
    return total / len(order)


def _penalized(loss: Loss, model: nn.Module, penalties: tuple[Penalty, ...]) -> Loss:
    if not penalties:
        return loss

    def penalized(x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return loss(x, logits, labels) + torch.stack([penalty.value(model) for penalty in penalties]).sum()

    return penalized


def _told(on_step: Callable[[int, int], None] | None, before: int, steps: int) -> Callable[[int], None]:
    return (lambda _: None) if on_step is None else lambda number: on_step(before + number, steps)


def _starts(pictures: int, batch_size: int) -> range:
    """Where the batches begin; a single picture that is left over stays out: batch norm cannot train on it."""
    return range(0, pictures - (batch_size > 1 and pictures % batch_size == 1), batch_size)


def _batch(data: DataSet, part: Pictures) -> tuple[Tensor, Tensor]:
    return data.preprocess(part.images), torch.from_numpy(part.labels.astype(np.int64))


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True)


def _one_cycle(recipe: Recipe, total: int) -> Callable[[int], float]:
    warm = max(1, round(recipe.warmup * total))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + float(np.cos(np.pi * min(1.0, (step - warm) / max(1, total - warm)))))

    return factor


def _save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    tensors = {f"model.{name}": value.contiguous().clone() for name, value in tensors_of(model).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v.contiguous() for k, v in state.items() if isinstance(v, Tensor)}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, {"epochs": str(epochs)}))


def _restore(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LambdaLR,
    steps: int,
) -> int:
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        epochs = int(file.metadata()["epochs"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    load_tensors(model, {k[len("model.") :]: v for k, v in tensors.items() if k.startswith("model.")})
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    schedule.last_epoch = epochs * steps
    for group, rate in zip(optimizer.param_groups, schedule.base_lrs):
        group["lr"] = rate * schedule.lr_lambdas[0](epochs * steps)
    return epochs
