"""The families' own menus: each keeps the contract of spaces, and starts with its largest network."""

from __future__ import annotations

import pytest
import torch
from paretopress.evaluators.shapes import shape_profile
from paretopress.policies.architectures import SHAPED
from paretopress.policies.architectures.shapes import knobs_of, network_of
from paretopress.policies.errors import ConfigError
from paretopress.policies.graph import ModelGraph
from paretopress.policies.policy import Policy
from paretopress.spaces.families import MENUS, family_space
from paretopress.tests.contracts.space import CONTRACT, Case

torch.set_num_threads(1)


def graph_of(policy: Policy) -> ModelGraph:
    side = knobs_of(policy.shape).side
    return ModelGraph({}, (), (3, side, side), shape=policy.shape)


def test_every_family_has_menus():
    assert set(MENUS) == set(SHAPED)


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("family", MENUS)
def test_contract(family, check):
    check(Case(family_space(family, 32, 4), graph_of))


def test_the_resolutions_are_multiples_of_the_strides_down_to_half_the_side():
    assert family_space("mobilenet_v1", 32, 4).menu()["resolution"] == (32, 28, 24, 20, 16)
    assert family_space("mobilenet_v1", 28, 4).menu()["resolution"] == (28, 24, 20, 16)
    # The paper's own grid.
    assert family_space("mobilenet_v1", 224, 32).menu()["resolution"] == (224, 192, 160, 128)


@pytest.mark.parametrize("family", ["mobilenet_v2", "squeezenet", "tied_resnet"])
def test_the_first_options_are_the_largest_network(family):
    space = family_space(family, 32, 4)
    first, last = (
        shape_profile(space.policy({k: place * (len(o) - 1) for k, o in space.menu().items()}).shape, 10, 3)
        for place in (0, 1)
    )
    assert last.macs < first.macs / 10
    assert last.params < first.params


def test_menus_are_replaced_and_knobs_fixed():
    space = family_space(
        "squeezenet", 32, 4, {"width": (0.5,), "share_3x3": (0.5, 0.25)}, {"batch_norm": True, "bypass": "none"}
    )
    assert set(space.menu()) == {"squeeze_ratio", "share_3x3", "resolution"}
    shape = space.policy({}).shape
    assert (shape["batch_norm"], shape["width"], shape["squeeze_ratio"]) == (True, 0.5, 0.75)
    with pytest.raises(ConfigError, match="got 'lenet'"):
        family_space("lenet", 28, 4)


@pytest.mark.parametrize("family", [family for family, menus in MENUS.items() if "width" in menus])
def test_a_narrower_network_is_a_part_of_the_largest(family):
    """Tensors have the same names and are no larger along any axis, so that weights may be sliced from the largest."""
    space = family_space(family, 32, 4)
    with torch.device("meta"):
        wide, narrow = (
            network_of(space.policy({"width": w}).shape, 10, 3) for w in (0, len(MENUS[family]["width"]) - 1)
        )
    large, small = wide.state_dict(), narrow.state_dict()
    assert list(large) == list(small)
    assert all(len(large[n].shape) == len(small[n].shape) for n in large)
    assert all(a <= b for n in large for a, b in zip(small[n].shape, large[n].shape))
    assert sum(value.numel() for value in small.values()) < sum(value.numel() for value in large.values()) / 4
