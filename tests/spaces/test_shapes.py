"""The space of shapes: its contract on several families, its counts, and shapes that cannot be."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from paretopress.evaluators.macs import profile
from paretopress.evaluators.shapes import shape_profile
from paretopress.policies.architectures.shapes import canonical, knobs_of, network_of
from paretopress.policies.errors import ConfigError, PolicyError
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.spaces.shapes import ShapeSpace
from paretopress.tests.contracts.space import CONTRACT, Case, FixedTrial

torch.set_num_threads(1)

SMALL = {"side": 32, "downsampling": 4}
SPACES = {
    "mobilenet_v1": ShapeSpace(
        "mobilenet_v1",
        {"width": (1.0, 0.75, 0.5, 0.25), "resolution": (32, 28, 24, 20, 16), "repeats": (5, 0)},
        SMALL,
    ),
    "mobilenet_v2": ShapeSpace("mobilenet_v2", {"width": (1, 0.5, 0.35), "expansion": (6, 3), "multiple": (4,)}, SMALL),
    "squeezenet": ShapeSpace(
        "squeezenet",
        {
            "width": (1.0, 0.5, 0.25),
            "squeeze_ratio": (0.125, 0.25, 0.5),
            "share_3x3": (0.5, 0.25),
            "bypass": ("none", "simple", "complex"),
            "batch_norm": (True, False),
        },
        SMALL,
    ),
    "plain": ShapeSpace("plain", {"convolution": ("full", "separable"), "head": ("pooled", "linear")}),
}


@functools.cache
def graph_of(digest: str, policy: Policy) -> ModelGraph:
    """Of the smallest interest here: that the shape is one that can be, and is the policy's."""
    return ModelGraph({}, (), (3, knobs_of(policy.shape).side, knobs_of(policy.shape).side), shape=policy.shape)


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", SPACES)
def test_contract(name, check):
    check(Case(SPACES[name], lambda policy: graph_of(policy.digest, policy)))


def test_a_policy_of_a_shape_is_planned_on_the_network_of_that_shape_alone():
    policy = Policy(
        {"stages.1.0.pointwise.conv": (Step.of("prune_channels", sparsity=0.5, multiple=4),)},
        shape={"family": "mobilenet_v1", "width": 0.25, "repeats": 0, **SMALL},
    )
    model, x = network_of(policy.shape, 10, 1).eval(), torch.zeros(1, 1, 32, 32)
    plan = make_plan(policy, ModelGraph.trace(model, x, policy.shape))
    assert plan.policy.shape == canonical(policy.shape)
    assert plan.channels
    with pytest.raises(PolicyError, match=r"asks for .*width=0.25.*; the network was not built from a shape"):
        make_plan(policy, ModelGraph.trace(model, x))
    other = ModelGraph.trace(model, x, {**policy.shape, "width": 0.5})
    with pytest.raises(PolicyError, match=r"the network has .*width=0.5"):
        make_plan(policy, other)
    assert make_plan(Policy(), other).policy == Policy()


def test_a_shape_that_cannot_be_is_a_policy_that_the_plan_refuses_with_the_reason():
    space = ShapeSpace("mobilenet_v1", {"width": (0.5, 0.01), "resolution": (32, 30)}, SMALL)
    reasons = {(0, 1): "strides of 4 in all do not divide 30 pixels", (1, 0): "leaves a layer of 32 channels empty"}
    for (width, resolution), reason in reasons.items():
        policy = space.suggest(FixedTrial({"width": width, "resolution": resolution}))
        assert space.choices(policy) == {"width": width, "resolution": resolution}
        assert Policy.from_text(policy.to_json()) == policy
        with pytest.raises(PolicyError, match=reason):
            make_plan(policy, ModelGraph({}, (), (3, 32, 32), shape=policy.shape))
    assert [dict(choices) for choices in space.uniform()] == [{"width": 0, "resolution": 0}]


