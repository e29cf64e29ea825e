"""Pruning while training: exact in the end, and free to change its mind until then."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from paretopress.evaluators.data import DataSet, Pictures
from paretopress.evaluators.training import gradual
from paretopress.evaluators.training.gradual import (
    ROUNDS,
    SCHEDULES,
    GrowingMask,
    Schedule,
    halves,
    in_rounds,
    prune_gradually,
    spliced,
)
from paretopress.evaluators.training.loop import Recipe, cross_entropy, train
from paretopress.policies import forms
from paretopress.policies.architectures import DigitsCNN
from paretopress.policies.errors import CandidateError
from paretopress.policies.techniques import PruneMagnitude
from torch import Tensor, nn

torch.set_num_threads(1)

RECIPE = Recipe(epochs=3, batch_size=16, lr=0.02)
TARGETS = {"conv2": 0.7, "fc1": 0.9, "fc2": 0.333}


def data_of(count: int = 96) -> DataSet:
    random = np.random.default_rng(0)
    labels = np.arange(count) % 10
    images = random.normal(size=(count, 1, 8, 8)).astype(np.float32)
    images[np.arange(count), 0, labels % 8, labels // 8] += 3
    pictures = Pictures(images, labels)
    return DataSet("noise", 10, pictures, pictures, pictures, None)


DATA = data_of()


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DigitsCNN()


def pruned(
    model: nn.Module,
    targets: dict[str, float] = TARGETS,
    recipe: Recipe = RECIPE,
    seed: int = 0,
    schedule: str = "gradual",
) -> nn.Module:
    prune_gradually(model, targets, DATA, recipe, seed=seed, loss=cross_entropy(recipe), schedule=schedule)
    return model


def zeros(model: nn.Module, name: str) -> int:
    return int((model.get_submodule(name).weight == 0).sum())


@pytest.fixture
def masks(monkeypatch) -> dict[int, list[Tensor]]:
    """Every mask that was chosen, by the layer's number of weights."""
    seen: dict[int, list[Tensor]] = {}
    choose = gradual._choose

    def recorded(layer: nn.Module, sparsity: float, schedule: Schedule) -> None:
        choose(layer, sparsity, schedule)
        seen.setdefault(layer.weight.numel(), []).append(forms.mask_of(layer).clone())

    monkeypatch.setattr(gradual, "_choose", recorded)
    monkeypatch.setattr(gradual, "INTERVAL", 1)
    return seen


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("recipe", [RECIPE, Recipe(epochs=1, batch_size=50, lr=0.02)], ids=["18 steps", "2 steps"])
def test_the_layers_end_exactly_as_sparse_as_was_asked(recipe, schedule):
    model = pruned(network(), recipe=recipe, schedule=schedule)
    for name, sparsity in TARGETS.items():
        layer = model.get_submodule(name)
        assert zeros(model, name) == round(sparsity * layer.weight.numel())
        assert isinstance(forms.form_of(layer), forms.MaskedWeight)
    assert forms.form_of(model.conv1) is None
    assert zeros(model, "conv1") == 0
    assert not model.training


def test_kept_are_the_largest_weights_and_they_are_stored_bit_for_bit():
    model = pruned(network())
    layer = model.fc1
    stored = torch.from_numpy(np.array(forms.stored_weight(layer).decode()))
    assert torch.equal(stored, layer.weight.detach())
    original = layer.parametrizations.weight.original.detach().abs()
    mask = forms.mask_of(layer)
    assert original[mask].min() >= original[~mask].max()


def test_in_rounds_the_same_share_of_what_is_left_goes_each_time_and_nothing_comes_back(masks):
    pruned(network(), {"fc1": 0.9}, Recipe(epochs=4, batch_size=16, lr=0.2), schedule="iterative")
    (chosen,) = masks.values()
    kept = [float(mask.float().mean()) for mask in chosen]
    assert kept == pytest.approx([0.1 ** (k / ROUNDS) for k in range(1, ROUNDS + 1)] + [0.1], abs=1e-4)
    assert not any((later & ~earlier).any() for earlier, later in pairwise(chosen))
    assert in_rounds(0.9, 1.0) == pytest.approx(0.9)


def test_surgery_prunes_below_one_threshold_and_splices_above_the_other():
    weight = torch.tensor([0.1, 0.2, -0.95, 1.0, 1.05, -1.3, 3.0, 4.0])
    mask = torch.ones(8, dtype=torch.bool)
    assert spliced(weight, mask, 4).tolist() == [False] * 4 + [True] * 4
    # A masked weight takes a kept one's place only where it is larger by more than 1.1 / 0.9.
    mask[4] = mask[5] = False
    assert spliced(weight, mask, 4).tolist() == [False, False, False, True, False, True, True, True]
    mask[3], weight[5] = False, 1.15
    assert spliced(weight, mask, 4).tolist() == [False, False, True, False, False, True, True, True]
    weight[5] = 1.0
    assert spliced(weight, mask, 3).tolist() == [False, False, True, False, False, False, True, True]


