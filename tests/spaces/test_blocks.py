"""Blocks as a choice of the layerwise space: what is offered, what follows from it, and what is refused."""

from __future__ import annotations

import functools

import pytest
import torch
from paretopress.policies.architectures import LeNet5, ResNet20
from paretopress.policies.errors import ConfigError
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.search.config import make_config
from paretopress.search.prepare import make_space
from paretopress.search.sections.space import SpaceConfig, SpaceRule
from paretopress.spaces.layerwise import LayerwiseSpace, Menu
from paretopress.tests.contracts.space import CONTRACT, Case

torch.set_num_threads(1)

DROP = Step.of("drop_branch")
STARTS = tuple(f"layer{block}.conv1" for block in ("1.0", "1.1", "1.2", "2.1", "2.2", "3.1", "3.2"))
BLOCKS = SpaceRule(layers="layer*.conv1", blocks=("keep", "drop"))


@functools.cache
def graph_of(name: str) -> ModelGraph:
    model, shape = (ResNet20(width=8), (3, 32, 32)) if name == "resnet20" else (LeNet5(), (1, 28, 28))
    return ModelGraph.trace(model.eval(), torch.randn(1, *shape))


def space_of(name: str = "resnet20", **changes) -> LayerwiseSpace:
    options = {"precision": ("float32", "w8a8", "w4"), "channels": (1.0, 0.5), "multiple": 2, **changes}
    return make_space(SpaceConfig(**options), graph_of(name))


SPACES = {
    "untied": {"tie": "none", "rules": (BLOCKS,)},
    "every block": {"tie": "none", "blocks": ("keep", "drop")},
    "by stage": {"tie": "stage", "rules": (BLOCKS,)},
    "never dense": {"tie": "none", "rules": (BLOCKS,), "precision": ("w8a8", "w4a8"), "channels": (0.5, 0.25)},
    "one always dropped": {"tie": "none", "rules": (BLOCKS, SpaceRule(layers="layer1.1.conv1", blocks=("drop",)))},
}


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", SPACES)
def test_contract(name, check):
    check(Case(space_of(**SPACES[name]), graph_of("resnet20")))


def test_blocks_are_offered_for_the_layers_that_start_one():
    offered = [knob for knob in space_of(**SPACES["every block"]).menu() if knob.endswith("/blocks")]
    assert offered == [f"{layer}/blocks" for layer in STARTS]
    assert not any(knob.endswith("/blocks") for knob in space_of(tie="none").menu())


def test_a_dropped_block_takes_its_other_layers_choices_along():
    space = space_of(**SPACES["never dense"])
    chosen = {
        **dict.fromkeys(space.menu(), 1),
        **{f"{start}/blocks": 0 for start in STARTS},
        "layer1.2.conv1/blocks": 1,
    }
    policy = space.policy(chosen)
    assert policy.layers["layer1.2.conv1"] == (DROP,)
    assert "layer1.2.conv2" not in policy.layers
    assert len(policy.layers) == len(graph_of("resnet20").layers) - 1
    other = space.policy({**chosen, "layer1.2.conv2/precision": 0, "layer1.2.conv1/channels": 0})
    assert other == policy
    assert make_plan(policy, graph_of("resnet20")).policy == policy


def test_the_normal_form_of_a_policy_with_a_dropped_block_has_its_choices():
    for name in SPACES:
        space = space_of(**SPACES[name])
        start = "layer1" if name == "by stage" else "layer1.2.conv1"
        policy = space.policy({**dict.fromkeys(space.menu(), 0), f"{start}/blocks": 1})
        found = space.choices(make_plan(policy, graph_of("resnet20")).policy)
        assert found is not None
        assert found[f"{start}/blocks"] == 1
        assert space.policy(found) == policy


def test_tied_layers_drop_the_blocks_of_all_that_start_one():
    space = space_of(**SPACES["by stage"])
    policy = space.policy({"layer1/blocks": 1, "layer2/blocks": 1})
    assert sorted(policy.layers) == [start for start in STARTS if not start.startswith("layer3")]
    assert set(policy.layers.values()) == {(DROP,)}


def test_neither_uniform_nor_central_choices_drop_a_block():
    for name in ("untied", "by stage", "every block"):
        space = space_of(**SPACES[name])
        for choices in [*space.uniform(), space.central()]:
            assert not any(DROP in steps for steps in space.policy(choices).layers.values())
        assert max(space.central().values()) > 0


@pytest.mark.parametrize("most", [96, 6])
def test_a_unit_has_one_variant_without_its_block_and_the_others_are_hardly_fewer(most):
    with_blocks, without = space_of(**SPACES["untied"]).variants(most), space_of(tie="none").variants(most)
    for unit, found in without.items():
        blocks = [choices for choices in with_blocks[unit] if choices.get(f"{unit}/blocks") == 1]
        assert len(blocks) == (unit in STARTS)
        assert len(with_blocks[unit]) <= most
        assert len(with_blocks[unit]) >= min(len(found) + len(blocks), most) - 2


def test_policies_that_drop_what_may_not_be_dropped_have_no_choices():
    space = space_of(tie="none", rules=(SpaceRule(layers="layer1.2.conv1", blocks=("keep", "drop")),))
    assert space.choices(Policy({"layer1.2.conv1": (DROP,)})) is not None
    assert space.choices(Policy({"layer1.1.conv1": (DROP,)})) is None
    w4 = space.policy({"layer1.2.conv2/precision": 2}).layers["layer1.2.conv2"]
    assert space.choices(Policy({"layer1.2.conv1": (DROP,), "layer1.2.conv2": w4})) is None


@pytest.mark.parametrize("blocks", [(), ("drop", "keep"), ("keep", "keep"), ("keep", "skip")])
def test_bad_menus_are_refused(blocks):
    with pytest.raises(
        ConfigError, match=r"space.blocks: (a menu needs|expected \[keep\], \[keep, drop\] or \[drop\])"
    ):
        Menu(blocks=blocks)


def test_a_wrong_word_in_a_configuration_is_refused():
    with pytest.raises(ConfigError, match=r"space.rules.0.blocks.1: Input should be 'keep' or 'drop' \(got 'skip'\)"):
        make_config({"model": {"name": "x.y:z"}, "space": {"rules": [{"layers": "conv1", "blocks": ["keep", "skip"]}]}})


def test_a_rule_that_names_no_first_layer_of_a_block_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match=r"space.rules: .*'layer1.\*.conv2' matches no layer .* do: layer1.0.conv1, "):
        space_of(rules=(BLOCKS, SpaceRule(layers="layer1.*.conv2", blocks=("keep", "drop"))))
    with pytest.raises(ConfigError, match=r"space.blocks: .*; the network has none that can be dropped"):
        space_of("lenet5", blocks=("keep", "drop"))
