"""Pruning by the layer's Hessian against pruning by magnitude, on layers and on a trained network."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from paretopress.evaluators.data import DataSet, SplitSizes
from paretopress.evaluators.sources import load_data
from paretopress.evaluators.training.loop import Recipe, train
from paretopress.policies import forms
from paretopress.policies.apply import apply_plan
from paretopress.policies.architectures import DigitsCNN
from paretopress.policies.errors import PolicyError
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.policies.techniques.base import Calibration
from paretopress.policies.techniques.prune_magnitude import PruneMagnitude
from paretopress.policies.techniques.prune_obs import PruneOBS
from paretopress.policies.techniques.svd_linear import SVDLinear
from torch import Tensor, nn

torch.set_num_threads(1)


def correlated(*shape: int, seed: int) -> Tensor:
    """Maps whose neighbouring values are alike, cut at 0."""
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return nn.functional.avg_pool2d(maps, 3, 1, 1).relu()


@functools.cache
def trained() -> tuple[nn.Module, ModelGraph, DataSet]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DigitsCNN()
    data = load_data("digits", sizes=SplitSizes(validation=300, calibration=256))
    train(model, data, Recipe(epochs=3, batch_size=64, lr=0.05), seed=0)
    model.eval()
    return model, ModelGraph.trace(model, data.preprocess(data.calibration.images[:1])), data


def compressed_outputs(*steps: Step) -> tuple[Tensor, Tensor, np.ndarray]:
    """Outputs of the trained network and of the compressed one on pictures of no part in either, and the labels."""
    model, graph, data = trained()
    plan = make_plan(Policy(dict.fromkeys(("conv2", "fc1"), steps)), graph)
    compressed = apply_plan(plan, graph, model, data.preprocess(data.calibration.images)).model
    x = data.preprocess(data.validation.images)
    with torch.no_grad():
        return model(x), compressed(x), data.validation.labels


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95])
def test_a_layer_errs_less_than_by_magnitude_on_other_inputs(sparsity):
    inputs, others = correlated(16, 8, 10, 10, seed=1), correlated(16, 8, 10, 10, seed=2)
    with torch.no_grad():
        dense = nn.Conv2d(8, 16, 3, padding=1)
        expected, errors = dense(others), []
        for technique in (PruneMagnitude(sparsity), PruneOBS(sparsity)):
            layer = nn.Conv2d(8, 16, 3, padding=1)
            layer.load_state_dict(dense.state_dict())
            technique.apply(layer, Calibration(inputs))
            assert int((~forms.mask_of(layer)).sum()) == round(sparsity * 1152)
            errors.append(float((layer(others) - expected).square().mean()))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("sparsity", [0.8, 0.9, 0.95])
def test_a_trained_network_errs_less_than_by_magnitude_on_other_pictures(sparsity):
    errors, wrong = [], []
    for name in ("prune_magnitude", "prune_obs"):
        expected, found, labels = compressed_outputs(Step.of(name, sparsity=sparsity))
        errors.append(float((found - expected).square().mean()))
        wrong.append(int((found.argmax(1).numpy() != labels).sum()))
    assert errors[1] < 0.7 * errors[0]
    assert wrong[1] <= wrong[0]


@pytest.mark.parametrize(
    "step", [{"quantize": {"bits": 2}}, {"quantize": {"bits": 3}}, {"share": {"clusters": 4}}], ids=str
)
def test_a_trained_network_errs_less_by_second_order_rounding(step):
    (technique, given), errors = next(iter(step.items())), []
    for rounding in ("nearest", "second_order"):
        expected, found, _ = compressed_outputs(Step.of(technique, **given, rounding=rounding))
        errors.append(float((found - expected).square().mean()))
    assert errors[1] < 0.7 * errors[0]


def test_each_factor_is_pruned_by_its_own_inputs():
    inputs = torch.randn(80, 40, generator=torch.Generator().manual_seed(0))
    factors = SVDLinear(4).apply(nn.Linear(40, 12), None)
    # The second factor's first input hardly moves.
    with torch.no_grad():
        factors[0].weight[0] *= 1e-4
        factors[1].weight.copy_(factors[1].weight.sign())
    PruneOBS(0.25).apply(factors, Calibration(inputs))
    masks = [forms.mask_of(layer) for _, layer in forms.weighted_modules(factors)]
    assert [int((~mask).sum()) for mask in masks] == [40, 12]
    assert not masks[1][:, 0].any()


def test_it_needs_the_layers_inputs():
    with pytest.raises(
        PolicyError, match="prune_obs: second-order work needs calibration inputs of the layer, got none"
    ):
        PruneOBS(0.5).apply(nn.Linear(4, 4), None)


def test_a_grouped_convolution_is_refused_where_it_is_given_all_the_same():
    with pytest.raises(PolicyError, match="a convolution of one group"):
        PruneOBS(0.5).apply(nn.Conv2d(4, 4, 3, groups=4), Calibration(torch.ones(1, 4, 5, 5)))


def test_tensors_shared_with_another_network_are_left_alone():
    layer = nn.Linear(12, 8)
    other, before = nn.Linear(12, 8), layer.weight.detach().clone()
    other.weight = layer.weight
    PruneOBS(0.5).apply(layer, Calibration(torch.randn(40, 12)))
    assert torch.equal(other.weight, before)
