"""Learned architectures against the formulas of 1511.05497, and what is left of a network against its switches."""

from __future__ import annotations

import copy

import pytest
import torch
from paretopress.evaluators.sources import load_data
from paretopress.evaluators.training.gates import Gates, Kind, gates_of, put_gates, take_gates, tri_state_relu
from paretopress.evaluators.training.learned import Learning, learn, settled
from paretopress.evaluators.training.loop import Recipe
from paretopress.evaluators.training.penalties.architecture import RISE, Architecture
from paretopress.policies.apply import apply_plan
from paretopress.policies.architectures import DigitsCNN, LeNet5, LeNet300100, ResNet20
from paretopress.policies.errors import CandidateError, ConfigError
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy
from torch import Tensor, nn

torch.set_num_threads(1)

SHAPES: dict[type[nn.Module], tuple[int, ...]] = {
    LeNet300100: (1, 28, 28),
    LeNet5: (1, 28, 28),
    DigitsCNN: (1, 8, 8),
    ResNet20: (3, 32, 32),
}


def network(make: type[nn.Module] = LeNet300100) -> tuple[nn.Module, ModelGraph, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, pictures = make().eval(), torch.randn(8, *SHAPES[make])
    return model, ModelGraph.trace(model, pictures[:1]), pictures


def learning(kind: Kind = "conv_fc", price: float = 0.01, layers: float = 0.0, epochs: int = 1) -> Learning:
    recipe = Recipe(epochs=epochs, batch_size=64, optimizer="adamw", lr=1e-3, weight_decay=0.0)
    return Learning(kind, Architecture(price, layers), recipe)


def flip(gates: Gates, off: dict[str, list[int]], linear: tuple[str, ...] = ()) -> None:
    """Set the switches of these neurons to 0, and of these layers to 1."""
    for root, switch in zip(gates.roots, gates.neurons):
        switch.set(lambda value, root=root: value.index_fill(0, torch.tensor(off.get(root, []), dtype=torch.long), 0.0))
    for layer, switch in zip(gates.layers, gates.slopes):
        switch.set(lambda value, layer=layer: value * 0 + float(layer in linear))


# The tri-state ReLU


@pytest.mark.parametrize(
    ("w", "d", "expected"),
    [
        (1.0, 0.0, [0.0, 0.0, 3.0]),
        (1.0, 1.0, [-2.0, 0.0, 3.0]),
        (0.0, 1.0, [0.0, 0.0, 0.0]),
        (0.5, 0.2, [-0.2, 0.0, 1.5]),
    ],
)
def test_the_tri_state_relu_is_that_of_the_paper(w, d, expected):
    found = tri_state_relu(torch.tensor([-2.0, 0.0, 3.0]), torch.tensor(w), torch.tensor(d))
    assert torch.allclose(found, torch.tensor(expected))


def test_its_slopes_are_those_of_the_formula():
    x, w, d = torch.tensor([-2.0, 3.0], requires_grad=True), torch.tensor(0.5, requires_grad=True), torch.tensor(0.2)
    d.requires_grad_(True)
    tri_state_relu(x, w, d).sum().backward()
    assert torch.allclose(x.grad, torch.tensor([0.1, 0.5]))
    assert w.grad == pytest.approx(-2 * 0.2 + 3)
    assert d.grad == pytest.approx(0.5 * -2)


def test_a_gated_network_is_one_with_tri_state_relus():
    model, graph, pictures = network()
    gated = copy.deepcopy(model)
    gates = put_gates(gated, graph, "fc", with_layers=True)
    w1, w2 = torch.linspace(0, 1, 300), torch.linspace(1, 0.2, 100)
    for switch, w in zip(gates.neurons, (w1, w2)):
        switch.set(lambda value, w=w: w)
    for slope, d in zip(gates.slopes, (0.3, 0.7)):
        slope.set(lambda value, d=d: value * 0 + d)
    with torch.no_grad():
        x = tri_state_relu(model.fc1(pictures.flatten(1)), w1, torch.tensor(0.3))
        expected = model.fc3(tri_state_relu(model.fc2(x), w2, torch.tensor(0.7)))
        assert torch.allclose(gated(pictures), expected, atol=1e-5)


def test_switches_that_were_just_put_in_change_nothing():
    for make in SHAPES:
        model, graph, pictures = network(make)
        gated = copy.deepcopy(model)
        put_gates(gated, graph, "conv_fc", with_layers=True)
        with torch.no_grad():
            assert torch.allclose(gated(pictures), model(pictures), atol=1e-6)


# The penalties


def test_the_penalty_is_the_formula():
    model, graph, _ = network()
    gates = put_gates(model, graph, "fc", with_layers=True, speed=3.0)
    w, d = torch.full((400,), 0.8), torch.tensor([0.25, 0.5])
    for switch in gates.neurons:
        switch.set(lambda value: value * 0 + 0.8)
    for slope, value in zip(gates.slopes, d):
        slope.set(lambda _, value=value: value.reshape(1))
    penalty = Architecture(neurons=0.01, layers=0.5, binary=4.0)
    penalty.start(model)
    early = 0.01 * w.sum() + 0.5 * (1 - d).sum()
    assert float(penalty.value(model).detach()) == pytest.approx(float(early))
    gates.clip(3, 4)
    late = early + 4 * (0.01 * (w * (1 - w)).sum() + 0.5 * (d * (1 - d)).sum())
    assert float(penalty.value(model).detach()) == pytest.approx(float(late))
    gates.progress.fill_(RISE / 2)
    assert float(penalty.value(model).detach()) == pytest.approx(float((early + late) / 2))


def test_switches_stay_between_0_and_1_and_settle_to_the_nearer():
    model, graph, _ = network()
    gates = put_gates(model, graph, "fc", with_layers=False, speed=2.0)
    numbers = torch.tensor([-0.5, 0.0, 0.49, 0.5, 0.51, 1.0, 1.7]).repeat(50)[:300]
    gates.neurons[0].set(lambda _: numbers)
    gates.clip(1, 2)
    assert torch.allclose(gates.neurons[0].value, numbers.clamp(0, 1))
    early = copy.deepcopy(gates)
    early.clip(8, 10)
    assert set(early.neurons[0].value.tolist()) == {0.0, 1.0}
    Architecture(0.1).finish(model)
    assert gates.neurons[0].value[:7].tolist() == [0, 0, 0, 1, 1, 1, 1]


# What is left


@pytest.mark.parametrize(
    ("make", "kind", "off"),
    [
        (LeNet300100, "fc", {"fc1": [0, 7, 299], "fc2": list(range(1, 100, 2))}),
        (LeNet5, "conv_fc", {"conv1": [3], "conv2": [0, 49], "fc1": list(range(400))}),
        (DigitsCNN, "conv", {"conv1": [1, 2], "conv2": [60]}),
        (ResNet20, "conv", {"conv1": [0, 5], "layer2.1.conv1": [9]}),
    ],
)
def test_the_smaller_network_computes_what_the_one_with_switches_does(make, kind, off):
    model, graph, pictures = network(make)
    gated = copy.deepcopy(model)
    gates = put_gates(gated, graph, kind, with_layers=False)
    flip(gates, off)
    with torch.no_grad():
        expected = gated(pictures)
    found = settled(gated, graph, gates, pictures[:1], learning(kind))
    total = {group.root: group.channels for group in graph.groups}
    assert all(found.widths[root] == total[root] - len(gone) for root, gone in off.items())
    counts = [sum(p.numel() for p in net.parameters()) for net in (found.model, model)]
    assert counts[0] < counts[1]
    with torch.no_grad():
        assert torch.allclose(found.model(pictures), expected, atol=1e-5)
        small = apply_plan(make_plan(found.policy, graph), graph, model, pictures).model
        # Batch norms are estimated anew; without any, the policy gives the same network.
        normed = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        assert normed or torch.allclose(small(pictures), expected, atol=1e-5)
    assert {n: p.shape for n, p in small.named_parameters()} == {n: p.shape for n, p in found.model.named_parameters()}


@pytest.mark.parametrize(
    ("off", "linear", "merge", "left"),
    [
        ({}, ("fc1",), {"fc1": True}, {"fc2": 100}),
        # Through ten neurons, two thin layers have fewer weights than their product.
        ({"fc1": list(range(10, 300))}, ("fc1",), {"fc1": False}, {"fc1": 10, "fc2": 100}),
        ({"fc2": list(range(50, 100))}, ("fc1", "fc2"), {"fc1": True, "fc2": True}, {}),
    ],
)
def test_a_linear_layer_is_one_with_the_next_where_that_is_smaller(off, linear, merge, left):
    model, graph, pictures = network()
    gated = copy.deepcopy(model)
    gates = put_gates(gated, graph, "fc", with_layers=True)
    flip(gates, off, linear)
    with torch.no_grad():
        expected = gated(pictures)
    found = settled(gated, graph, gates, pictures[:1], learning("fc"))
    with torch.no_grad():
        assert torch.allclose(found.model(pictures), expected, atol=1e-4)
    steps = {
        name: dict(step.parameters)
        for name, s in found.policy.layers.items()
        for step in s
        if "merge" in dict(step.parameters)
    }
    assert {name: given["merge"] for name, given in steps.items()} == merge
    assert found.widths == left
    plan = make_plan(found.policy, graph)
    small = apply_plan(plan, graph, model, pictures).model
    assert {n: p.shape for n, p in small.named_parameters()} == {n: p.shape for n, p in found.model.named_parameters()}


def test_a_network_without_any_neuron_of_a_layer_is_refused():
    model, graph, pictures = network()
    gates = put_gates(model, graph, "fc", with_layers=False)
    flip(gates, {"fc2": list(range(100))})
    with pytest.raises(CandidateError, match=r"lambda 0.01 \(fc\) leaves no neuron of 'fc2'.*give smaller lambdas"):
        settled(model, graph, gates, pictures[:1], learning("fc"))


def test_a_network_without_layers_of_the_kind_is_refused():
    model, graph, _ = network()
    with pytest.raises(CandidateError, match="no layer of the kind 'conv' has neurons that can be removed"):
        put_gates(model, graph, "conv", with_layers=False)
    with pytest.raises(ConfigError, match="expected a kind of conv, fc, conv_fc; got 'al'"):
        Learning("al", Architecture(0.1), Recipe())


def test_switches_are_taken_out_without_a_trace():
    model, graph, pictures = network()
    names, before = [name for name, _ in model.named_modules()], model(pictures)
    put_gates(model, graph, "fc", with_layers=True)
    assert gates_of(model).layers == ["fc1", "fc2"]
    take_gates(model)
    assert [name for name, _ in model.named_modules()] == names
    assert torch.equal(model(pictures), before)
    assert not any(module._forward_pre_hooks for module in model.modules())


# Training


def test_a_dearer_neuron_leaves_fewer_of_them_and_a_dear_relu_makes_its_layer_linear():
    data = load_data("digits")
    model = DigitsCNN()
    graph = ModelGraph.trace(model, data.preprocess(data.train.images[:1]))
    cheap = learn(model, graph, data, learning("fc", 1e-6), seed=0)
    dear = learn(model, graph, data, learning("fc", 0.003), seed=0)
    assert 0 < dear.widths["fc1"] < cheap.widths["fc1"] <= 64
    straight = learn(model, graph, data, learning("fc", 1e-6, layers=50.0), seed=0)
    assert {step.technique for step in straight.policy.layers["fc1"]} >= {"collapse"}
    assert cheap.policy == Policy() or "fc1" in cheap.policy.layers
    with pytest.raises(CandidateError, match="leaves no neuron of 'fc1'"):
        learn(model, graph, data, learning("fc", 1e3), seed=0)
