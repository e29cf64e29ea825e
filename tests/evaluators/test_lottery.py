"""Lottery tickets: their starts, their masks, and what stays zero."""

from __future__ import annotations

import itertools

import pytest
import torch
from paretopress.evaluators.data import DataSet, SplitSizes
from paretopress.evaluators.models import build_model
from paretopress.evaluators.sources import load_data
from paretopress.evaluators.training.loop import Recipe, train
from paretopress.evaluators.training.lottery import (
    Origins,
    Start,
    all_kept,
    hold,
    iterative_pruning,
    same_sign,
    signed_constant,
    thinned,
    ticket,
    train_early,
)
from paretopress.policies import forms
from torch import Tensor, nn

torch.set_num_threads(1)

RECIPE = Recipe(epochs=2, batch_size=64, optimizer="adamw", lr=0.01, weight_decay=0.1)
STARTS: tuple[Start, ...] = ("initial", "early", "random", "signs", "supermask")


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_data("digits", sizes=SplitSizes(0.1, 32, 0.2), seed=0)


def mlp(seed: int = 0) -> nn.Module:
    return build_model("family:lenet300100", num_classes=10, seed=seed, side=8)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.fixture
def origins() -> Origins:
    return Origins(*(state(mlp(seed)) for seed in range(4)))


@pytest.fixture
def masks() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {name: torch.rand(mask.shape, generator=generator) < 0.3 for name, mask in all_kept(mlp()).items()}


@pytest.mark.parametrize(("start", "origin"), [("initial", "initial"), ("early", "early"), ("random", "random")])
def test_a_ticket_is_its_origin_under_the_mask(
    start: Start, origin: str, origins: Origins, masks: dict[str, Tensor]
) -> None:
    given, found = getattr(origins, origin), ticket(start, origins, masks)
    for layer, mask in masks.items():
        assert torch.equal(found[f"{layer}.weight"], given[f"{layer}.weight"] * mask)
        assert torch.equal(found[f"{layer}.bias"], given[f"{layer}.bias"])


def test_signs_keep_the_initial_sign_times_one_constant_a_layer(origins: Origins, masks: dict[str, Tensor]) -> None:
    found = ticket("signs", origins, masks)
    for layer, mask in masks.items():
        initial = (origins.initial or {})[f"{layer}.weight"]
        kept = found[f"{layer}.weight"][mask]
        assert torch.equal(kept.sign(), initial[mask].sign())
        assert torch.allclose(kept.abs(), initial.std(correction=0).expand_as(kept))


def test_a_supermask_only_zeroes_and_keeps_what_training_did_not_turn_round(
    origins: Origins, masks: dict[str, Tensor]
) -> None:
    found = ticket("supermask", origins, masks)
    for layer, mask in masks.items():
        initial, final = ((o or {})[f"{layer}.weight"] for o in (origins.initial, origins.final))
        kept = found[f"{layer}.weight"] != 0
        assert torch.equal(found[f"{layer}.weight"][kept], initial[kept])
        assert torch.equal(kept, mask & (initial * final > 0))


def test_signs_by_hand() -> None:
    weight = torch.tensor([1.0, -3.0, 0.0])
    assert torch.allclose(signed_constant(weight), torch.tensor([1.0, -1.0, 0.0]) * (26 / 9) ** 0.5)
    assert same_sign(weight, torch.tensor([0.1, 2.0, 0.0])).tolist() == [True, False, True]


@pytest.mark.parametrize("start", STARTS)
def test_no_start_changes_its_origins(start: Start, origins: Origins, masks: dict[str, Tensor]) -> None:
    given = (origins.initial, origins.early, origins.random, origins.final)
    before = [{name: value.clone() for name, value in (tensors or {}).items()} for tensors in given]
    for value in ticket(start, origins, masks).values():
        value.fill_(7.0)
    for was, now in zip(before, given):
        assert all(torch.equal(was[name], value) for name, value in (now or {}).items())


