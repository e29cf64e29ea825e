"""Formulas of the techniques that split a layer: the truncated SVDs and Tucker-2."""

from __future__ import annotations

import pytest
import torch
from paretopress.policies.techniques.svd_linear import SVDLinear
from paretopress.policies.techniques.svd_spatial import SVDSpatial, spatial_factors
from paretopress.policies.techniques.tucker2 import Tucker2, tucker2_factors
from torch import nn

torch.set_num_threads(1)

GEOMETRIES = [
    {},
    {"stride": (2, 1), "padding": (1, 2)},
    {"padding": "same", "dilation": (1, 2)},
    {"padding": "valid", "stride": 2},
    {"padding": 1, "padding_mode": "circular"},
    {"padding": (2, 1), "padding_mode": "replicate", "bias": False},
]


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(11))


def filled(layer, weight):
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


@pytest.mark.parametrize("rank", [1, 5, 17])
def test_svd_error_is_the_root_sum_of_the_squared_singular_values_dropped(rank):
    layer = filled(nn.Linear(30, 18), normal(18, 30))
    weight = layer.weight.detach().clone()
    first, second = SVDLinear(rank).apply(layer, None)
    error = (second.weight @ first.weight - weight).detach().norm()
    dropped = torch.linalg.svdvals(weight)[rank:]
    assert float(error) == pytest.approx(float(dropped.square().sum().sqrt()), rel=1e-4)


def test_svd_splits_the_singular_values_evenly():
    first, second = SVDLinear(4).apply(filled(nn.Linear(9, 7), normal(7, 9)), None)
    values = torch.linalg.svdvals(normal(7, 9))[:4]
    assert torch.allclose(first.weight @ first.weight.T, values.diag(), atol=1e-5)
    assert torch.allclose(second.weight.T @ second.weight, values.diag(), atol=1e-5)


def test_a_layer_of_low_rank_is_reproduced_with_its_bias():
    layer = filled(nn.Linear(30, 18), normal(18, 4) @ normal(4, 30))
    inputs = normal(5, 6, 30)
    expected = layer(inputs)
    assert torch.allclose(SVDLinear(4).apply(layer, None)(inputs), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("technique", [SVDLinear(3), SVDSpatial(3), Tucker2(3, 3)], ids=str)
def test_factors_keep_the_type_of_the_weights(technique, dtype):
    layer = nn.Linear(8, 8) if isinstance(technique, SVDLinear) else nn.Conv2d(8, 8, 3)
    assert {p.dtype for p in technique.apply(layer.to(dtype), None).parameters()} == {dtype}


def test_spatial_factors_at_full_rank_reproduce_the_weight():
    weight = normal(7, 5, 3, 4)
    vertical, horizontal = spatial_factors(weight, 15)
    assert (tuple(vertical.shape), tuple(horizontal.shape)) == ((15, 5, 3, 1), (7, 15, 1, 4))
    assert torch.allclose(torch.einsum("riy,orx->oiyx", vertical[..., 0], horizontal[:, :, 0]), weight, atol=1e-5)


def test_spatial_svd_errs_by_the_singular_values_dropped():
    weight = normal(7, 5, 3, 4)
    vertical, horizontal = spatial_factors(weight, 6)
    error = torch.einsum("riy,orx->oiyx", vertical[..., 0], horizontal[:, :, 0]) - weight
    dropped = torch.linalg.svdvals(weight.permute(1, 2, 3, 0).reshape(15, 28))[6:]
    assert float(error.norm()) == pytest.approx(float(dropped.norm()), rel=1e-4)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_spatial_svd_reproduces_a_separable_convolution(geometry):
    weight = torch.einsum("riy,orx->oiyx", normal(4, 6, 3), normal(8, 4, 3))
    layer = filled(nn.Conv2d(6, 8, 3, **geometry), weight)
    inputs = normal(2, 6, 9, 8)
    expected = layer(inputs)
    assert torch.allclose(SVDSpatial(4).apply(layer, None)(inputs), expected, atol=1e-3)


def test_tucker_factors_at_full_ranks_reproduce_the_weight():
    weight = normal(7, 5, 3, 3)
    inwards, core, outwards = tucker2_factors(weight, 5, 7)
    assert torch.allclose(_composed(inwards, core, outwards), weight, atol=1e-5)


@pytest.mark.parametrize(("rank_in", "rank_out"), [(4, 5), (6, 5), (4, 8)])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_tucker_reproduces_a_convolution_of_low_multilinear_rank(geometry, rank_in, rank_out):
    weight = _composed(normal(rank_in, 6, 1, 1), normal(rank_out, rank_in, 3, 3), normal(8, rank_out, 1, 1))
    layer = filled(nn.Conv2d(6, 8, 3, **geometry), weight)
    inputs = normal(2, 6, 9, 8)
    expected = layer(inputs)
    assert torch.allclose(Tucker2(rank_in, rank_out).apply(layer, None)(inputs), expected, atol=1e-3)


def test_tucker_errs_between_the_bound_and_plain_hosvd():
    # Any decomposition of these ranks errs at least as its worse mode; HOSVD at most by both modes together.
    weight = normal(24, 20, 3, 3)
    error = float((_composed(*tucker2_factors(weight, 8, 10)) - weight).norm())
    dropped_out = float(torch.linalg.svdvals(weight.flatten(1))[10:].norm())
    dropped_in = float(torch.linalg.svdvals(weight.transpose(0, 1).flatten(1))[8:].norm())
    assert max(dropped_out, dropped_in) <= error <= (dropped_out**2 + dropped_in**2) ** 0.5


def _composed(inwards, core, outwards):
    return torch.einsum("or,rsyx,si->oiyx", outwards[:, :, 0, 0], core, inwards[:, :, 0, 0])
