"""Layers that become one: exact where there is a product, refused in words where there is none."""

from __future__ import annotations

import copy

import pytest
import torch
from paretopress.policies.activations import Activation
from paretopress.policies.apply import apply_plan, restore
from paretopress.policies.architectures import LeNet300100, ResNet20
from paretopress.policies.collapsing import merge_layers, merged_info, why_not_merged
from paretopress.policies.errors import PolicyError
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.tests.contracts.technique import layer_info
from torch import nn

torch.set_num_threads(1)

COLLAPSE = Step.of("collapse")
PAIRS = {
    "linear": (lambda: nn.Linear(7, 9), lambda: nn.Linear(9, 4), (7,)),
    "no biases": (lambda: nn.Linear(7, 9, bias=False), lambda: nn.Linear(9, 4, bias=False), (7,)),
    "conv, 1 x 1": (lambda: nn.Conv2d(3, 8, 3, stride=2, padding=1), lambda: nn.Conv2d(8, 5, 1), (3, 9, 8)),
    "1 x 1, conv": (lambda: nn.Conv2d(3, 8, 1), lambda: nn.Conv2d(8, 5, 3, stride=2), (3, 9, 8)),
    "1 x 1 without bias, padded": (
        lambda: nn.Conv2d(3, 8, 1, bias=False),
        lambda: nn.Conv2d(8, 5, 3, padding=1, dilation=2),
        (3, 9, 8),
    ),
}
NONE = {
    "two kernels": (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 3), "neither of the two convolutions is 1 x 1"),
    "a bias at the border": (nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 3, padding=1), "padded border"),
    "depthwise": (nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=8), "without groups"),
}


def infos(first, second, shape):
    x = torch.randn(2, *shape)
    with torch.no_grad():
        return layer_info(first, x), layer_info(second, first(x))


@pytest.mark.parametrize("name", PAIRS)
def test_the_product_computes_what_the_two_do(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, second = PAIRS[name][0](), PAIRS[name][1]()
        x = torch.randn(3, *PAIRS[name][2])
    one, two = infos(first, second, PAIRS[name][2])
    assert why_not_merged(one, two) is None
    made = merge_layers(first, second)
    with torch.no_grad():
        assert torch.allclose(made(x), second(first(x)), atol=1e-5)
    expected = layer_info(made, x)
    assert merged_info(one, two) == expected


@pytest.mark.parametrize("name", NONE)
def test_where_there_is_no_product_the_reason_is_told(name):
    first, second, reason = NONE[name]
    assert reason in str(why_not_merged(*infos(first, second, (3, 9, 8))))


def lenet():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, pictures = LeNet300100().eval(), torch.randn(8, 1, 28, 28)
    return model, ModelGraph.trace(model, pictures[:1]), pictures


def without(model, *relus):
    """The network with these activations linear."""
    linear = copy.deepcopy(model)
    for name in relus:
        setattr(linear, name, nn.Identity())
    return linear


@pytest.mark.parametrize(
    ("layers", "relus", "left"),
    [
        (["fc1"], ["relu1"], {"fc2": (100, 784), "fc3": (10, 100)}),
        (["fc2"], ["relu2"], {"fc1": (300, 784), "fc3": (10, 300)}),
        (["fc1", "fc2"], ["relu1", "relu2"], {"fc3": (10, 784)}),
    ],
)
def test_a_collapsed_network_computes_what_the_one_without_its_relus_does(layers, relus, left):
    model, graph, pictures = lenet()
    plan = make_plan(Policy(dict.fromkeys(layers, (COLLAPSE,))), graph)
    found = apply_plan(plan, graph, model, pictures)
    shapes = {n: tuple(m.weight.shape) for n, m in found.model.named_modules() if isinstance(m, nn.Linear)}
    assert shapes == left
    with torch.no_grad():
        expected = without(model, *relus)(pictures)
        assert torch.allclose(found.model(pictures), expected, atol=1e-5)
        again = restore(make_plan(plan.policy, graph), graph, LeNet300100(), found.stored())
        assert torch.equal(again(pictures), found.model(pictures))
    files = [export_onnx(network, pictures[:1], calibration=None) for network in (found.model, model)]
    assert len(files[0]) < len(files[1])


def test_a_layer_that_is_kept_loses_its_relu_alone():
    model, graph, pictures = lenet()
    found = apply_plan(make_plan(Policy({"fc1": (Step.of("collapse", merge=False),)}), graph), graph, model, pictures)
    with torch.no_grad():
        assert torch.equal(found.model(pictures), without(model, "relu1")(pictures))


def test_what_is_done_to_the_layer_behind_is_done_to_the_product():
    model, graph, pictures = lenet()
    steps = (Step.of("keep_channels", kept="0-49"), Step.of("prune_magnitude", sparsity=0.9))
    plan = make_plan(Policy({"fc1": (COLLAPSE,), "fc2": steps}), graph)
    assert plan.layers[0].layer.weight_shape == (50, 784)
    found = apply_plan(plan, graph, model, pictures).plain()
    assert int(found.fc2.weight.count_nonzero()) == 50 * 784 - round(0.9 * 50 * 784)


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        ({"fc3": (COLLAPSE,)}, "layer 'fc3': collapse cannot be applied: no nn.ReLU that is called once"),
        ({"fc1": (COLLAPSE, Step.of("quantize", bits=4))}, "layer 'fc1': collapse makes it one with 'fc2'"),
        ({"fc1": (COLLAPSE, Step.of("keep_channels", kept="0-9"))}, "put its other steps there or leave them out"),
    ],
)
def test_a_policy_that_has_no_meaning_is_refused(policy, reason):
    _, graph, _ = lenet()
    with pytest.raises(PolicyError, match=reason):
        make_plan(Policy(policy), graph)


def test_activations_are_found_by_what_they_take_and_who_reads_them():
    assert lenet()[1].activations == (Activation("relu1", "fc1", "fc2"), Activation("relu2", "fc2", "fc3"))


def test_an_activation_that_is_shared_or_takes_a_sum_is_none():
    model = ResNet20().eval()
    graph = ModelGraph.trace(model, torch.randn(1, 3, 32, 32))
    with pytest.raises(PolicyError, match="collapse cannot be applied"):
        make_plan(Policy({"layer1.0.conv1": (COLLAPSE,)}), graph)