def test_zeros_stay_zero_in_training_and_kept_weights_move(
    digits: DataSet, origins: Origins, masks: dict[str, Tensor]
) -> None:
    model, start = mlp(), ticket("initial", origins, masks)
    hold(model, start, masks)
    train(model, digits, RECIPE, seed=0)
    for layer, mask in masks.items():
        weight = forms.plain(model).get_submodule(layer).get_parameter("weight")
        assert not weight[~mask].any()
        assert (weight[mask] != start[f"{layer}.weight"][mask]).float().mean() > 0.9


def test_a_network_is_held_again_under_other_masks(origins: Origins, masks: dict[str, Tensor]) -> None:
    model = mlp()
    hold(model, ticket("initial", origins, masks), masks)
    hold(model, origins.random or {}, all_kept(mlp()))
    found = forms.plain(model).state_dict()
    assert all(torch.equal(found[name], value) for name, value in (origins.random or {}).items())


def test_thinning_takes_its_share_of_the_smallest_weights_left() -> None:
    weights = {"a.weight": torch.tensor([[5.0, -1.0, 3.0, 0.5, -4.0, 2.0]])}
    masks = {"a": torch.tensor([[True, True, True, False, True, True]])}
    found = thinned(weights, masks, {"a": 0.4})
    assert found["a"].tolist() == [[True, False, True, False, True, False]]


def test_rounds_rewind_to_the_start_and_leave_the_share_of_each_round(digits: DataSet) -> None:
    start, model = state(mlp()), mlp()
    seen: list[dict[str, Tensor]] = []

    def train_round(model: nn.Module) -> None:
        seen.append(state(forms.plain(model)))
        train(model, digits, Recipe(epochs=1, batch_size=128, lr=0.05), seed=0)

    shares = {"fc1": 0.5, "fc2": 0.5, "fc3": 0.25}
    rounds = list(itertools.islice(iterative_pruning(model, start, all_kept(model), shares, train_round), 3))
    for number, (began, done) in enumerate(zip(seen, rounds)):
        for layer, mask in done.masks.items():
            left = (1 - shares[layer]) ** number * mask.numel()
            assert abs(int(mask.sum()) - left) <= 1
            assert torch.equal(began[f"{layer}.weight"], start[f"{layer}.weight"] * mask)
            assert not done.final[f"{layer}.weight"][~mask].any()
    for earlier, later in itertools.pairwise(rounds):
        assert not any((later.masks[layer] & ~earlier.masks[layer]).any() for layer in shares), "what went stays away"


def test_rounds_go_on_from_masks_as_if_they_had_never_stopped(digits: DataSet) -> None:
    def train_round(model: nn.Module) -> None:
        train(model, digits, Recipe(epochs=1, batch_size=128, lr=0.05), seed=0)

    start, shares = state(mlp()), {"fc1": 0.5, "fc2": 0.5, "fc3": 0.25}
    first, second = itertools.islice(iterative_pruning(mlp(), start, all_kept(mlp()), shares, train_round), 2)
    (again,) = itertools.islice(iterative_pruning(mlp(), start, second.masks, shares, train_round), 1)
    assert all(torch.equal(thinned(first.final, first.masks, shares)[layer], second.masks[layer]) for layer in shares)
    assert all(torch.equal(again.final[name], value) for name, value in second.final.items())


def test_early_weights_are_those_that_the_whole_training_passes(digits: DataSet) -> None:
    passed: dict[int, dict[str, Tensor]] = {}
    whole, early, none = mlp(), mlp(), mlp()
    train(whole, digits, RECIPE, seed=3, on_epoch=lambda epoch, _: passed.update({epoch: state(whole)}))
    train_early(early, digits, RECIPE, 1, seed=3)
    train_early(none, digits, RECIPE, 0, seed=3)
    assert all(torch.equal(state(early)[name], value) for name, value in passed[1].items())
    assert all(torch.equal(state(none)[name], value) for name, value in state(mlp()).items())
    assert not early.training
