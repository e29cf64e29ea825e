"""Rewrites of a layer: the published ratios, exact where a layer is of the smaller kind already, and least squares otherwise."""

from __future__ import annotations

import copy

import pytest
import torch
from paretopress.evaluators.models import build_model
from paretopress.evaluators.runtime import logits, session
from paretopress.policies.apply import apply_plan, restore
from paretopress.policies.coding.press import decode, encode
from paretopress.policies.errors import CandidateError, PolicyError
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.policies.regression import regressed
from paretopress.policies.second_order import layer_hessian, output_error
from paretopress.policies.techniques import rewrite_flattened, rewrite_separable, rewrite_stacked
from paretopress.policies.techniques.base import Calibration, LayerInfo, outline
from paretopress.policies.techniques.rewrite_asymmetric import RewriteAsymmetric
from paretopress.policies.techniques.rewrite_flattened import RewriteFlattened
from paretopress.policies.techniques.rewrite_pooled import RewritePooled
from paretopress.policies.techniques.rewrite_separable import RewriteSeparable
from paretopress.policies.techniques.rewrite_stacked import RewriteStacked
from paretopress.policies.techniques.rewriting import fitted
from paretopress.tests.contracts.technique import count_macs
from torch import nn

torch.set_num_threads(1)

GEOMETRIES = [
    {},
    {"stride": (2, 1), "padding": (1, 2)},
    {"padding": "same", "dilation": (1, 2)},
    {"padding": 1, "padding_mode": "circular"},
    {"padding": (2, 1), "padding_mode": "replicate", "bias": False},
]


def normal(*shape, seed=11):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(layer, weight):
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(normal(*layer.bias.shape, seed=5))
    return layer


def smooth(*shape, seed):
    """Maps whose neighbours are alike and whose channels are mixed, with a mean, as a network's inner maps are."""
    maps = nn.functional.avg_pool2d(normal(*shape[:2], shape[2] + 2, shape[3] + 2, seed=seed), 3, 1)
    mixing = normal(shape[1], shape[1], seed=3)
    return torch.einsum("oi,nihw->nohw", mixing, maps).relu()


def info_of(channels, out, kernel, side, **geometry):
    module = nn.Conv2d(channels, out, kernel, **geometry)
    graph = ModelGraph.trace(nn.Sequential(module, nn.Flatten()).eval(), normal(1, channels, side, side))
    return graph.layers["0"]