def test_surgery_looks_less_and_less_often():
    due = [step for step in range(1, 2000) if SCHEDULES["surgery"].is_due(step, 1600.0)]
    assert due[-1] <= 1600
    assert due[1] - due[0] == pytest.approx(8, abs=1)
    assert due[-1] - due[-2] == pytest.approx(16, abs=1)


def test_in_surgery_masked_weights_grow_until_they_come_back(masks):
    pruned(network(), {"fc1": 0.9}, Recipe(epochs=8, batch_size=16, lr=0.2), schedule="surgery")
    (chosen,) = masks.values()
    assert sum(int((later & ~earlier).sum()) for earlier, later in pairwise(chosen[:-1])) > 0


def test_zeros_stay_zero_when_training_goes_on():
    model = pruned(network())
    before = {name: model.get_submodule(name).weight.detach().clone() for name in TARGETS}
    train(model, DATA, RECIPE, seed=9)
    for name, weight in before.items():
        after = model.get_submodule(name).weight.detach()
        assert (after[weight == 0] == 0).all()
        assert not torch.equal(after, weight)


def test_what_surgery_masks_fades_and_what_it_keeps_does_not():
    model = network()
    forms.set_form(model.fc1, GrowingMask(torch.ones_like(model.fc1.weight, dtype=torch.bool)))
    original = model.fc1.parametrizations.weight.original.detach()
    before = original.clone()
    for _ in range(20):
        gradual._choose(model.fc1, 0.75, SCHEDULES["surgery"])
    mask = forms.mask_of(model.fc1)
    assert torch.equal(original[mask], before[mask])
    assert torch.allclose(original[~mask], before[~mask] * 0.9**20, rtol=1e-4)


@pytest.mark.parametrize("schedule", ["gradual", "surgery"])
def test_sparsity_rises_step_by_step(masks, schedule):
    pruned(network(), {"fc1": 0.9}, schedule=schedule)
    (chosen,) = masks.values()
    shares = [1 - float(mask.float().mean()) for mask in chosen]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.4
    assert len(set(shares)) > 5
    assert shares[-3:] == pytest.approx([0.9] * 3, abs=0.02)
    assert shares[-1] == pytest.approx(0.9, abs=1e-5)


def test_weights_that_turn_out_to_matter_come_back(masks):
    pruned(network(), {"fc1": 0.9}, Recipe(epochs=3, batch_size=16, lr=0.2))
    (chosen,) = masks.values()
    assert sum(int((later & ~earlier).sum()) for earlier, later in pairwise(chosen)) > 20


def test_a_masked_weight_gets_the_gradient_of_a_weight_that_is_there():
    form = GrowingMask(torch.tensor([True, False]))
    original = torch.tensor([2.0, 3.0], requires_grad=True)
    weight = form(original)
    (weight * torch.tensor([5.0, 7.0])).sum().backward()
    assert weight.tolist() == [2.0, 0.0]
    assert original.grad.tolist() == [5.0, 7.0]


def test_a_layer_that_is_pruned_already_stays_as_sparse_and_exchanges_weights(masks):
    model = network()
    start = forms.mask_of(PruneMagnitude(0.9).apply(model.fc1, None)).clone()
    pruned(model, {"fc1": 0.9}, Recipe(epochs=3, batch_size=16, lr=0.2))
    (chosen,) = masks.values()
    assert {int(mask.sum()) for mask in chosen} == {int(start.sum())}
    assert not torch.equal(chosen[-1], start)


def test_the_same_seed_prunes_the_same_weights():
    one, same, other = (pruned(network(), seed=seed) for seed in (0, 0, 1))
    states = [model.state_dict() for model in (one, same, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert any(not torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_copies_prune_apart():
    model = network()
    copied = copy.deepcopy(model)
    pruned(model, {"fc1": 0.5})
    assert zeros(copied, "fc1") == 0
    assert forms.form_of(copied.fc1) is None


def test_a_training_that_diverges_is_an_error():
    with pytest.raises(CandidateError, match="diverged"):
        pruned(network(), recipe=Recipe(epochs=2, batch_size=16, lr=1e20))


@pytest.mark.parametrize(
    ("epochs", "share", "expected"),
    [(10, 0.6, (6, 4)), (2, 0.9, (1, 1)), (2, 0.1, (1, 1)), (10, 1.0, (9, 1)), (10, 0.01, (1, 9))],
)
def test_a_recipe_is_split_into_two_with_an_epoch_at_least_in_either(epochs, share, expected):
    recipe = Recipe(epochs=epochs, lr=0.3, weight_decay=1e-4)
    first, second = halves(recipe, share)
    assert (first.epochs, second.epochs) == expected
    assert (first.lr, second.lr) == (0.3, pytest.approx(0.1))
    assert first.weight_decay == second.weight_decay == 1e-4
