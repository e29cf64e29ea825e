"""N of M: groups along the inputs, the largest kept; by the Hessian the outputs err less; what the positions cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from paretopress.policies import forms
from paretopress.policies.coding.press import breakdown, encode
from paretopress.policies.coding.tensors import SparseTensor
from paretopress.policies.group_sparsity import highest_in_groups, kept_inputs, prune_groups
from paretopress.policies.second_order import damped, layer_hessian, output_error
from paretopress.policies.techniques.base import Calibration
from paretopress.policies.techniques.prune_nm import PruneNM
from torch import nn

torch.set_num_threads(1)


def normal(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(count, features, seed):
    return normal(count, features, seed=seed) @ normal(features, features, seed=99) / features**0.5 + 0.3


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (3, 8), (4, 16)])
def test_each_group_keeps_its_largest(n, m):
    layer = nn.Linear(48, 5)
    dense = layer.weight.detach().clone().view(5, -1, m)
    PruneNM(n, m).apply(layer, None)
    kept = layer.weight.detach().view(5, -1, m)
    assert ((kept != 0).sum(2) == n).all()
    assert torch.equal(kept.abs().sort(2).values[..., m - n :], dense.abs().sort(2).values[..., m - n :])


def test_groups_of_a_convolution_run_along_its_input_channels():
    mask = highest_in_groups(normal(6, 8, 3, 3).abs(), 2, 4)
    assert (mask.view(6, 2, 4, 3, 3).sum(2) == 2).all()


def test_a_last_smaller_group_keeps_up_to_n():
    mask = highest_in_groups(normal(7, 10), 2, 4)
    assert (mask[:, 8:].sum(1) == 2).all()
    assert int(mask.sum()) == 7 * kept_inputs(10, 2, 4) == 7 * 6
    assert int(highest_in_groups(normal(7, 9), 2, 4).sum()) == 7 * kept_inputs(9, 2, 4) == 7 * 5


def test_of_equal_weights_the_first_are_kept():
    assert highest_in_groups(torch.ones(1, 4), 2, 4).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("layer", [nn.Linear(32, 12), nn.Conv2d(8, 12, 3)], ids=["linear", "conv"])
def test_by_the_hessian_the_outputs_err_less_on_other_inputs(layer):
    if isinstance(layer, nn.Linear):
        inputs, others = correlated(400, 32, 1), correlated(400, 32, 2)
    else:
        inputs, others = (nn.functional.avg_pool2d(normal(16, 8, 12, 12, seed=s), 3, 1) for s in (1, 2))
    weight, judge = layer.weight.detach().clone(), layer_hessian(layer, others)
    errors = []
    for saliency in ("magnitude", "second_order"):
        with torch.no_grad():
            forms.drop_form(layer)
            layer.weight.copy_(weight)
        PruneNM(2, 4, saliency).apply(layer, Calibration(inputs))
        errors.append(output_error(layer.weight.detach(), weight, judge))
    assert errors[1] < 0.8 * errors[0]


def test_what_the_hessian_keeps_is_the_optimum_on_its_mask():
    weight, hessian = normal(5, 12), layer_hessian(nn.Linear(12, 5), correlated(300, 12, 1))
    mask, solved = prune_groups(weight, hessian, 1, 4)
    assert (mask.view(5, 3, 4).sum(2) == 1).all()
    assert not solved[~mask].any()
    gradient = (solved - weight).double() @ damped(hessian)
    assert float(gradient[mask].abs().max()) < 1e-4


def test_inputs_that_are_always_zero_lose_their_weights_first():
    inputs = correlated(200, 8, 1)
    inputs[:, [0, 3, 5, 6]] = 0
    mask, _ = prune_groups(normal(4, 8), layer_hessian(nn.Linear(8, 4), inputs), 2, 4)
    assert not mask[:, [0, 3, 5, 6]].any()


def test_the_positions_of_two_in_four_cost_no_more_than_a_bit_a_weight():
    weight = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    mask = highest_in_groups(torch.from_numpy(weight).abs(), 2, 4).numpy()
    bits = 8 * breakdown(encode({"w": SparseTensor(mask, weight[mask])}, {}))["indices"]
    assert bits / (weight.size / 4) < 4.05
