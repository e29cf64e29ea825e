"""One magnitude threshold for all layers: shares that add up to the total, proposed beside the uniform policies."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from paretopress.policies.architectures import LeNet5
from paretopress.policies.errors import ConfigError
from paretopress.policies.graph import ModelGraph
from paretopress.policies.techniques import build
from paretopress.search.prepare import make_space
from paretopress.search.sections.space import SpaceConfig, SpaceRule
from paretopress.spaces.layerwise import LayerwiseSpace
from paretopress.spaces.thresholds import sparsities_by_threshold
from paretopress.tests.contracts.space import CONTRACT, Case
from torch import nn

torch.set_num_threads(1)

GLOBAL = SpaceConfig(
    sparsity=(0.0, 0.5), sparsity_global=(0.8, 0.9), precision=("float32", "w8a8", "k16"), prune="magnitude"
)


@functools.cache
def network() -> tuple[nn.Module, ModelGraph]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LeNet5().eval()
    return model, ModelGraph.trace(model, torch.zeros(1, 1, 28, 28))


def space_of(section: SpaceConfig = GLOBAL) -> LayerwiseSpace:
    model, graph = network()
    return make_space(section, graph, model)


def test_each_layer_loses_what_lies_below_the_one_threshold():
    weights = {"a": np.array([0.1, -0.2, 0.3, 4.0]), "b": np.array([[1.0, -2.0], [3.0, 0.05]])}
    # The four smallest of all are 0.05, 0.1, 0.2 and 0.3.
    assert sparsities_by_threshold(weights, 0.5) == {"a": 0.75, "b": 0.25}
    assert sparsities_by_threshold(weights, 0.0) == {"a": 0.0, "b": 0.0}


def test_no_layer_is_emptied_and_shares_lie_on_the_grid():
    weights = {"small": np.full(1000, 1e-3), "large": np.linspace(1, 2, 3000)}
    assert sparsities_by_threshold(weights, 0.5) == {"small": 0.99, "large": 0.33}
    assert sparsities_by_threshold(weights, 0.5, grid=0.1) == {"small": 0.9, "large": 0.3}


@pytest.mark.parametrize("total", [0.3, 0.8, 0.95])
def test_the_shares_add_up_to_the_total_within_the_grid(total):
    random = np.random.default_rng(0)
    weights = {str(scale): random.normal(0, scale, 20_000) for scale in (0.1, 0.2, 1.0)}
    found = sparsities_by_threshold(weights, total)
    assert np.mean(list(found.values())) == pytest.approx(total, abs=0.01)
    assert list(found.values()) == sorted(found.values(), reverse=True)


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
def test_contract(check):
    check(Case(space_of(), network()[1]))


def test_the_proposals_are_policies_of_the_total_sparsity():
    space, (_, graph) = space_of(), network()
    policies = [space.policy(choices) for choices in space.uniform()]
    totals = set()
    for policy in policies:
        steps = {n: s for n, ss in policy.layers.items() for s in ss if s.technique == "prune_magnitude"}
        gone = sum(build(step).sparsity * graph.layers[name].weights for name, step in steps.items())
        totals.add(round(gone / sum(info.weights for info in graph.layers.values()), 2))
    assert totals == {0.0, 0.5, 0.8, 0.9}
    # Dense, 0.5 and the two proposals, each in every precision.
    assert len(policies) == 4 * 3


def test_layers_alike_stay_alike_whatever_options_the_proposals_add():
    space = space_of()
    assert len(space.menu()["fc1/sparsity"]) == 4
    half = {knob: options.index(0.5) for knob, options in space.menu().items() if knob.endswith("/sparsity")}
    found = [{k: v for k, v in choices.items() if k.endswith("/sparsity")} for choices in space.uniform()]
    assert half in found


def test_a_layer_with_a_rule_keeps_its_own_menu():
    section = GLOBAL.model_copy(update={"rules": (SpaceRule(layers="fc2", sparsity=(0.0, 0.2)),)})
    menu = space_of(section).menu()
    assert menu["fc2/sparsity"] == (0.0, 0.2)
    assert len(menu["fc1/sparsity"]) == 4
    with pytest.raises(ConfigError, match=r"space\.sparsity_global: every layer has a rule"):
        space_of(GLOBAL.model_copy(update={"rules": (SpaceRule(layers="*", sparsity=(0.0, 0.2)),)}))
