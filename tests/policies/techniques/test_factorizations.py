"""Formulas of the techniques that split a layer: the truncated SVDs, plain and whitened, Tucker-2 and CP."""

from __future__ import annotations

import pytest
import torch
from paretopress.policies.errors import CandidateError, PolicyError
from paretopress.policies.graph import ModelGraph
from paretopress.policies.second_order import damped, layer_hessian, output_error
from paretopress.policies.techniques.base import Calibration, LayerInfo, outline
from paretopress.policies.techniques.cp import CP, composed, cp_factors
from paretopress.policies.techniques.factors import truncated_svd, whitened_svd
from paretopress.policies.techniques.svd_channel import SVDChannel
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
@pytest.mark.parametrize("technique", [SVDLinear(3), SVDSpatial(3), SVDChannel(3), CP(3), Tucker2(3, 3)], ids=str)
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


def correlated(count, features, seed):
    draws = torch.randn(count, features, generator=torch.Generator().manual_seed(seed))
    mixing = torch.randn(features, features, generator=torch.Generator().manual_seed(77))
    return (draws * 0.8 ** torch.arange(features)) @ mixing + 0.2


@pytest.mark.parametrize("rank", [1, 4, 9, 15])
def test_whitened_svd_errs_less_at_the_outputs_on_correlated_inputs(rank):
    layer, inputs = filled(nn.Linear(24, 18), normal(18, 24)), correlated(500, 24, 1)
    weight, judge = layer.weight.detach().clone(), layer_hessian(layer, correlated(500, 24, 2))
    whitened = SVDLinear(rank, "activations").apply(layer, Calibration(inputs))
    left, right = truncated_svd(weight, rank)
    found = (whitened[1].weight @ whitened[0].weight).detach()
    for moment in (layer_hessian(layer, inputs), judge):
        assert output_error(found, weight, moment) < 0.9 * output_error(left @ right, weight, moment)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_whitened_svd_is_the_optimum_that_the_singular_values_tell(rank):
    weight, moment = normal(9, 12), layer_hessian(nn.Linear(12, 9), correlated(300, 12, 3))
    left, right = whitened_svd(weight, moment, rank)
    change = (left @ right - weight).double()
    root = torch.linalg.cholesky(damped(moment))
    dropped = torch.linalg.svdvals(weight.double() @ root)[rank:]
    assert float((change @ root).norm()) == pytest.approx(float(dropped.norm()), rel=1e-4)
    assert torch.allclose(left.norm(dim=0), right.norm(dim=1), rtol=1e-4)


@pytest.mark.parametrize("kind", ["white", "of few directions", "silent"])
@pytest.mark.parametrize("rank", [1, 5, 11])
def test_whitened_svd_never_errs_more_at_the_outputs(kind, rank):
    inputs = normal(200, 16)
    if kind == "of few directions":
        inputs = inputs[:, :3] @ normal(3, 16)
    inputs = torch.zeros_like(inputs) if kind == "silent" else inputs
    weight, moment = normal(12, 16), layer_hessian(nn.Linear(16, 12), inputs)
    whitened, plain = (a @ b for a, b in (whitened_svd(weight, moment, rank), truncated_svd(weight, rank)))
    assert whitened.isfinite().all()
    assert output_error(whitened, weight, moment) <= output_error(plain, weight, moment) + 1e-6


@pytest.mark.parametrize("technique", [SVDLinear(3, "activations"), SVDChannel(3, "activations")], ids=str)
def test_whitening_without_inputs_is_refused(technique):
    layer = nn.Linear(8, 8) if isinstance(technique, SVDLinear) else nn.Conv2d(8, 8, 3)
    with pytest.raises(PolicyError, match="needs calibration inputs"):
        technique.apply(layer, None)


@pytest.mark.parametrize("whitening", ["none", "activations"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_a_bottleneck_of_channels_reproduces_filters_of_low_rank(geometry, whitening):
    weight = (normal(8, 4) @ normal(4, 54)).view(8, 6, 3, 3)
    layer, inputs = filled(nn.Conv2d(6, 8, 3, **geometry), weight), normal(2, 6, 9, 8)
    expected = layer(inputs)
    factors = SVDChannel(4, whitening).apply(layer, Calibration(inputs))
    assert [tuple(factor.kernel_size) for factor in factors] == [(3, 3), (1, 1)]
    assert torch.allclose(factors(inputs), expected, atol=1e-3)


@pytest.mark.parametrize(
    "geometry", [{}, {"stride": 2, "padding": 1}, {"padding": 1, "padding_mode": "reflect"}], ids=str
)
def test_svd_reproduces_a_1_x_1_convolution_of_low_rank(geometry):
    layer = filled(nn.Conv2d(12, 10, 1, **geometry), (normal(10, 3) @ normal(3, 12))[:, :, None, None])
    inputs = normal(2, 12, 7, 6)
    expected = layer(inputs)
    assert torch.allclose(SVDLinear(3).apply(layer, None)(inputs), expected, atol=1e-3)


@pytest.mark.parametrize("rank", [1, 4, 7])
@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (5, 9, 5, 3)], ids=str)
def test_cp_reconstructs_a_kernel_of_exactly_its_rank(shape, rank):
    weight = composed([normal(size, rank) for size in shape])
    assert float((composed(cp_factors(weight, rank)) - weight).norm() / weight.norm()) < 0.02


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_the_four_layers_of_cp_compute_what_their_factors_stand_for(geometry):
    layer, inputs = filled(nn.Conv2d(6, 8, 3, **geometry), normal(8, 6, 3, 3)), normal(2, 6, 9, 8)
    factors = CP(5).apply(layer, None)
    expected = filled(layer, composed(cp_factors(layer.weight, 5)))(inputs)
    assert [tuple(factor.kernel_size) for factor in factors] == [(1, 1), (3, 1), (1, 3), (1, 1)]
    assert torch.allclose(factors(inputs), expected, atol=1e-4)