@pytest.mark.parametrize(
    ("technique", "kernel", "weights"),
    [
        # 1512.00567, section 3.1 and 3.2: 28 % less for two 3 x 3, 33 % less for 3 x 1 and 1 x 3.
        (RewriteStacked(), 5, 18 / 25),
        (RewriteStacked(), 7, 27 / 49),
        (RewriteAsymmetric(), 3, 2 / 3),
        (RewriteAsymmetric(), 7, 2 / 7),
        # 1704.04861, equation 3: 1 / outputs + 1 / places of the kernel.
        (RewriteSeparable(), 3, 1 / 32 + 1 / 9),
        (RewriteSeparable(2), 3, 2 / 32 + 2 / 9),
        # 1412.5474: outputs (channels + height + width).
        (RewriteFlattened(), 5, (32 + 5 + 5) / (32 * 25)),
    ],
    ids=str,
)
def test_weights_and_multiplications_fall_by_the_published_ratio(technique, kernel, weights):
    layer = info_of(32, 32, kernel, 16, padding=kernel // 2)
    cost = technique.cost(layer)
    assert technique.check(layer) is None
    assert cost.weight_bits / (32 * layer.weights) == pytest.approx(weights)
    assert cost.macs / layer.macs == pytest.approx(weights)


def test_pooling_divides_weights_and_multiplications_by_the_positions():
    layer = LayerInfo("fc", "linear", (512, 800), (800,), (512,), positions=16)
    cost = RewritePooled(16).cost(layer)
    assert RewritePooled(16).check(layer) is None
    assert (cost.macs, cost.weight_bits) == (layer.macs // 16, 32 * layer.weights // 16)


def test_pooling_by_another_number_of_positions_is_refused():
    layer = LayerInfo("fc", "linear", (512, 800), (800,), (512,), positions=16)
    assert RewritePooled(8).check(layer) == "'fc' reads 16 positions of each channel; got positions 8"
    with pytest.raises(PolicyError, match="expected a multiple of 7 features, got 800"):
        RewritePooled(7).apply(nn.Linear(800, 4), None)


SEPARABLE = rewrite_separable.composed(normal(6, 1, 3, 3), normal(8, 6, 1, seed=2))
FLATTENED = rewrite_flattened.composed(normal(8, 6), normal(8, 3, seed=2), normal(8, 3, seed=4))
COLUMNS = torch.einsum("riy,orx->oiyx", normal(6, 6, 3), normal(8, 6, 3, seed=2))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize(
    ("technique", "weight"),
    [
        (RewriteSeparable(fit="weights"), SEPARABLE),
        (RewriteFlattened(fit="weights"), FLATTENED),
        (RewriteAsymmetric(fit="weights"), COLUMNS),
    ],
    ids=str,
)
def test_a_convolution_that_is_of_the_smaller_kind_already_is_reproduced(technique, weight, geometry):
    layer, inputs = filled(nn.Conv2d(6, 8, 3, **geometry), weight), normal(2, 6, 9, 8)
    expected = layer(inputs)
    assert torch.allclose(technique.apply(copy.deepcopy(layer), None)(inputs), expected, atol=1e-3)


@pytest.mark.parametrize("geometry", [{}, {"padding": 1}, {"stride": 2, "dilation": (1, 2)}], ids=str)
def test_kernels_in_a_row_are_the_one_that_they_compose(geometry):
    kernels = [normal(6, 4, 3, 3), normal(8, 6, 3, 3, seed=2)]
    layer, inputs = filled(nn.Conv2d(4, 8, 5, **geometry), rewrite_stacked.composed(*kernels)), normal(2, 4, 15, 14)
    expected = layer(inputs)
    row = rewrite_stacked._row(layer, kernels)
    assert torch.allclose(row(inputs), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("side", [5, 7])
def test_stacked_kernels_nearly_reproduce_what_others_compose(side):
    kernels = [normal(6, 6, 3, 3, seed=seed) for seed in range((side - 1) // 2)]
    weight = rewrite_stacked.composed(*kernels)
    layer = filled(nn.Conv2d(6, 6, side), weight)
    row = RewriteStacked(fit="weights").apply(layer, None)
    found = rewrite_stacked.composed(*(part.weight.detach() for part in row))
    plain = RewriteStacked(fit="weights").apply(filled(nn.Conv2d(6, 6, side), normal(*weight.shape)), None)
    other = rewrite_stacked.composed(*(part.weight.detach() for part in plain)) - normal(*weight.shape)
    assert float((found - weight).norm() / weight.norm()) < 0.5 * float(other.norm() / normal(*weight.shape).norm())


@pytest.mark.parametrize(
    ("technique", "kernel"),
    [(RewriteSeparable, 3), (RewriteFlattened, 3), (RewriteAsymmetric, 3), (RewriteStacked, 5)],
)
def test_fitted_to_the_outputs_a_layer_errs_less_on_other_pictures_than_fitted_to_its_weights(technique, kernel):
    layer = filled(nn.Conv2d(6, 10, kernel, padding=kernel // 2), normal(10, 6, kernel, kernel))
    seen, others = smooth(64, 6, 10, 10, seed=1), smooth(64, 6, 10, 10, seed=2)
    errors = {}
    for fit in ("weights", "outputs"):
        parts = technique(fit=fit).apply(copy.deepcopy(layer), Calibration(seen))
        errors[fit] = float((parts(others) - layer(others)).detach().square().mean())
    assert errors["outputs"] < 0.75 * errors["weights"]


def bright(seed):
    """Flattened maps that are brighter to one side."""
    return (smooth(300, 4, 4, 3, seed=seed) * torch.tensor([0.1, 0.5, 3.0])).flatten(1)


def test_pooling_is_exact_for_weights_that_do_not_tell_positions_apart_and_better_regressed_for_others():
    even = filled(nn.Linear(48, 9), normal(9, 4)[:, :, None].expand(-1, -1, 12).flatten(1))
    inputs = normal(50, 48)
    assert torch.allclose(
        RewritePooled(12, fit="weights").apply(copy.deepcopy(even), None)(inputs), even(inputs), atol=1e-4
    )
    layer, maps = filled(nn.Linear(48, 9), normal(9, 48)), bright(1)
    other = bright(2)
    errors = [
        float((RewritePooled(12, fit=fit).apply(layer, Calibration(maps))(other) - layer(other)).detach().norm())
        for fit in ("weights", "outputs")
    ]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("bias", [True, False])
def test_regression_is_the_least_squares_of_a_library_where_inputs_spread_widely(bias):
    layer, inputs = filled(nn.Linear(5, 3, bias=bias), normal(3, 5)), normal(4000, 5, seed=1) + 0.5
    wanted = inputs @ normal(3, 5, seed=2).T + bias * normal(3, seed=3) + 0.1 * normal(4000, 3, seed=4)
    weight, found = regressed(layer, [inputs], [wanted])
    design = torch.cat([inputs, torch.ones(4000, 1)], 1) if bias else inputs
    expected = torch.linalg.lstsq(design, wanted).solution.T
    # A small ridge holds to the old weights.
    assert torch.allclose(weight, expected[:, :5], atol=0.1)
    assert torch.allclose(found, expected[:, 5] if bias else torch.zeros(3), atol=0.1)


def test_regression_moves_no_weight_of_a_silent_input():
    layer, inputs = filled(nn.Conv2d(3, 4, 3, padding=1), normal(4, 3, 3, 3)), normal(8, 3, 6, 6)
    inputs[:, 1] = 0
    weight, _ = regressed(layer, [inputs], [normal(8, 4, 6, 6, seed=2)])
    assert torch.equal(weight[:, 1], layer.weight[:, 1])
    assert not torch.equal(weight[:, 0], layer.weight[:, 0])


def test_more_sweeps_err_no_more_and_scale_is_of_no_account(monkeypatch):
    weight, moment = normal(8, 6, 3, 3), layer_hessian(nn.Conv2d(6, 8, 3), smooth(32, 6, 9, 9, seed=1))
    start = rewrite_separable._start(weight, 1)
    errors = []
    for sweeps in (1, 3, 12):
        monkeypatch.setattr("paretopress.policies.techniques.rewriting.SWEEPS", sweeps)
        factors = fitted(rewrite_separable.composed, start, weight, moment)
        errors.append(output_error(rewrite_separable.composed(*factors), weight, moment))
    assert errors == sorted(errors, reverse=True)
    scaled = fitted(rewrite_separable.composed, rewrite_separable._start(1e-3 * weight, 1), 1e-3 * weight, moment)
    assert torch.allclose(rewrite_separable.composed(*scaled), 1e-3 * rewrite_separable.composed(*factors), atol=1e-6)


def test_a_silent_layer_stays_silent_and_weights_that_are_not_finite_fail_the_candidate():
    layer = filled(nn.Conv2d(4, 4, 5), torch.zeros(4, 4, 5, 5))
    for technique in (RewriteSeparable(), RewriteAsymmetric(), RewriteFlattened(), RewriteStacked()):
        parts = technique.apply(copy.deepcopy(layer), Calibration(normal(4, 4, 9, 9)))
        assert torch.allclose(parts(normal(4, 4, 9, 9)), layer(normal(4, 4, 9, 9)), atol=1e-4)
    with pytest.raises(CandidateError, match="expected finite weights, got nan or inf"):
        fitted(
            rewrite_separable.composed, (normal(4, 1, 3, 3), normal(4, 4, 1)), torch.full((4, 4, 3, 3), torch.inf), None
        )


@pytest.mark.parametrize(
    "technique",
    [RewriteSeparable(), RewriteAsymmetric(), RewriteFlattened(), RewriteStacked(), RewritePooled(4)],
    ids=str,
)
def test_a_fit_to_outputs_without_inputs_is_refused_and_an_outline_needs_none(technique):
    layer = nn.Linear(16, 6) if isinstance(technique, RewritePooled) else nn.Conv2d(4, 6, 5, padding=2)
    inputs = normal(30, 16) if isinstance(layer, nn.Linear) else normal(3, 4, 9, 9)
    with pytest.raises(PolicyError, match="needs calibration inputs"):
        technique.apply(copy.deepcopy(layer), None)
    made, drawn = technique.apply(copy.deepcopy(layer), Calibration(inputs)), outline(technique, layer)
    assert {n: t.shape for n, t in drawn.state_dict().items()} == {n: t.shape for n, t in made.state_dict().items()}
    assert drawn(inputs).shape == made(inputs).shape


def test_the_graph_knows_how_many_positions_a_flattened_map_has():
    graph = ModelGraph.trace(build_model("family:lenet5").eval(), normal(1, 1, 28, 28))
    assert {name: layer.positions for name, layer in graph.layers.items() if layer.positions > 1} == {"fc1": 16}
    pooled = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2))
    assert {x.positions for x in ModelGraph.trace(pooled.eval(), normal(1, 1, 8, 8)).layers.values()} == {1}


LENET = Policy(
    {
        "conv1": (Step.of("rewrite_flattened"), Step.of("prune_channels", sparsity=0.2, multiple=4)),
        "conv2": (
            Step.of("rewrite_stacked"),
            Step.of("prune_magnitude", sparsity=0.5),
            Step.of("quantize", bits=8, activations="int8"),
        ),
        "fc1": (Step.of("rewrite_pooled", positions=16), Step.of("share", clusters=16)),
    }
)


@pytest.fixture(scope="module")
def lenet():
    model, pictures = build_model("family:lenet5").eval(), normal(64, 1, 28, 28)
    graph = ModelGraph.trace(model, pictures[:1])
    return graph, model, pictures, apply_plan(make_plan(LENET, graph), graph, model, pictures)


def test_a_network_of_rewritten_layers_costs_what_its_plan_tells(lenet):
    _, _, pictures, compressed = lenet
    # Pruning keeps zeros in the exported layer, so that its multiplications are those of the rewrite.
    costs = [plan.techniques[0].cost(plan.layer) for plan in compressed.plan.layers]
    assert count_macs(compressed.plain(), pictures) == sum(cost.macs for cost in costs) + 500 * 10


def test_a_network_of_rewritten_layers_is_restored_from_its_file_and_exported(lenet):
    graph, model, pictures, compressed = lenet
    tensors = decode(encode(compressed.stored(), {})).tensors
    restored = restore(compressed.plan, graph, model, tensors, pictures)
    data = export_onnx(compressed.model, pictures[:1], calibration=pictures)
    with torch.no_grad():
        expected = compressed.model(pictures)
        assert torch.equal(restored(pictures), expected)
    found = logits(session(data), pictures.numpy(), 16)
    assert float((torch.from_numpy(found) - expected).norm() / expected.norm()) < 0.05


def test_a_layer_is_rewritten_or_factorized_and_depthwise_parts_have_no_hessian():
    graph = ModelGraph.trace(build_model("family:lenet5").eval(), normal(1, 1, 28, 28))
    both = Policy({"conv2": (Step.of("rewrite_separable"), Step.of("svd_spatial", rank=4))})
    with pytest.raises(PolicyError, match="rewrite_separable and svd_spatial exclude each other"):
        make_plan(both, graph)
    second = Policy({"conv2": (Step.of("rewrite_flattened"), Step.of("prune_obs", sparsity=0.5))})
    with pytest.raises(PolicyError, match="leaves depthwise layers, of which each channel has a Hessian of its own"):
        make_plan(second, graph)
