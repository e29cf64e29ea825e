"""Pruning while training: how fast sparsity rises, and whether weights that turn out to matter come back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ...policies import forms
from ...policies.plan import Plan
from ...policies.techniques import Phase
from ...policies.techniques.prune_magnitude import largest
from ..data import DataSet
from .loop import Loss, Recipe, train

INTERVAL = 8
"""Steps after which the masks are chosen anew."""
SETTLED_SHARE = 0.8
"""Share of the steps after which the masks no longer change."""
ROUNDS = 5
"""How often an iterative pruning prunes."""
PRUNES_BELOW, SPLICES_FROM = 0.9, 1.1
"""Of the threshold that leaves the sparsity of the moment: weights below the one go, weights from the other on come back."""
REMEMBERED = 0.9
"""What a weight that surgery masks keeps of its value each time the masks are chosen."""

Choose = Callable[[Tensor, Tensor, int], Tensor]
PruneSchedule = Literal["gradual", "iterative", "surgery"]


@dataclass(frozen=True)
class Schedule:
    """When masks are chosen anew, and how.

    Parameters
    ----------
    sparsity
        (target, share of the time in [0, 1]) -> sparsity by then.
    is_due
        (step, steps until the masks settle) -> whether the masks are chosen anew at this step.
    choose
        (original weight, its mask, weights to keep) -> new mask; while training, and once in the end.
    regrows
        Whether the gradient reaches masked weights, so that they can come back.
    remembers
        What a masked weight keeps of its value each time the masks are chosen; 0: it starts again from zero.
    """

    sparsity: Callable[[float, float], float]
    is_due: Callable[[int, float], bool]
    choose: Choose
    regrows: bool
    remembers: float


def cubic(target: float, time: float) -> float:
    """``s (1 - (1 - t)^3)`` (Zhu 2017, 1710.01878, eq. 1): fast while there is much to lose, slow in the end."""
    return (1 - (1 - time) ** 3) * target


def in_rounds(target: float, time: float) -> float:
    """The same share of the weights that are left goes in each of ``ROUNDS`` rounds (1506.02626; 1803.03635, section 1)."""
    return 1 - (1 - target) ** (min(ROUNDS, math.floor(time * ROUNDS) + 1) / ROUNDS)


def spliced(original: Tensor, mask: Tensor, keep: int) -> Tensor:
    """Guo 2016 (1608.04493, eq. 3): a weight between the two thresholds stays as it is, masked or not.

    The paper fixes the thresholds and takes the sparsity that comes; here they are those that leave as many weights as asked.
    """
    magnitude = original.abs()
    return largest(torch.where(mask, magnitude / PRUNES_BELOW, magnitude / SPLICES_FROM), keep)


def ever_less_often(step: int, settled: float) -> bool:
    """Due with a frequency that falls as ``1 / (1 + t)``, to half of what it was (1608.04493, section 3.2)."""

    def count(at: int) -> int:
        return math.floor(settled * math.log1p(at / settled) / INTERVAL)

    return step <= settled and count(step) > count(step - 1)


def evenly(step: int, settled: float) -> bool:
    return step % INTERVAL == 0 and step <= settled


def at_rounds(step: int, settled: float) -> bool:
    """At the first step, and wherever another of the ``ROUNDS`` parts of the time begins."""
    return step == 1 or (
        step < settled and math.floor(step / settled * ROUNDS) > math.floor((step - 1) / settled * ROUNDS)
    )


def anew(original: Tensor, _: Tensor, keep: int) -> Tensor:
    """The largest weights, masked or not."""
    return largest(original, keep)


def of_those_left(original: Tensor, mask: Tensor, keep: int) -> Tensor:
    """The largest of the weights that are not masked."""
    return largest(original.masked_fill(~mask, 0.0), keep)


SCHEDULES: dict[PruneSchedule, Schedule] = {
    "gradual": Schedule(cubic, evenly, anew, regrows=True, remembers=0.0),
    "iterative": Schedule(in_rounds, at_rounds, of_those_left, regrows=False, remembers=0.0),
    "surgery": Schedule(cubic, ever_less_often, spliced, regrows=True, remembers=REMEMBERED),
}


class GrowingMask(nn.Module):
    """``weight = original * mask``; the gradient reaches the masked weights too, so that they can come back.

    Guo 2016 (1608.04493, eq. 3): the loss is differentiated with respect to the masked weight, the step is taken on all.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.clone())

    def forward(self, original: Tensor) -> Tensor:
        return cast(Tensor, _MaskedForward.apply(original, self.mask))

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def stored(self, original: Tensor) -> Any:
        """As a mask that no longer changes."""
        return forms.MaskedWeight(self.mask).stored(original)