def test_more_terms_of_cp_err_less_and_factors_stay_moderate():
    weight = normal(12, 10, 3, 3)
    errors = [float((composed(cp_factors(weight, rank)) - weight).norm()) for rank in (2, 8, 32)]
    assert errors == sorted(errors, reverse=True)
    assert max(float(factor.abs().max()) for factor in cp_factors(weight, 32)) < 100


def test_cp_agrees_with_a_library():
    from tensorly.decomposition import parafac

    weight = normal(6, 5, 3, 3)
    theirs = parafac(weight.double().numpy(), 3, n_iter_max=60, tol=1e-6, random_state=0).to_tensor()
    ours = composed(cp_factors(weight, 3))
    assert float((ours - weight).norm()) < 1.03 * float((torch.from_numpy(theirs).float() - weight).norm())


def test_cp_of_weights_that_are_not_finite_fails_the_candidate():
    layer = filled(nn.Conv2d(4, 4, 3), torch.full((4, 4, 3, 3), torch.inf))
    with pytest.raises(CandidateError, match="expected finite weights, got nan or inf"):
        CP(2).apply(layer, None)


def test_cp_of_a_silent_layer_is_silent():
    assert not composed(cp_factors(torch.zeros(4, 3, 3, 3), 2)).any()


@pytest.mark.parametrize(
    ("technique", "make"),
    [
        (SVDLinear(3, "activations"), lambda: nn.Linear(8, 6)),
        (SVDLinear(3, "activations"), lambda: nn.Conv2d(8, 6, 1)),
        (SVDLinear(9, "activations"), lambda: nn.Linear(8, 6)),
        (SVDChannel(3, "activations"), lambda: nn.Conv2d(8, 6, 3, stride=2)),
        (SVDChannel(6), lambda: nn.Conv2d(8, 6, 3)),
        (CP(4), lambda: nn.Conv2d(8, 6, (3, 5), padding=1)),
        (Tucker2(4, 3), lambda: nn.Conv2d(8, 6, 3)),
    ],
    ids=lambda given: None if callable(given) else str(given),
)
def test_an_outline_has_the_shapes_of_the_result(technique, make):
    layer = make()
    inputs = normal(3, 8) if isinstance(layer, nn.Linear) else normal(3, 8, 9, 9)
    made, drawn = technique.apply(layer, Calibration(inputs)), outline(technique, make())
    assert {n: t.shape for n, t in drawn.state_dict().items()} == {n: t.shape for n, t in made.state_dict().items()}
    assert drawn(inputs).shape == made(inputs).shape


def _composed(inwards, core, outwards):
    return torch.einsum("or,rsyx,si->oiyx", outwards[:, :, 0, 0], core, inwards[:, :, 0, 0])


def test_a_linear_layer_of_another_library_is_taken_where_it_computes_the_same():
    class Linear(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight, self.bias)

    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    factors = SVDLinear(3).apply(Linear(12, 10), None)
    assert [tuple(layer.weight.shape) for layer in factors] == [(3, 12), (10, 3)]
    with pytest.raises(PolicyError, match="expected a torch Linear, got Scaled"):
        SVDLinear(3).apply(Scaled(12, 10), None)


def layer_of(module: nn.Module, *shape: int) -> LayerInfo:
    net = nn.Sequential(module, nn.Flatten()).eval()
    return ModelGraph.trace(net, normal(1, *shape)).layers["0"]


CONVOLUTION = (lambda: nn.Conv2d(16, 24, 3, padding=1), (16, 8, 8))
STRIDED = (lambda: nn.Conv2d(16, 24, 3, stride=2, padding=1), (16, 8, 8))
SPREADING = (lambda: nn.Conv2d(16, 24, 2, padding=1), (16, 1, 1))


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        *((SVDLinear, one) for one in ((lambda: nn.Linear(40, 24), (40,)), (lambda: nn.Conv2d(16, 24, 1), (16, 8, 8)))),
        *((make, layer) for make in (SVDSpatial, SVDChannel, CP) for layer in (CONVOLUTION, STRIDED)),
        *((lambda rank: Tucker2(rank, rank), layer) for layer in (CONVOLUTION, STRIDED, SPREADING)),
    ],
)
def test_ranks_are_refused_from_the_one_on_that_makes_nothing_cheaper(make, layer):
    info = layer_of(layer[0](), *layer[1])

    def is_cheaper(rank: int) -> bool:
        cost = make(rank).cost(info)
        return cost.macs < info.macs and cost.weight_bits < 32 * info.weights

    wasteful = [rank for rank in range(1, 200) if not is_cheaper(rank) and not make(rank).is_identity(info)]
    assert wasteful
    for rank in range(1, 200):
        assert (make(rank).check(info) is not None) == (rank in wasteful)
    largest = wasteful[0] - 1
    words = make(wasteful[0]).check(info).rpartition(" helps is ")[2]
    assert words in (str(largest), f"rank_in {largest}, rank_out {largest}")


def test_a_layer_that_no_factors_make_cheaper_says_so():
    info = layer_of(nn.Linear(1, 8), 1)
    assert SVDLinear(1).check(info) is None, "rank 1 is full"
    info = layer_of(nn.Linear(2, 2), 2)
    assert "takes 4 MACs and its factors would take 4; no rank helps, leave it out" in SVDLinear(1).check(info)
