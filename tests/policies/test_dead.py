"""Channels without a connection: dropped for nothing where that is exact, kept where it is not."""

from __future__ import annotations

import copy

import pytest
import torch
from paretopress.policies import forms
from paretopress.policies.apply import apply_plan, restore
from paretopress.policies.architectures import DigitsCNN
from paretopress.policies.dead import drop_dead_channels
from paretopress.policies.errors import PolicyError
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from torch import Tensor, nn

torch.set_num_threads(1)

DEAD = Step.of("drop_dead")


class Net(nn.Module):
    """Two convolutions, the second one padded or not, and two linear layers."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 5, 3, padding=padding)
        self.fc1, self.fc2 = nn.Linear(5 * (4 + 2 * padding) ** 2, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x).relu()).relu().flatten(1)
        return self.fc2(self.fc1(x).relu())


def network(padding: int = 0) -> tuple[nn.Module, ModelGraph, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, pictures = Net(padding).eval(), torch.randn(16, 1, 8, 8)
        for layer in (model.conv1, model.conv2, model.fc1):
            nn.init.uniform_(layer.bias, 0.1, 0.5)
    return model, ModelGraph.trace(model, pictures[:1]), pictures


def silence(layer: nn.Module, places: list[int], axis: int) -> None:
    """Prune all weights of some outputs (axis 0) or inputs (axis 1)."""
    mask = forms.mask_of(layer)
    mask = torch.ones_like(layer.weight, dtype=torch.bool) if mask is None else mask.clone()
    mask.index_fill_(axis, torch.tensor(places), False)
    forms.set_form(layer, forms.MaskedWeight(mask))


def dropped(model: nn.Module, graph: ModelGraph, pictures: Tensor) -> nn.Module:
    smaller = copy.deepcopy(model)
    drop_dead_channels(smaller, [g for g in graph.groups if g.refusal is None], pictures[:1])
    assert torch.allclose(smaller(pictures), model(pictures), atol=1e-5), "the network computes the same"
    return smaller


def widths(model: nn.Module) -> list[int]:
    return [len(layer.weight) for _, layer in forms.weighted_modules(model)]


def test_a_neuron_that_nothing_reads_goes():
    model, graph, pictures = network(padding=1)
    silence(model.fc2, [1, 4], 1)
    silence(model.conv2, [0], 1)
    assert widths(dropped(model, graph, pictures)) == [5, 5, 6, 4]


def test_a_neuron_that_nothing_leads_to_goes_into_the_biases_of_its_readers():
    model, graph, pictures = network()
    silence(model.conv1, [2], 0)
    silence(model.conv2, [3], 0)
    silence(model.fc1, [0, 7], 0)
    smaller = dropped(model, graph, pictures)
    assert widths(smaller) == [5, 4, 6, 4]
    assert smaller.fc1.weight.shape == (6, 4 * 16)
    assert not torch.equal(smaller.fc2.bias, model.fc2.bias)


def test_a_dead_neuron_takes_those_along_that_read_it_alone():
    model, graph, pictures = network()
    silence(model.conv1, [3], 0)
    for layer, row, read in ((model.conv2, 1, slice(3, 4)), (model.fc1, 2, slice(16, 32))):
        mask = torch.ones_like(layer.weight, dtype=torch.bool)
        mask[row] = False
        mask[row, read] = True
        forms.set_form(layer, forms.MaskedWeight(mask))
    assert widths(dropped(model, graph, pictures)) == [5, 4, 7, 4]


def test_of_a_layer_that_is_dead_as_a_whole_a_channel_stays():
    model, graph, pictures = network()
    silence(model.conv1, [3], 0)
    silence(model.conv2, [0, 1, 2, 4, 5], 1)
    assert widths(dropped(model, graph, pictures)) == [1, 1, 8, 4]


def test_in_front_of_a_padded_convolution_a_constant_stays_unless_it_is_zero():
    model, graph, pictures = network(padding=1)
    with torch.no_grad():
        model.conv1.bias[4] = -1.0
    silence(model.conv1, [2, 4], 0)
    smaller = dropped(model, graph, pictures)
    assert widths(smaller) == [5, 5, 8, 4]
    assert torch.equal(smaller.conv1.bias, model.conv1.bias[[0, 1, 2, 3, 5]])


def test_a_reader_without_a_bias_or_with_quantized_inputs_keeps_the_constant():
    model, graph, pictures = network()
    silence(model.fc1, [5], 0)
    model.fc2.bias = None
    assert widths(dropped(model, graph, pictures)) == [6, 5, 8, 4]
    model, graph, pictures = network()
    silence(model.fc1, [5], 0)
    forms.set_input_range(model.fc2, 0.0, 4.0)
    assert widths(dropped(model, graph, pictures)) == [6, 5, 8, 4]


def test_what_is_left_keeps_its_zeros_and_trains_on():
    model, graph, pictures = network()
    silence(model.fc1, [0], 0)
    silence(model.fc1, [3], 1)
    smaller = dropped(model, graph, pictures)
    assert isinstance(forms.form_of(smaller.fc1), forms.MaskedWeight)
    assert forms.mask_of(smaller.fc1).shape == (7, 80)
    assert int((~forms.mask_of(smaller.fc1)).sum()) == 7
    assert all(parameter.requires_grad for parameter in smaller.parameters())


def test_a_network_without_dead_channels_is_left_alone():
    model, graph, pictures = network()
    before = copy.deepcopy(model.state_dict())
    smaller = dropped(model, graph, pictures)
    assert all(torch.equal(value, before[name]) for name, value in smaller.state_dict().items())


def test_a_policy_prunes_drops_and_quantizes_and_comes_back_from_its_file():
    model, graph, pictures = network()
    prune, quantize = Step.of("prune_magnitude", sparsity=0.9), Step.of("quantize", bits=4)
    half = Step.of("prune_channels", sparsity=0.25, multiple=1)
    steps = {"conv1": (prune,), "conv2": (prune, quantize), "fc1": (half, prune, quantize, DEAD), "fc2": (prune,)}
    without = {name: tuple(step for step in own if step != DEAD) for name, own in steps.items()}
    plan, other = make_plan(Policy(steps), graph), make_plan(Policy(without), graph)
    assert plan.dead == ("fc1",)
    assert make_plan(plan.policy, graph) == plan
    smaller = apply_plan(plan, graph, model, pictures)
    larger = apply_plan(other, graph, model, pictures)
    assert len(smaller.model.fc1.weight) < len(larger.model.fc1.weight) == 6
    assert torch.allclose(smaller.model(pictures), larger.model(pictures), atol=1e-5)
    assert torch.equal(restore(plan, graph, Net(), smaller.stored())(pictures), smaller.plain()(pictures))


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ({"fc2": (DEAD,)}, "layer 'fc2': drop_dead cannot be applied: its channels are the network's outputs"),
        ({"fc1": (Step.of("svd", rank=2), DEAD)}, "layer 'fc1': drop_dead cannot be applied: 'fc1' is factorized"),
    ],
)
def test_where_it_makes_no_sense_it_is_refused(layers, reason):
    with pytest.raises(PolicyError, match=reason):
        make_plan(Policy(layers), ModelGraph.trace(DigitsCNN().eval(), torch.zeros(1, 1, 8, 8)))
