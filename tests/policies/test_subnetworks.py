"""Smaller networks of a family inside a larger one: the same channels, whatever joins, adds or leaves out blocks."""

from __future__ import annotations

import pytest
import torch
from paretopress.policies.architectures import SHAPED
from paretopress.policies.errors import PolicyError
from paretopress.policies.subnetworks import Channels, sliced, slices_of
from torch import Tensor, nn

torch.set_num_threads(1)
EXAMPLE = torch.zeros(1, 3, 16, 16)
SMALL = {"side": 16, "downsampling": 4}


def network(family: str, **knobs: object) -> nn.Module:
    return SHAPED[family](num_classes=10, **SMALL, **knobs).eval()


def part_of(whole: nn.Module, part: nn.Module) -> nn.Module:
    slices = slices_of(Channels.of(whole, EXAMPLE), Channels.of(part, EXAMPLE))
    part.load_state_dict(sliced(whole.state_dict(), slices))
    return part


@pytest.mark.parametrize(
    ("family", "large", "small"),
    [
        ("mobilenet_v1", {"width": 0.25, "repeats": 1}, {"width": 0.125, "repeats": 0}),
        ("mobilenet_v2", {"width": 0.35}, {"width": 0.25, "expansion": 3}),
        ("squeezenet", {"width": 0.25, "squeeze_ratio": 0.5}, {"width": 0.125, "squeeze_ratio": 0.25}),
        ("inception", {"width": 0.125}, {"width": 0.125, "bottleneck": 0.5}),
        ("plain", {"width": 0.25}, {"width": 0.125}),
        ("tied_resnet", {"width": 0.5}, {"width": 0.25}),
    ],
)
def test_every_layer_takes_the_first_channels_of_the_larger_ones(family: str, large: dict, small: dict) -> None:
    whole = network(family, **large)
    part = part_of(whole, network(family, **small))
    state = whole.state_dict()
    for name, module in part.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1:
            channels = len(module.weight)
            assert set(module.weight.flatten().tolist()) <= set(state[f"{name}.weight"][:channels].flatten().tolist())


def test_a_network_is_a_part_of_itself() -> None:
    whole = network("squeezenet", width=0.25, squeeze_ratio=0.5, bypass="complex")
    part = part_of(whole, network("squeezenet", width=0.25, squeeze_ratio=0.5, bypass="complex"))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(part(x), whole(x))


def test_what_reads_joined_maps_takes_the_inputs_of_the_same_channels() -> None:
    """Of a fire module with fewer 3x3 filters the next squeeze layer reads the first 1x1 and the first 3x3 ones."""
    whole = network("squeezenet", width=0.25, squeeze_ratio=0.5)
    part = network("squeezenet", width=0.125, squeeze_ratio=0.5)
    slices = slices_of(Channels.of(whole, EXAMPLE), Channels.of(part, EXAMPLE))
    _, read = slices["fires.1.squeeze.0.weight"]
    assert isinstance(read, Tensor)
    assert read.tolist() == [*range(8), *range(16, 24)]


def test_a_channel_that_is_cut_away_is_as_one_that_gives_nothing() -> None:
    """The part computes what the whole does once the other channels are silent; unrounded, both add in the same places."""
    whole, part = (network("mobilenet_v2", width=width, multiple=1) for width in (0.35, 0.25))
    part_of(whole, part)
    slices = slices_of(Channels.of(whole, EXAMPLE), Channels.of(part, EXAMPLE))
    state = whole.state_dict()
    with torch.no_grad():
        for name, index in slices.items():
            if index:
                kept = torch.zeros_like(state[name], dtype=torch.bool)
                kept[index] = True
                state[name].masked_fill_(~kept, 1.0 if name.endswith("running_var") else 0.0)
    whole.load_state_dict(state)
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(part(x), whole(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "large", "small", "reason"),
    [
        ("mobilenet_v1", {"width": 0.125}, {"width": 0.25}, "of 8 channels is not in the network"),
        ("plain", {"width": 0.125, "kernel": 5}, {"width": 0.125, "kernel": 3}, "does not fit"),
        ("squeezenet", {"width": 0.125}, {"width": 0.125, "bypass": "complex"}, "is not in the network"),
        ("shufflenet", {"width": 0.5}, {"width": 0.25}, "channels"),
    ],
)
def test_a_network_that_is_not_contained_is_refused(family: str, large: dict, small: dict, reason: str) -> None:
    with pytest.raises(PolicyError, match=reason):
        part_of(network(family, **large), network(family, **small))
