from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paretopress.policies import forms
from paretopress.policies.techniques.prune_magnitude import PruneMagnitude, largest
from paretopress.policies.techniques.svd_linear import SVDLinear
from torch import nn

torch.set_num_threads(1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.data())
def test_the_largest_magnitudes_are_kept_whatever_the_ties(values, data):
    keep = data.draw(st.integers(0, len(values)))
    weight = torch.tensor(values, dtype=torch.float32)
    mask = largest(weight, keep)
    assert int(mask.sum()) == keep
    if 0 < keep < len(values):
        assert weight[mask].abs().min() >= weight[~mask].abs().max()


def test_among_equal_magnitudes_the_first_go_first():
    assert largest(torch.tensor([[1.0, -1.0], [1.0, 2.0]]), 2).tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.93, 0.999])
def test_the_share_of_each_tensor_becomes_exactly_zero(sparsity):
    layer = nn.Linear(30, 7)
    before = layer.weight.detach().clone()
    PruneMagnitude(sparsity).apply(layer, None)
    kept = layer.weight != 0
    assert int((~kept).sum()) == round(sparsity * 210)
    assert torch.equal(layer.weight[kept], before[kept])


def test_each_factor_loses_its_own_share():
    factors = PruneMagnitude(0.75).apply(SVDLinear(4).apply(nn.Linear(40, 12), None), None)
    zeros = [int((layer.weight == 0).sum()) for _, layer in forms.weighted_modules(factors)]
    assert zeros == [120, 36]
