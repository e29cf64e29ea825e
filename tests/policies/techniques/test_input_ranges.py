from __future__ import annotations

import pytest
import torch
from paretopress.policies.apply import apply_plan, settle_and_quantize
from paretopress.policies.errors import CandidateError, PolicyError
from paretopress.policies.forms import set_input_range
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.policies.techniques.base import Calibration
from paretopress.policies.techniques.input_ranges import input_range, what_is_needed
from paretopress.policies.techniques.quantize_uniform import QuantizeUniform
from torch import nn

torch.set_num_threads(1)


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def error(inputs, low, high):
    layer = nn.Identity()
    set_input_range(layer, low, high)
    return float((layer(inputs) - inputs).square().mean())


def test_minmax_is_the_least_and_the_greatest():
    x = normal(40, 30)
    assert input_range(x, "minmax") == (float(x.min()), float(x.max()))


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_what_is_kept_of_inputs_has_the_same_range(method):
    x = normal(40, 30)
    needed = what_is_needed(method)(x)
    assert input_range(needed, method) == input_range(x, method)
    assert needed.numel() == (2 if method == "minmax" else x.numel())


def test_the_percentile_leaves_out_one_value_in_a_thousand():
    x = normal(200, 100)
    low, high = input_range(x, "percentile")
    assert 18 <= int(((x < low) | (x > high)).sum()) <= 20
    # 99.9 % of a normal variable lie within 3.29 deviations.
    assert (-low, high) == pytest.approx((3.29, 3.29), rel=0.1)
    outlier = torch.cat([x.flatten(), torch.tensor([1e6])])
    assert input_range(outlier, "percentile")[1] < 5


@pytest.mark.parametrize("heavy", [1.0, 3.0])
def test_the_mse_range_errs_no_more_than_minmax_and_less_with_heavy_tails(heavy):
    x = normal(300, 100).abs() ** heavy
    chosen, full = (error(x, *input_range(x, method)) for method in ("mse", "minmax"))
    assert chosen <= full * 1.0001
    assert heavy == 1.0 or chosen < 0.99 * full


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_constant_inputs_have_a_range(method):
    low, high = input_range(torch.full((50,), 2.0), method)
    assert error(torch.full((50,), 2.0), low, high) < 1e-4


def test_a_layer_computes_on_the_range_that_its_policy_asks_for_however_it_is_set():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    x = normal(50, 1, 8, 8) ** 3
    graph = ModelGraph.trace(network, x[:1])
    for method in ("minmax", "percentile", "mse"):
        step = Step.of("quantize", bits=8, activations="int8", calibration=method)
        plan = make_plan(Policy({"1": (step,)}), graph)
        model = apply_plan(plan, graph, network, x).model
        low, high = input_range(x, method)
        assert float(model[1].input_scale) == pytest.approx((high - low) / 255, rel=1e-5)
        again = apply_plan(plan, graph, network, x[:5]).model
        settle_and_quantize(plan, again, x)
        assert torch.equal(again[1].input_scale, model[1].input_scale)


def test_a_policy_from_before_the_calibration_keeps_its_digest():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    graph = ModelGraph.trace(network, torch.zeros(1, 1, 8, 8))
    plan = make_plan(Policy({"1": (Step.of("quantize", activations="int8"),)}), graph)
    assert dict(plan.policy.layers["1"][0].parameters) == {"activations": "int8", "bits": 8, "rounding": "nearest"}
    step = Step.of("quantize", activations="int8", calibration="minmax")
    assert make_plan(Policy({"1": (step,)}), graph).policy.digest == plan.policy.digest
    step = Step.of("quantize", activations="int8", calibration="mse")
    assert make_plan(Policy({"1": (step,)}), graph).policy.digest != plan.policy.digest


def test_inputs_that_are_missing_or_not_finite_are_refused():
    technique = QuantizeUniform(8, "int8", calibration="mse")
    with pytest.raises(PolicyError, match="needs calibration inputs"):
        technique.apply(nn.Linear(2, 2), None)
    with pytest.raises(CandidateError, match="finite"):
        technique.apply(nn.Linear(2, 2), Calibration(torch.tensor([[1.0, torch.inf]])))
