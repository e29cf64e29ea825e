"""Merging against the paper's formula: equal neurons for nothing, like ones cheaper than dropping."""

from __future__ import annotations

import functools

import pytest
import torch
from paretopress.evaluators.bank import Bank
from paretopress.evaluators.observe import Observations
from paretopress.evaluators.stitch import norms_after
from paretopress.policies.apply import apply_plan, restore
from paretopress.policies.architectures import DigitsCNN
from paretopress.policies.errors import PolicyError
from paretopress.policies.graph import ModelGraph, input_energies
from paretopress.policies.merging import merge_alike
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.policies.techniques import build
from paretopress.policies.techniques.merge_neurons import MergeNeurons
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)


class Net(nn.Module):
    """A convolution, pooled, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 8, 3), nn.Linear(8 * 4, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.conv(x).relu(), 2)
        return self.fc2(self.fc1(x.flatten(1)).relu())


def alike(noise: float) -> tuple[nn.Module, ModelGraph, Tensor]:
    """A network in which every filter and every hidden neuron stands twice, up to some noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, pictures = Net().eval(), torch.randn(64, 1, 6, 6)
        with torch.no_grad():
            for layer in (model.conv, model.fc1):
                half = len(layer.weight) // 2
                layer.weight[half:] = layer.weight[:half] + noise * torch.randn_like(layer.weight[:half])
                layer.bias[half:] = layer.bias[:half]
    return model, ModelGraph.trace(model, pictures[:1]), pictures


def compressed(technique: str, noise: float, root: str) -> tuple[Tensor, Tensor]:
    """Outputs of the network with half of the root's neurons, and of the dense one."""
    model, graph, pictures = alike(noise)
    given = {"score": "magnitude"} if technique == "prune_channels" else {}
    plan = make_plan(Policy({root: (Step.of(technique, sparsity=0.5, multiple=1, **given),)}), graph)
    with torch.no_grad():
        return apply_plan(plan, graph, model, pictures).model(pictures), model(pictures)


@pytest.mark.parametrize("root", ["conv", "fc1"])
def test_neurons_that_stand_twice_are_merged_without_a_loss(root):
    found, dense = compressed("merge_neurons", 0.0, root)
    assert torch.allclose(found, dense, atol=1e-5)


@pytest.mark.parametrize("root", ["conv", "fc1"])
def test_merging_like_neurons_errs_less_than_dropping_the_smallest(root):
    errors = []
    for technique in ("merge_neurons", "prune_channels"):
        found, dense = compressed(technique, 0.05, root)
        errors.append(float((found - dense).square().mean()))
    assert errors[0] < 0.5 * errors[1]


def test_the_pair_goes_that_has_the_least_saliency():
    weights = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [5.0, 5.0]])
    # Neuron 1 is nearest to 0 (distance 1), but 2 goes for less: 0.01 * 9 < 1 * 1.
    assert merge_alike(weights, torch.tensor([4.0, 1.0, 0.01, 9.0]), 1) == {2: 0}
    assert merge_alike(weights, torch.tensor([4.0, 1.0, 9.0, 9.0]), 1) == {1: 0}


def test_a_neuron_that_took_others_over_is_dearer_and_hands_them_on():
    weights = torch.tensor([[0.0], [1.0], [2.1]])
    # First 1 into 0, then the dearer 0 would cost 2 * 4.41 and 2 costs 4 * 4.41.
    assert merge_alike(weights, torch.tensor([1.0, 0.9, 4.0]), 2) == {1: 2, 0: 2}


def test_a_merged_network_is_the_same_from_the_bank_and_from_its_file():
    model, graph, pictures = alike(0.1)
    steps = (Step.of("merge_neurons", sparsity=0.25, multiple=1),)
    plan = make_plan(Policy({"conv": steps, "fc1": steps}), graph)
    applied = apply_plan(plan, graph, model, pictures)
    energies = input_energies(model, pictures, graph.groups)
    bank = Bank(model, graph, Observations.of(model, graph, pictures), energies, norms_after(model))
    assembled = bank.assemble(plan, pictures)
    assert [tuple(p.shape) for p in applied.model.parameters()] == [(6, 1, 3, 3), (6,), (9, 24), (9,), (5, 9), (5,)]
    for name, value in applied.model.state_dict().items():
        assert torch.equal(value, assembled.model.state_dict()[name]), name
    assert torch.equal(restore(plan, graph, Net(), applied.stored())(pictures), applied.plain()(pictures))
    assert torch.equal(model(pictures), alike(0.1)[0](pictures)), "the dense network is as it was"


@functools.cache
def digits() -> ModelGraph:
    return ModelGraph.trace(DigitsCNN().eval(), torch.randn(1, 1, 8, 8))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        ("conv1", "'bn1' gives each of its channels a scale of its own"),
        ("fc2", "its channels are the network's outputs"),
    ],
)
def test_where_equal_weights_do_not_make_neurons_alike_it_is_refused(layer, reason):
    with pytest.raises(PolicyError, match=f"layer '{layer}': merge_neurons cannot be applied: {reason}"):
        make_plan(Policy({layer: (Step.of("merge_neurons", sparsity=0.5),)}), digits())


def test_merging_and_dropping_exclude_each_other():
    steps = (Step.of("merge_neurons", sparsity=0.5), Step.of("prune_channels", sparsity=0.5))
    with pytest.raises(PolicyError, match="different channel steps"):
        make_plan(Policy({"fc1": steps}), digits())


def test_a_wrong_step_is_refused_and_nothing_to_merge_is_no_step():
    with pytest.raises(PolicyError, match=r"sparsity is a share in \[0, 1\), got 1.0"):
        build(Step.of("merge_neurons", sparsity=1.0))
    with pytest.raises(PolicyError, match="multiple is a whole number from 1, got 0"):
        build(Step.of("merge_neurons", sparsity=0.5, multiple=0))
    assert make_plan(Policy({"fc1": (Step.of("merge_neurons", sparsity=0.0),)}), digits()).policy == Policy({})
    assert MergeNeurons(0.5).keep(64) == 32