class _MaskedForward(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, original: Tensor, mask: Tensor) -> Tensor:
        return original.masked_fill(~mask, 0.0)

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def prune_gradually(
    model: nn.Module,
    targets: Mapping[str, float],
    data: DataSet,
    recipe: Recipe,
    *,
    seed: int,
    loss: Loss,
    schedule: PruneSchedule = "gradual",
    checkpoint: Path | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> None:
    """Train in place while the named layers lose their smallest weights, down to their targets.

    The masks change over the first 80 % of the steps; a layer that is pruned already stays as sparse as it is, and only
    exchanges weights. Afterwards the layers carry a fixed mask.

    Parameters
    ----------
    targets
        Layer -> share of its weights that become zero.
    schedule
        ``gradual``: sparsity rises along a cubic, weights come back; a masked one starts again from zero each time the masks
        are chosen, since what nothing holds back would drift until it is large for no merit. ``iterative``: in rounds of
        pruning and training, what went stays away. ``surgery``: along the same cubic, and masked weights go on learning until
        they are spliced in again (dynamic network surgery, 1608.04493). What is masked changes nothing, so nothing answers its
        gradient: at the target from the first step, or without forgetting, such weights outgrow all that is kept and take its
        place. The paper's small rate and long training keep them small.
    checkpoint, on_epoch
        As ``train`` takes them; the masks are part of what is kept.

    Raises
    ------
    CandidateError
        Where the training diverges.
    """
    plan = SCHEDULES[schedule]
    layers = {name: model.get_submodule(name) for name in targets}
    pruned = {name for name, layer in layers.items() if forms.mask_of(layer) is not None}
    for layer in layers.values():
        mask = forms.mask_of(layer)
        weight = cast(Tensor, layer.weight).detach()
        form = GrowingMask if plan.regrows else forms.MaskedWeight
        forms.set_form(layer, form(torch.ones_like(weight, dtype=torch.bool) if mask is None else mask.clone()))

    def update(step: int, steps: int) -> None:
        if plan.is_due(step, SETTLED_SHARE * steps):
            time = step / (SETTLED_SHARE * steps)
            for name, layer in layers.items():
                target = targets[name]
                _choose(layer, target if name in pruned else plan.sparsity(target, time), plan)

    train(model, data, recipe, seed=seed, loss=loss, checkpoint=checkpoint, on_epoch=on_epoch, on_step=update)
    for name, layer in layers.items():
        _choose(layer, targets[name], plan)
        forms.set_form(layer, forms.MaskedWeight(cast(Tensor, forms.mask_of(layer)).clone()))


def halves(recipe: Recipe, share: float) -> tuple[Recipe, Recipe]:
    """A recipe in two: so much of the epochs for pruning, at least one for either, the rest at a third of the rate."""
    first = min(recipe.epochs - 1, max(1, round(share * recipe.epochs)))
    return replace(recipe, epochs=first), replace(recipe, epochs=recipe.epochs - first, lr=recipe.lr / 3)


def _choose(layer: nn.Module, sparsity: float, schedule: Schedule) -> None:
    original = cast(Tensor, cast(Any, layer.parametrizations).weight.original).detach()
    mask = cast(Tensor, forms.mask_of(layer))
    mask.copy_(schedule.choose(original, mask, original.numel() - round(sparsity * original.numel())))
    original.mul_(torch.where(mask, 1.0, schedule.remembers))


def sparsities(plan: Plan) -> dict[str, float]:
    """Layer -> share of its weights that the plan prunes."""
    found = {p.layer.name: t for p in plan.layers for t in p.techniques if t.phase == Phase.PRUNE}
    return {name: float(sparsity) for name, t in found.items() if (sparsity := getattr(t, "sparsity", None))}


def inner_targets(model: nn.Module, targets: Mapping[str, float]) -> dict[str, float]:
    """The same for the layers that a factorization put in a layer's place."""
    return {
        f"{name}.{inner}" if inner else name: sparsity
        for name, sparsity in targets.items()
        for inner, _ in forms.weighted_modules(model.get_submodule(name))
    }
