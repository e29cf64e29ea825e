"""Scores of channels against their formulas, and the choices that techniques make by them."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from paretopress.evaluators.bank import Bank
from paretopress.evaluators.observe import Observations
from paretopress.evaluators.stitch import norms_after
from paretopress.policies.apply import apply_plan, restore
from paretopress.policies.architectures import DigitsCNN
from paretopress.policies.errors import PolicyError
from paretopress.policies.graph import ModelGraph, group_scores, input_energies
from paretopress.policies.importance import Importance, group_saliencies
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.policies.second_order import damped, reconstruct
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)

SCORES = ("energy", "magnitude", "activity", "taylor", "hessian")


class Small(nn.Module):
    """Two convolutions, a linear layer behind a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.conv1(x).relu(), 2)
        return self.fc(self.conv2(x).relu().flatten(1))


@functools.cache
def small() -> tuple[nn.Module, ModelGraph, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, pictures = Small().eval(), torch.randn(40, 1, 6, 6)
    with torch.no_grad():
        # A filter that never fires, and one that always does.
        model.conv2.bias[3], model.conv2.bias[5] = -50, 5
    return model, ModelGraph.trace(model, pictures[:1]), pictures


def scores(root: str, by: str) -> Tensor:
    model, graph, pictures = small()
    group = graph.group_of(root)
    assert group is not None
    return Importance(model, graph.groups, pictures).scores(group, by)


def hidden() -> Tensor:
    """What the linear layer sees (N, 8, 9)."""
    model, _, pictures = small()
    with torch.no_grad():
        return model.conv2(functional.max_pool2d(model.conv1(pictures).relu(), 2)).relu().flatten(2)


def test_activity_is_the_share_of_samples_on_which_a_neuron_is_not_zero():
    found = scores("conv2", "activity")
    assert torch.allclose(found, (hidden() > 0).float().mean((0, 2)))
    assert (found[3], found[5]) == (0, 1)


def test_taylor_is_the_first_order_change_of_each_pictures_loss():
    model, _, _ = small()
    seen = hidden().requires_grad_(True)
    logits = model.fc(seen.flatten(1))
    functional.cross_entropy(logits, logits.argmax(1), reduction="sum").backward()
    expected = (seen * seen.grad).sum(2).abs().mean(0).detach()
    found = scores("conv2", "taylor")
    assert torch.allclose(found, expected, atol=1e-5)
    assert found[3] == 0


def test_hessian_is_half_of_what_the_outputs_err_by_when_the_other_weights_make_up_for_a_channel():
    generator = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(4, 10, generator=generator), torch.randn(60, 10, generator=generator)
    inputs[:, 3] = inputs[:, 0] + 0.1 * inputs[:, 1]
    hessian = inputs.double().T @ inputs.double() / 60
    found = group_saliencies(weight, hessian, 5)
    for channel in range(5):
        kept = torch.tensor([i for i in range(10) if i // 2 != channel])
        change = torch.zeros(4, 10, dtype=torch.float64)
        change[:, kept] = reconstruct(weight, hessian, kept).double()
        change -= weight.double()
        assert found[channel].item() == pytest.approx(float((change @ damped(hessian) * change).sum()) / 2, rel=1e-3)


def test_energy_and_magnitude_are_the_scores_of_the_group_bit_for_bit():
    model, graph, pictures = small()
    for group in graph.groups[:2]:
        energies = input_energies(model, pictures, graph.groups)
        assert torch.equal(scores(group.root, "energy"), group_scores(model, group, energies))
        assert torch.equal(scores(group.root, "magnitude"), group_scores(model, group))


@pytest.mark.parametrize("by", ["energy", "activity", "taylor", "hessian"])
def test_a_channel_that_never_fires_goes_first(by):
    assert scores("conv2", by).argmin() == 3


@pytest.mark.parametrize("by", SCORES)
def test_the_bank_and_the_plan_drop_the_same_channels_by_every_score(by):
    model, graph, pictures = small()
    plan = make_plan(Policy({"conv2": (Step.of("prune_channels", sparsity=0.5, multiple=1, score=by),)}), graph)
    applied = apply_plan(plan, graph, model, pictures).model
    energies = input_energies(model, pictures, graph.groups)
    bank = Bank(model, graph, Observations.of(model, graph, pictures), energies, norms_after(model))
    assembled = bank.assemble(plan, pictures).model
    assert torch.equal(applied.conv2.weight, assembled.conv2.weight)
    assert len(applied.conv2.weight) == 4
    kept = scores("conv2", by).argsort(stable=True)[4:].sort().values
    assert torch.equal(applied.conv2.weight, model.conv2.weight[kept])


def test_scores_make_different_candidates_and_the_default_is_energy():
    graph = small()[1]
    policies = [
        make_plan(Policy({"conv2": (Step.of("prune_channels", sparsity=0.5, multiple=1, **given),)}), graph).policy
        for given in ({}, {"score": "energy"}, {"score": "taylor"})
    ]
    assert policies[0] == policies[1] != policies[2]


def test_scores_do_not_change_the_network_or_whether_it_trains():
    model, graph, pictures = small()
    frozen = copy.deepcopy(model).requires_grad_(False)
    before = copy.deepcopy(frozen.state_dict())
    importance = Importance(frozen, graph.groups, pictures)
    for by in SCORES:
        assert torch.equal(importance.scores(graph.groups[0], by), scores(graph.groups[0].root, by))
    assert all(torch.equal(value, before[name]) for name, value in frozen.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in frozen.parameters())


@pytest.mark.parametrize("by", SCORES)
def test_batch_norms_and_all_scores_go_together(by):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, pictures = DigitsCNN().eval(), torch.randn(16, 1, 8, 8)
    graph = ModelGraph.trace(model, pictures[:1])
    plan = make_plan(Policy({"conv1": (Step.of("prune_channels", sparsity=0.5, score=by),)}), graph)
    compressed = apply_plan(plan, graph, model, pictures)
    restored = restore(plan, graph, DigitsCNN(), compressed.stored())
    assert torch.equal(restored(pictures), compressed.plain()(pictures))


def test_an_unknown_score_is_refused():
    with pytest.raises(PolicyError, match=r"prune_channels: expected score energy, .*, hessian, got 'apoz'"):
        make_plan(Policy({"conv2": (Step.of("prune_channels", sparsity=0.5, score="apoz"),)}), small()[1])