@pytest.mark.parametrize("knob", ["width", "resolution", "repeats"])
def test_counts_fall_along_the_menus_of_a_mobilenet(knob):
    space = SPACES["mobilenet_v1"]
    first = dict.fromkeys(space.menu(), 0)
    shapes = [space.policy({**first, knob: place}).shape for place in range(len(space.menu()[knob]))]
    counts = [shape_profile(shape, 10, 3) for shape in shapes]
    assert all(later.macs < earlier.macs for earlier, later in itertools.pairwise(counts))
    parameters = [count.params for count in counts]
    assert (parameters == [parameters[0]] * len(parameters)) is (knob == "resolution")


def test_counts_before_there_are_weights_are_those_of_the_network():
    shape = {"family": "squeezenet", "width": 0.25, "bypass": "complex", **SMALL}
    model = network_of(shape, 10, 1).eval()
    for parameter in model.parameters():
        torch.nn.init.ones_(parameter)
    assert shape_profile(shape, 10, 1) == profile(model, torch.zeros(1, 1, 32, 32))


def test_a_shape_is_written_one_way():
    long = {"family": "mobilenet_v1", "width": 1, "multiple": 1, "repeats": 5, "side": 32, "downsampling": 4}
    assert canonical(long) == {"family": "mobilenet_v1", "side": 32, "downsampling": 4}
    assert canonical({"family": "plain", "width": 2}) == {"family": "plain", "width": 2.0}
    assert canonical({}) == {}


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"family": "mobilnet_v1"}, "got 'mobilnet_v1'; did you mean mobilenet_v1"),
        ({"width": 0.5}, "expected the name of a family of networks under 'family'; got None"),
        ({"family": "lenet5"}, "got 'lenet5'"),
        ({"family": "plain", "depth": 3}, "no plain has it: unknown knob 'depth'"),
    ],
)
def test_a_shape_of_no_family_is_refused(shape, message):
    with pytest.raises(PolicyError) as refused:
        make_plan(Policy(shape=shape), ModelGraph({}, (), (3, 32, 32)))
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("family", "menus", "fixed", "message"),
    [
        ("mobilenet_v1", {"width": ()}, SMALL, "space.shape.menus.width: expected a menu of different options"),
        ("mobilenet_v1", {"width": (1.0, 1.0)}, SMALL, "space.shape.menus.width: expected a menu of different options"),
        ("mobilenet_v1", {"width": (1.0,)}, SMALL, "every menu has one option"),
        ("mobilenet_v1", {"side": (28, 32)}, SMALL, "space.shape.menus.side: it has a menu and is fixed to 32"),
        ("mobilenet_v1", {"widht": (0.5, 1.0)}, SMALL, "unknown knob 'widht'; did you mean 'width'"),
        ("mobilenet_v1", {"widht": (0.5,)}, SMALL, "space.shape.menus: unknown knob 'widht'; did you mean 'width'?"),
        ("mobilenet_v1", {"width": (0.5, "a")}, SMALL, "menus.width: expected a number above 0; got 'a'"),
        ("mobilenet_v1", {"width": (0.5, True)}, SMALL, "menus.width: expected a number above 0; got True"),
        ("mobilenet_v1", {"repeats": (1, 0.5)}, SMALL, "menus.repeats: expected a whole number of at least 0; got 0.5"),
        (
            "mobilenet_v1",
            {"resolution": (30,)},
            SMALL,
            "no combination is a network; the first: shape: no mobilenet_v1",
        ),
        ("mobilenet_v1", {"resolution": (30, 31)}, SMALL, "no combination is a network"),
        ("mobilenet", {"width": (0.5, 1.0)}, SMALL, "did you mean mobilenet_v"),
    ],
)
def test_a_space_without_a_choice_is_refused(family, menus, fixed, message):
    with pytest.raises(ConfigError) as refused:
        ShapeSpace(family, menus, fixed)
    assert message in str(refused.value)


def test_variants_are_spread_over_a_menu_and_the_centre_is_its_middle():
    space = SPACES["mobilenet_v1"]
    assert space.variants(3)["resolution"] == ({"resolution": 0}, {"resolution": 2}, {"resolution": 4})
    assert space.variants(9)["repeats"] == ({"repeats": 0}, {"repeats": 1})
    assert space.central() == {"width": 1, "resolution": 2, "repeats": 0}
