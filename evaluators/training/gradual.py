"""Pruning while training: sparsity rises step by step, and weights that turn out to matter come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...policies import forms
from ...policies.techniques.prune_magnitude import largest
from ..data import DataSet
from .loop import Loss, Recipe, train

INTERVAL = 8
"""Steps after which the masks are chosen anew."""
SETTLED_SHARE = 0.8
"""Share of the steps after which the masks no longer change."""


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
    model: nn.Module, targets: Mapping[str, float], data: DataSet, recipe: Recipe, *, seed: int, loss: Loss
) -> None:
    """Train in place while the named layers lose their smallest weights, down to their targets.

    The sparsity follows ``s (1 - (1 - t)^3)`` (Zhu 2017, 1710.01878, eq. 1) over the first 80 % of the steps; a layer that
    is pruned already stays as sparse as it is, and only exchanges weights. A masked weight starts again from zero each time
    the masks are chosen: what nothing holds back would drift until it is large for no merit. Afterwards the layers carry a
    fixed mask.

    Parameters
    ----------
    targets
        Layer -> share of its weights that become zero.

    Raises
    ------
    CandidateError
        Where the training diverges.
    """
    layers = {name: model.get_submodule(name) for name in targets}
    pruned = {name for name, layer in layers.items() if forms.mask_of(layer) is not None}
    for layer in layers.values():
        mask = forms.mask_of(layer)
        weight = cast(Tensor, layer.weight).detach()
        forms.set_form(layer, GrowingMask(torch.ones_like(weight, dtype=torch.bool) if mask is None else mask))

    def update(step: int, steps: int) -> None:
        if step % INTERVAL == 0 and step <= SETTLED_SHARE * steps:
            reached = 1 - (1 - step / (SETTLED_SHARE * steps)) ** 3
            for name, layer in layers.items():
                _choose(layer, targets[name] if name in pruned else reached * targets[name])

    train(model, data, recipe, seed=seed, loss=loss, on_step=update)
    for name, layer in layers.items():
        _choose(layer, targets[name])
        forms.set_form(layer, forms.MaskedWeight(cast(Tensor, forms.mask_of(layer)).clone()))


def halves(recipe: Recipe, share: float) -> tuple[Recipe, Recipe]:
    """A recipe in two: so much of the epochs for pruning, at least one for either, the rest at a third of the rate."""
    first = min(recipe.epochs - 1, max(1, round(share * recipe.epochs)))
    return replace(recipe, epochs=first), replace(recipe, epochs=recipe.epochs - first, lr=recipe.lr / 3)


def _choose(layer: nn.Module, sparsity: float) -> None:
    original = cast(Tensor, cast(Any, layer.parametrizations).weight.original).detach()
    mask = cast(Tensor, forms.mask_of(layer))
    mask.copy_(largest(original, original.numel() - round(sparsity * original.numel())))
    original.masked_fill_(~mask, 0.0)
