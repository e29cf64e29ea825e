"""Lottery tickets: networks pruned by what training made of them, started anew (1803.03635; 1905.01067).

State dictionaries are of ordinary networks; a mask is the bool tensor of a layer's kept weights, under the layer's name.

| start | kept weights begin as | source |
|---|---|---|
| ``initial`` | they were before the dense training | 1803.03635, section 1 |
| ``early`` | they were after its first epochs | 1903.01611, section 3 |
| ``random`` | newly drawn ones | 1803.03635, section 2 |
| ``signs`` | a constant of the layer with their initial sign | 1905.01067, section 4 |
| ``supermask`` | they were before, if training did not turn their sign, else zero; nothing is trained | 1905.01067, section 5 |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from ...policies import forms
from ...policies.own_network import into_evaluation
from ...policies.state import load_tensors, tensors_of
from ...policies.techniques.prune_magnitude import largest
from ..data import DataSet
from .loop import Recipe, train

Start = Literal["initial", "early", "random", "signs", "supermask"]
Control = Literal["scratch_e", "scratch_b", "rewind", "random", "signs", "supermask"]
CONTROLS: tuple[Control, ...] = get_args(Control)
SCRATCH: tuple[Control, ...] = ("scratch_e", "scratch_b")
FROM_INITIAL: tuple[Control, ...] = ("rewind", "signs", "supermask")
"""Controls that begin with the weights that the dense network began with."""
State = Mapping[str, Tensor]
Masks = Mapping[str, Tensor]


@dataclass(frozen=True)
class Origins:
    """Where the start of a ticket may come from: state dictionaries of one structure.

    Parameters
    ----------
    initial
        Before the dense training.
    early
        After its first epochs.
    random
        Of another seed.
    final
        After training, as the masks were chosen.
    """

    initial: State | None = None
    early: State | None = None
    random: State | None = None
    final: State | None = None


def ticket(start: Start, origins: Origins, masks: Masks) -> dict[str, Tensor]:
    """The state that a ticket's training begins with; weights that are not kept are zero.

    Everything beside the masked weights comes from the same origin as these.
    """
    origin = {"early": origins.early, "random": origins.random}.get(start, origins.initial)
    assert origin is not None, f"the start '{start}' has no origin"
    state = {name: value.clone() for name, value in origin.items()}
    for layer, mask in masks.items():
        name = f"{layer}.weight"
        if start == "signs":
            state[name] = signed_constant(state[name])
        if start == "supermask":
            assert origins.final is not None, "a supermask needs the trained weights"
            mask = mask & same_sign(state[name], origins.final[name])
        state[name] = state[name].masked_fill(~mask, 0.0)
    return state


def signed_constant(initial: Tensor) -> Tensor:
    """``sign(w) std(w)``, the standard deviation of the layer's initial weights (1905.01067, section 4)."""
    return initial.sign() * initial.std(correction=0)


def same_sign(initial: Tensor, final: Tensor) -> Tensor:
    """Weights that training left on their side of zero: with the largest of these, the criterion "large final, same sign"."""
    return initial.sign() == final.sign()


def hold(model: nn.Module, state: State, masks: Masks) -> None:
    """Load a state in place and mask the layers, so that what is zero stays zero while they train."""
    layers = {name: model.get_submodule(name) for name in masks}
    for layer in layers.values():
        forms.drop_form(layer)
    load_tensors(model, state)
    for name, layer in layers.items():
        forms.set_form(layer, forms.MaskedWeight(masks[name].clone()))


def thinned(final: State, masks: Masks, shares: Mapping[str, float]) -> dict[str, Tensor]:
    """The masks after one more pruning by magnitude.

    Parameters
    ----------
    final
        Trained weights.
    shares
        Layer -> share of its weights left that go, the smallest.
    """
    out = {}
    for layer, mask in masks.items():
        left = int(mask.sum())
        keep = left - round(shares[layer] * left)
        out[layer] = mask & largest(final[f"{layer}.weight"].masked_fill(~mask, 0.0), keep)
    return out


@dataclass(frozen=True)
class Round:
    """A round of iterative pruning: the masks that it trained under, and the trained state."""

    masks: Masks
    final: State


def iterative_pruning(
    model: nn.Module,
    start: State,
    masks: Masks,
    shares: Mapping[str, float],
    train_round: Callable[[nn.Module], None],
) -> Iterator[Round]:
    """Train, prune each layer by its share of what is left, rewind to the start, and so on without end (1803.03635, section 1).

    Parameters
    ----------
    model
        Of the start's structure; it trains in place.
    masks
        Of the first round: all set, or those that an earlier run came to.
    train_round
        Trains the network in place.
    """
    while True:
        hold(model, ticket("initial", Origins(initial=start), masks), masks)
        train_round(model)
        final = {name: value.detach().clone() for name, value in tensors_of(forms.plain(model)).items()}
        yield Round(masks, final)
        masks = thinned(final, masks, shares)


def all_kept(model: nn.Module) -> dict[str, Tensor]:
    """Masks of every convolution and linear layer, all set."""
    layers = {name: cast(Tensor, layer.weight) for name, layer in forms.weighted_modules(model)}
    return {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in layers.items()}


class _EarlyEnough(Exception):  # noqa: N818 - ends a training, no error
    """The epochs that were asked for are over."""


def train_early(model: nn.Module, data: DataSet, recipe: Recipe, epochs: int, *, seed: int) -> None:
    """The first epochs of a training, in place, with the rates of the whole recipe."""

    def stop(epoch: int, _: float) -> None:
        if epoch == epochs:
            raise _EarlyEnough

    try:
        if epochs:
            train(model, data, recipe, seed=seed, on_epoch=stop)
    except _EarlyEnough:
        into_evaluation(model).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
