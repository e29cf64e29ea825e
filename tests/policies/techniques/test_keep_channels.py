"""Channels kept by name: these and no others, in the network and in what is stored."""

from __future__ import annotations

import pytest
import torch
from paretopress.policies.apply import apply_plan, restore
from paretopress.policies.architectures import LeNet5
from paretopress.policies.errors import PolicyError
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.policies.techniques import build
from torch import nn

torch.set_num_threads(1)


def network() -> tuple[nn.Module, ModelGraph, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, pictures = LeNet5().eval(), torch.randn(6, 1, 28, 28)
    return model, ModelGraph.trace(model, pictures[:1]), pictures


def keeping(kept: str) -> Policy:
    return Policy({"conv2": (Step.of("keep_channels", kept=kept),)})


def test_the_named_channels_stay_with_the_weights_that_read_them():
    model, graph, pictures = network()
    small = apply_plan(make_plan(keeping("2,5-6"), graph), graph, model, pictures).model
    assert torch.equal(small.conv2.weight, model.conv2.weight[[2, 5, 6]])
    columns = [channel * 16 + place for channel in (2, 5, 6) for place in range(16)]
    assert torch.equal(small.fc1.weight, model.fc1.weight[:, columns])


def test_the_stored_network_is_made_again_from_the_policy_alone():
    model, graph, pictures = network()
    plan = make_plan(keeping("0-9,31"), graph)
    found = apply_plan(plan, graph, model, pictures)
    with torch.no_grad():
        again = restore(make_plan(plan.policy, graph), graph, LeNet5(), found.stored())
        assert torch.equal(again(pictures), found.model(pictures))


def test_one_set_of_channels_is_one_policy():
    _, graph, _ = network()
    assert make_plan(keeping("0,1,2,7"), graph).policy == make_plan(keeping(" 0-2, 7"), graph).policy
    assert make_plan(keeping("0-49"), graph).policy == Policy()


@pytest.mark.parametrize(
    ("kept", "reason"), [("3,50", "keep channel 50, but has 50"), ("2-1", "keep_channels: kept: expected ascending")]
)
def test_channels_that_a_layer_has_not_are_refused(kept, reason):
    _, graph, _ = network()
    with pytest.raises(PolicyError, match=reason):
        make_plan(keeping(kept), graph)


def test_it_says_how_many_are_kept():
    assert build(Step.of("keep_channels", kept="1,4-6")).keep(10) == 4
