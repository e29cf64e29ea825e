from __future__ import annotations

import copy

import pytest
import torch
from paretopress.evaluators.training.penalties import make_penalty
from paretopress.evaluators.training.penalties.binary import Binary
from paretopress.policies import forms
from paretopress.policies.techniques.binarize import Binarize
from paretopress.policies.techniques.prune_magnitude import PruneMagnitude
from paretopress.policies.techniques.quantize_uniform import QuantizeUniform
from torch import nn
from torch.nn import functional

torch.set_num_threads(1)


def normal(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_value_is_the_formula_in_units_of_the_scale():
    layer = nn.Linear(4, 1)
    # Mean magnitude 1, so that all but the third are above the threshold; their mean is the scale.
    layer.weight.data = torch.tensor([[1.5, -1.2, 0.1, 1.2]])
    scale = (1.5 + 1.2 + 1.2) / 3
    u = layer.weight.detach() / scale
    expected = (u**2 * (1 - u**2).abs()).sum()
    assert float(Binary(2.0).value(layer).detach()) == pytest.approx(2 * float(expected), rel=1e-5)


@pytest.mark.parametrize("weight", [[0.3, -0.3, 0.0, 0.3], [0.0, 0.0, 0.0, 0.0], [-2.0, 0.0, 0.0, 0.0]])
def test_weights_of_the_three_values_cost_nothing_and_stay(weight):
    layer = nn.Linear(4, 1)
    layer.weight.data = torch.tensor([weight])
    assert float(Binary(1.0).value(layer).detach()) == pytest.approx(0, abs=1e-10)
    Binary(1.0).finish(layer)
    assert torch.allclose(layer.weight, torch.tensor([weight]))


def test_the_pull_goes_to_the_nearest_value():
    layer = nn.Linear(6, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -1.0, 0.9, 1.1, 0.2, -0.2]])
    Binary(1.0).value(layer).backward()
    # The step is against the gradient.
    assert (-layer.weight.grad).sign().tolist()[0][2:] == [1.0, -1.0, -1.0, 1.0]


def trained(penalty, seed=0):
    """A small classifier, pulled after a quarter of its steps, and its loss on other samples."""
    inputs, others = normal(600, 20, seed=3 + 10 * seed).split([300, 300])
    teacher = normal(20, 5, seed=8 + 10 * seed)
    labels, other_labels = (inputs @ teacher).argmax(1), (others @ teacher).argmax(1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(400):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(inputs), labels)
        if penalty is not None and step >= 100:
            loss = loss + penalty.value(model)
        loss.backward()
        optimizer.step()
    return model, lambda net: float(functional.cross_entropy(net(others), other_labels).detach())


def rounded(model, rounding):
    """A copy that a function of the whole model has rounded."""
    copied = copy.deepcopy(model)
    rounding(copied)
    return copied


def binarize_signs(model):
    for layer in (model[0], model[2]):
        Binarize("sign").apply(layer, None)


def test_a_network_that_was_pulled_loses_less_by_rounding_than_one_that_is_binarized_afterwards():
    losses = []  # of one training each: they swing by 0.2 with the last bits of a product, so that means are compared
    for seed in range(3):
        penalty = make_penalty("binary", 0.02)
        pulled, loss = trained(penalty, seed)
        plain, _ = trained(None, seed)
        finished = rounded(pulled, penalty.finish)
        signs = rounded(plain, binarize_signs)
        losses.append([loss(net) for net in (pulled, finished, plain, rounded(plain, penalty.finish), signs)])
        for layer in (finished[0], finished[2]):
            assert all(len(row.abs().unique()) <= 2 for row in layer.weight.detach())
    pulled_loss, finished_loss, plain_loss, afterwards_loss, signs_loss = torch.tensor(losses).mean(0).tolist()
    assert finished_loss - pulled_loss < 0.5 * (afterwards_loss - plain_loss)
    assert finished_loss < 0.85 * afterwards_loss
    assert finished_loss < 0.85 * signs_loss


def test_what_was_rounded_is_stored_at_two_bit_as_it_is():
    pulled, _ = trained(make_penalty("binary", 3e-3))
    Binary(1.0).finish(pulled)
    layer = pulled[0]
    weight = layer.weight.detach().clone()
    QuantizeUniform(2).apply(layer, None)
    assert torch.allclose(layer.weight, weight, rtol=1e-5, atol=0)


def test_pruned_layers_are_rounded_within_their_zeros_and_other_forms_left_alone():
    model = nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 5))
    PruneMagnitude(0.5).apply(model[0], None)
    QuantizeUniform(4).apply(model[1], None)
    mask, other = forms.mask_of(model[0]).clone(), model[1].weight.detach().clone()
    Binary(1.0).value(model).backward()
    assert model[1].parametrizations.weight.original.grad is None
    Binary(1.0).finish(model)
    assert not model[0].weight[~mask].any()
    assert all(len(row.abs().unique()) <= 2 for row in model[0].weight.detach())
    assert torch.equal(model[1].weight, other)
