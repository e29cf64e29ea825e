"""Channels cut out by the slots that the trace noted, against what a new trace with torch_pruning makes of the network."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import pytest
import torch
from paretopress.evaluators.models import build_model
from paretopress.policies import coupling
from paretopress.policies.architectures import DigitsCNN, LeNet5, LeNet300100, ResNet20
from paretopress.policies.errors import CandidateError
from paretopress.policies.graph import ModelGraph, drop_channels
from paretopress.policies.slicing import Slot, can_cut
from torch import Tensor, nn

torch.set_num_threads(1)


class Joined(nn.Module):
    """Maps put side by side and read by one layer, behind it a flatten and a slope for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grow = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.norm, self.wide = nn.BatchNorm2d(14), nn.BatchNorm2d(12)
        self.mix, self.slope = nn.Conv2d(14, 12, 1), nn.PReLU(12)
        self.hidden, self.one, self.head = nn.Linear(12 * 16, 10), nn.PReLU(), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.slope(self.wide(self.mix(self.norm(torch.cat([x, self.grow(x.relu())], 1)))))
        return self.head(self.one(self.hidden(nn.functional.adaptive_avg_pool2d(x, 4).flatten(1))))


NETWORKS = {
    "lenet5": (LeNet5, (1, 28, 28)),
    "lenet300100": (LeNet300100, (1, 28, 28)),
    "digits": (DigitsCNN, (1, 8, 8)),
    "resnet20": (lambda: ResNet20(width=8), (3, 32, 32)),
    "joined": (Joined, (3, 8, 8)),
    "mobilenet": (lambda: build_model("timm:mobilenetv2_035", num_classes=10), (3, 32, 32)),
    "resnet18": (lambda: build_model("timm:resnet18", num_classes=10), (3, 32, 32)),
}


def traced(make, shape: tuple[int, ...]) -> tuple[nn.Module, ModelGraph, Tensor]:
    """A network with random weights and statistics, some of its parameters frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
        for name, buffer in model.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 2)
    for parameter in list(model.parameters())[::3]:
        parameter.requires_grad_(False)
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    return model, ModelGraph.trace(model, x), x


def dropped_by(model: nn.Module, graph: ModelGraph, dropped: dict[str, list[int]], x: Tensor, slots: bool) -> nn.Module:
    model = copy.deepcopy(model)
    groups = [group if slots else replace(group, slots=()) for group in graph.groups]
    drop_channels(model, groups, dropped, x)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_cut_by_slots_are_those_that_a_new_trace_drops(name):
    model, graph, x = traced(*NETWORKS[name])
    free = [group for group in graph.groups if group.refusal is None]
    assert free and all(group.slots for group in free)
    chance = random.Random(0)
    for chosen in (free, chance.sample(free, len(free) // 2), free[:1]):
        counts = {group.root: chance.randint(1, group.channels - 1) for group in chosen}
        dropped = {group.root: chance.sample(range(group.channels), counts[group.root]) for group in chosen}
        one, other = (dropped_by(model, graph, dropped, x, slots) for slots in (True, False))
        assert repr(one) == repr(other), "channel counts"
        state = other.state_dict()
        assert list(one.state_dict()) == list(state)
        for key, value in one.state_dict().items():
            assert torch.equal(value, state[key]) and value.stride() == state[key].stride(), key
        flags = [(n, p.requires_grad, p.grad) for n, p in one.named_parameters()]
        assert flags == [(n, p.requires_grad, p.grad) for n, p in other.named_parameters()]
        with torch.no_grad():
            assert torch.equal(one(x), other(x))


def test_slots_tell_the_places_of_each_channel():
    _, graph, _ = traced(Joined, (3, 8, 8))
    slots = {group.root: {(s.module, s.axis): s.index for s in group.slots} for group in graph.groups}
    assert slots["grow"] == {
        ("grow", "out"): tuple(range(6)),
        ("norm", "out"): tuple(range(8, 14)),
        ("mix", "in"): tuple(range(8, 14)),
    }
    assert slots["mix"]["hidden", "in"] == tuple(range(192))
    assert Slot("hidden", "in", tuple(range(192))).of([0, 3], total=12) == {*range(16), *range(48, 64)}
    assert "one" not in {module for module, _ in slots["hidden"]}, "one slope for all channels"


class Scaled(nn.Module):
    """Has a parameter that is no layer's own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.gain = nn.Parameter(torch.rand(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.a(x) * self.gain).mean((2, 3)))


def test_where_a_parameter_is_no_layers_own_the_network_is_traced_again():
    model, graph, x = traced(Scaled, (3, 8, 8))
    group = graph.group_of("a")
    assert (group.refusal, group.slots) == (None, ())
    small = dropped_by(model, graph, {"a": [1, 2]}, x, slots=True)
    assert torch.equal(small.gain, model.gain[:, [0, 3, 4, 5, 6, 7]])
    assert small(x).shape == (1, 5)


def test_what_would_take_for_ever_to_trace_again_is_left_as_it_was_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Reshapes that follow each other multiply the channel numbers in autograd's record, by thousands in EfficientFormerV2.
    monkeypatch.setattr(coupling, "MAX_FOLLOWED", 20)
    _, graph, _ = traced(Scaled, (3, 8, 8))
    assert graph.group_of("a").refusal is not None


def test_a_layer_that_would_be_emptied_is_refused_and_nothing_is_cut():
    model, graph, x = traced(LeNet5, (1, 28, 28))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CandidateError, match="layer 'conv2': dropping 50 channels would empty a layer"):
        drop_channels(model, graph.groups, {"conv1": [0], "conv2": range(50)}, x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_layers_that_share_a_parameter_keep_their_channels():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(n, 8) for n in (4, 8, 8, 8))
            self.c.weight = self.b.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.d(self.c(self.b(self.a(x).relu()).relu()))

    _, graph, _ = traced(Tied, (4,))
    assert {group.root: group.refusal for group in graph.groups if group.root != "d"} == dict.fromkeys(
        "abc", "a parameter of it stands in two layers"
    )


def test_only_known_kinds_without_tensors_of_their_own_are_cut():
    class Gained(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(4, 8, 3)
            self.gain = nn.Parameter(torch.ones(8))

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain, self.shift = nn.Parameter(torch.ones(1, 8, 1, 1)), nn.Parameter(torch.ones(8))

    fit = [nn.Conv2d(4, 8, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Linear(4, 8), nn.BatchNorm1d(4), nn.GroupNorm(2, 4)]
    fit += [nn.LayerNorm(4), Scale()]
    unfit = [
        Gained(),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.LayerNorm((4, 4)),
        nn.ConvTranspose2d(4, 8, 3),
        nn.Embedding(4, 8),
    ]
    assert all(map(can_cut, fit))
    assert not any(map(can_cut, unfit))
