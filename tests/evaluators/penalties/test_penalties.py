"""Penalties against their formulas, and what they do to a network that is trained with them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from paretopress.evaluators.data import DataSet, Pictures
from paretopress.evaluators.training.loop import Recipe, train
from paretopress.evaluators.training.penalties import PENALTIES, make_penalty
from paretopress.policies import forms
from paretopress.policies.architectures import DigitsCNN
from paretopress.policies.errors import ConfigError
from paretopress.policies.techniques.prune_magnitude import PruneMagnitude
from torch import Tensor, nn

torch.set_num_threads(1)


def data_of(count: int = 96) -> DataSet:
    random = np.random.default_rng(0)
    labels = np.arange(count) % 10
    images = random.normal(size=(count, 1, 8, 8)).astype(np.float32)
    images[np.arange(count), 0, labels % 8, labels // 8] += 3
    pictures = Pictures(images, labels)
    return DataSet("noise", 10, pictures, pictures, pictures, None)


DATA = data_of()
RECIPE = Recipe(epochs=2, batch_size=16, optimizer="adamw", lr=0.01, weight_decay=0.0)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DigitsCNN()


def trained(**strengths: float) -> nn.Module:
    model = network()
    penalties = tuple(make_penalty(name, strength) for name, strength in strengths.items())
    train(model, DATA, replace(RECIPE, penalties=penalties), seed=0)
    return model


def small() -> nn.Module:
    """A convolution of two filters and a linear layer, with weights one can add up by hand."""
    model = nn.Sequential(nn.Conv2d(1, 2, (1, 2)), nn.Flatten(), nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, -4.0], [0.0, 0.0]]).view(2, 1, 1, 2))
        model[2].weight.copy_(torch.tensor([[1.0, 2.0], [-2.0, 0.0], [2.0, 0.0]]))
    return model


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("l1", 7 + 7),
        ("l2", 25 + 13),
        # Filters 5 and 0; rows sqrt(5), 2, 2.
        ("neurons_in", 5 + math.sqrt(5) + 4),
        # The picture's one channel 5; columns 3 and 2.
        ("neurons_out", 5 + 3 + 2),
    ],
)
def test_the_term_is_that_of_the_formula_without_biases(name, expected):
    assert make_penalty(name, 0.5).value(small()).item() == pytest.approx(0.5 * expected)


def test_slopes_at_zero_are_finite_for_every_penalty():
    for name in PENALTIES:
        model = small()
        make_penalty(name, 1.0).value(model).backward()
        assert all(layer.weight.grad.isfinite().all() for _, layer in forms.weighted_modules(model)), name


def test_l1_pulls_small_weights_as_hard_as_large_ones_and_l2_does_not():
    model = small()
    make_penalty("l1", 1.0).value(model).backward()
    assert model[2].weight.grad.tolist() == [[1, 1], [-1, 0], [1, 0]]
    model = small()
    make_penalty("l2", 1.0).value(model).backward()
    assert torch.equal(model[2].weight.grad, 2 * model[2].weight)


def pulled(target: Tensor, name: str, strength: float) -> Tensor:
    """The weight that is the least of ``|W - target|^2 / 2`` and the penalty, found by gradient descent."""
    model = nn.Linear(3, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(1500):
        optimizer.zero_grad()
        loss = (model.weight - target).square().sum() / 2 + make_penalty(name, strength).value(model)
        loss.backward()
        optimizer.step()
    return model.weight.detach()


TARGET = torch.tensor([[1.0, -0.2, 0.0], [0.1, 0.2, -0.1], [0.3, 0.4, 2.0], [-0.1, 0.0, 0.2]])


def shrunk(norms: Tensor, strength: float) -> Tensor:
    return TARGET * (1 - strength / norms.clamp_min(strength))


@pytest.mark.parametrize(
    ("name", "strength", "expected"),
    [
        ("l1", 0.25, TARGET.sign() * (TARGET.abs() - 0.25).clamp_min(0)),
        ("l2", 0.25, TARGET / 1.5),
        ("neurons_in", 0.3, shrunk(TARGET.norm(dim=1, keepdim=True), 0.3)),
        ("neurons_out", 0.5, shrunk(TARGET.norm(dim=0, keepdim=True), 0.5)),
    ],
)
def test_weights_end_where_the_closed_form_says(name, strength, expected):
    # Soft thresholds of weights, rows and columns; l2 makes everything smaller and nothing zero.
    assert torch.allclose(pulled(TARGET, name, strength), expected, atol=0.012)


def test_pruned_weights_stay_zero_under_every_penalty():
    model = network()
    PruneMagnitude(0.8).apply(model.fc1, None)
    mask = forms.mask_of(model.fc1).clone()
    recipe = replace(RECIPE, penalties=tuple(make_penalty(name, 1e-3) for name in PENALTIES))
    train(model, DATA, recipe, seed=0)
    assert not model.fc1.weight[~mask].any()


def test_without_strength_training_is_as_without_a_penalty():
    one, other = trained(), trained(**dict.fromkeys(PENALTIES, 0.0))
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@dataclass(frozen=True)
class Learned:
    """Learns a number with the network, and rounds the weights in the end."""

    name: ClassVar[str] = "learned"

    def start(self, model: nn.Module) -> None:
        model.register_parameter("centre", nn.Parameter(torch.zeros(1)))

    def value(self, model: nn.Module) -> Tensor:
        return (model.centre - 1).square().sum()

    def finish(self, model: nn.Module) -> None:
        assert model.centre.item() > 0.01
        del model.centre
        with torch.no_grad():
            model.fc1.weight.round_()


def test_a_penalty_may_learn_with_the_network_and_round_in_the_end():
    model = network()
    train(model, DATA, replace(RECIPE, penalties=(Learned(),)), seed=0)
    assert "centre" not in model.state_dict()
    assert torch.equal(model.fc1.weight, model.fc1.weight.round())


@pytest.mark.parametrize(
    ("name", "strength", "message"),
    [
        ("neuron_in", 1.0, "unknown penalty 'neuron_in'; did you mean 'neurons_in'?"),
        ("zzz", 1.0, "unknown penalty 'zzz'; known: l1, l2, "),
        *((name, -1.0, f"penalty {name}: expected a finite strength of at least 0, got -1.0") for name in PENALTIES),
        ("l1", math.nan, "penalty l1: expected a finite strength of at least 0, got nan"),
    ],
)
def test_a_wrong_penalty_is_refused(name, strength, message):
    with pytest.raises(ConfigError) as caught:
        make_penalty(name, strength)
    assert message in str(caught.value)
