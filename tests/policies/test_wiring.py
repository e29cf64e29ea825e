"""Networks that lose channels are the network with these silenced, or the channels stay for a reason that is told."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from paretopress.evaluators.models import build_model
from paretopress.policies.apply import apply_plan
from paretopress.policies.coupling import ChannelGroup
from paretopress.policies.errors import CandidateError
from paretopress.policies.graph import ModelGraph, drop_channels
from paretopress.policies.labels import follow_channels
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.policies.ranges import write_ranges
from paretopress.policies.slicing import Slot
from paretopress.policies.wiring import check_wiring
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)


class Net(nn.Module):
    """Layers by name and a forward pass given as a function of the network and its input; weights of its own seed."""

    def __init__(self, run, **layers: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(a: int, b: int, **geometry) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1, **geometry)


def pictures(count: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, height, width = x.shape
    return x.view(n, groups, c // groups, height, width).transpose(1, 2).reshape(n, c, height, width)


def plain(between, **layers: nn.Module) -> Net:
    """A convolution, something between, and another layer that reads it."""

    def run(self: Net, x: Tensor) -> Tensor:
        return self.head(pooled(self.b(between(self, self.a(x))).relu()))

    return Net(run, a=conv(3, 12), b=conv(12, 8), head=nn.Linear(8, 5), **layers)


def joined_and_shuffled(self: Net, x: Tensor) -> Tensor:
    return self.head(pooled(self.c(shuffled(torch.cat([self.a(x), self.b(x)], 1).relu(), 2))))


def shuffle_units(self: Net, x: Tensor) -> Tensor:
    x = self.stem(x)
    for unit in (self.one, self.two):
        whole, part = x.chunk(2, 1)
        x = shuffled(torch.cat([whole, unit(part).relu()], 1), 2)
    return self.head(pooled(self.last(x)))


def selected(self: Net, x: Tensor) -> Tensor:
    """Two kernels' maps weighed against each other, channel by channel (SKNet, 1903.06586)."""
    paths = torch.stack([self.a(x), self.wide(x)], 1)
    weights = self.select(self.squeeze(pooled(paths.sum(1))).relu()).view(len(x), 2, -1, 1, 1).softmax(1)
    return self.head(pooled(self.b((paths * weights).sum(1))))


def ghost(self: Net, x: Tensor) -> Tensor:
    x = self.a(x)
    x = torch.cat([x, self.cheap(x)], 1)[:, :13]
    return self.head(pooled(self.b(x)))


def partial(self: Net, x: Tensor) -> Tensor:
    x = self.a(x)
    quarter = x.shape[1] // 4
    return self.head(pooled(self.b(torch.cat([self.part(x[:, :quarter]), x[:, quarter:]], 1))))


def dense(self: Net, x: Tensor) -> Tensor:
    maps = [self.a(x)]
    for layer in (self.b, self.c):
        maps.append(layer(torch.cat(maps, 1)).relu())
    return self.head(torch.cat(maps, 1).flatten(1))


MOVES = {
    "a shuffle of its own channels": lambda: plain(lambda self, x: shuffled(x, 3)),
    "torch's shuffle": lambda: plain(lambda self, x: functional.channel_shuffle(x, 4)),
    "halves swapped": lambda: plain(lambda self, x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    "every other one": lambda: plain(lambda self, x: torch.cat([x[:, ::2], x[:, 1::2]], 1)),
    "turned round": lambda: plain(lambda self, x: x.flip(1)),
    "rolled on by a number": lambda: plain(lambda self, x: x.roll(5, 1)),
    "rolled on by half of them": lambda: plain(lambda self, x: x.roll(x.shape[1] // 2, 1)),
    "split by numbers": lambda: plain(lambda self, x: torch.cat([y * 2 for y in x.split([4, 8], 1)], 1)),
    "a half is squared": lambda: plain(
        lambda self, x: torch.cat([x[:, : x.shape[1] // 2] ** 2, x[:, x.shape[1] // 2 :]], 1)
    ),
    "two joined and shuffled": lambda: Net(
        joined_and_shuffled, a=conv(3, 6), b=conv(3, 6), c=conv(12, 8), head=nn.Linear(8, 5)
    ),
    "units of a shuffle network": lambda: Net(
        shuffle_units, stem=conv(3, 16), one=conv(8, 8), two=conv(8, 8), last=conv(16, 8), head=nn.Linear(8, 5)
    ),
    "cheap features cut to a number": lambda: Net(
        ghost, a=conv(3, 8), cheap=conv(8, 8, groups=8), b=conv(13, 8), head=nn.Linear(8, 5)
    ),
    "kernels selected": lambda: Net(
        selected,
        a=conv(3, 8),
        wide=nn.Conv2d(3, 8, 5, padding=2),
        squeeze=nn.Linear(8, 4),
        select=nn.Linear(4, 16),
        b=conv(8, 6),
        head=nn.Linear(6, 5),
    ),
    "a quarter convolved": lambda: Net(partial, a=conv(3, 16), part=conv(4, 4), b=conv(16, 8), head=nn.Linear(8, 5)),
    "densely joined": lambda: Net(dense, a=conv(3, 6), b=conv(6, 4), c=conv(10, 4), head=nn.Linear(14 * 64, 5)),
}
ACROSS = {
    "group norm": (
        lambda: plain(lambda self, x: self.norm(x), norm=nn.GroupNorm(3, 12)),
        "takes mean and variance over",
    ),
    "group norm over all": (lambda: plain(lambda self, x: self.norm(x), norm=nn.GroupNorm(1, 12)), "mean and variance"),
    "layer norm": (
        lambda: plain(lambda self, x: self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), norm=nn.LayerNorm(12)),
        "takes mean and variance over",
    ),
    "softmax": (lambda: plain(lambda self, x: x.softmax(1)), "a softmax is taken over"),
    "mean": (lambda: plain(lambda self, x: x - x.mean(1, keepdim=True)), "'mean' is taken over"),
    "largest": (lambda: plain(lambda self, x: x * x.amax(1, keepdim=True)), "'amax' is taken over"),
    "length": (lambda: plain(lambda self, x: functional.normalize(x, dim=1)), "'linalg_vector_norm' is taken over"),
    "responses of neighbours": (lambda: plain(lambda self, x: functional.local_response_norm(x, 3)), ""),
    "global response": (
        lambda: plain(lambda self, x: x * (g := x.norm(p=2, dim=(2, 3), keepdim=True)) / g.mean(1, keepdim=True)),
        "'mean' is taken over",
    ),
    "attention over neighbours": (
        lambda: plain(
            lambda self, x: x * self.window(pooled(x).unsqueeze(1)).sigmoid().view(1, -1, 1, 1),
            window=nn.Conv1d(1, 1, 3, padding=1),
        ),
        "weighs each by its neighbours",
    ),
    "divided by how many": (lambda: plain(lambda self, x: x / x.shape[1]), "not what it is with these silenced"),
    "a table made for each": (
        lambda: plain(lambda self, x: x * torch.arange(x.shape[1]).view(1, -1, 1, 1)),
        "not what it is with these silenced",
    ),
    "summed with themselves": (
        lambda: plain(
            lambda self, x: x * (x.flatten(2).transpose(1, 2) @ x.flatten(2)).diagonal(0, 1, 2).view(1, 1, 8, 8)
        ),
        "",
    ),
}


def free(graph: ModelGraph) -> Iterator[ChannelGroup]:
    return (group for group in graph.groups if group.refusal is None and group.channels > 1)


def some(channels: int, seed: int) -> list[int]:
    """Channels that go: any number of them, any of them."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.randint(1, channels, (1,), generator=generator))
    return sorted(torch.randperm(channels, generator=generator)[:count].tolist())


def silenced(model: nn.Module, graph: ModelGraph, dropped: dict[str, list[int]]) -> nn.Module:
    """A copy that does not read these channels."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for group in graph.groups:
            for slot in group.slots if group.root in dropped else ():
                if slot.axis == "in":
                    weight = model.get_submodule(slot.module).weight
                    weight[:, sorted(slot.of(dropped[group.root], group.channels))] = 0
    return model


def without(model: nn.Module, graph: ModelGraph, dropped: dict[str, list[int]]) -> nn.Module:
    """The network without these channels, as a policy that names the others has it."""
    steps = {}
    for root, gone in dropped.items():
        left = [channel for channel in range(graph.group_of(root).channels) if channel not in gone]
        steps[root] = (Step.of("keep_channels", kept=write_ranges(left)),)
    return apply_plan(make_plan(Policy(steps), graph), graph, model, pictures(2)).model


@pytest.mark.parametrize("name", MOVES)
def test_whatever_channels_go_the_network_is_the_silenced_one_or_there_is_none(name: str) -> None:
    model, x = MOVES[name](), pictures(2)
    graph = ModelGraph.trace(model, x[:1])
    assert graph.coupling_error is None
    choices = [{group.root: some(group.channels, seed)} for group in free(graph) for seed in range(4)]
    choices += [{group.root: some(group.channels, seed) for group in free(graph)} for seed in range(6)]
    for dropped in choices:
        try:
            small = without(model, graph, dropped)
        except CandidateError:
            continue
        with torch.no_grad():
            expected = silenced(model, graph, dropped)(x)
            assert float((small(x) - expected).abs().max()) <= 1e-5 * float(expected.std()), dropped


@pytest.mark.parametrize(
    ("name", "roots"),
    [
        ("halves swapped", {"b"}),
        ("turned round", {"a", "b"}),
        ("rolled on by a number", {"b"}),
        ("units of a shuffle network", {"last"}),
        ("densely joined", {"a", "b", "c"}),
        ("kernels selected", {"a", "squeeze", "b"}),
    ],
)
def test_only_moves_that_go_wrong_hold_channels_back(name: str, roots: set[str]) -> None:
    graph = ModelGraph.trace(MOVES[name](), pictures())
    assert {group.root for group in free(graph)} == roots


@pytest.mark.parametrize("name", ACROSS)
def test_channels_that_something_without_weights_is_taken_over_stay(name: str) -> None:
    make, reason = ACROSS[name]
    graph = ModelGraph.trace(make(), pictures())
    assert reason in str(graph.group_of("a").refusal)
    assert "a" not in {group.root for group in free(graph)}
    assert "b" in {group.root for group in free(graph)}, "what has nothing to do with it may go"


def test_a_number_that_only_steers_python_holds_no_channel_back():
    graph = ModelGraph.trace(plain(lambda self, x: x if x.mean() > -1e9 else -x), pictures())
    assert "a" in {group.root for group in free(graph)}


def test_a_norm_of_each_channel_alone_loses_any():
    model, x = plain(lambda self, x: self.norm(x), norm=nn.GroupNorm(12, 12)), pictures(2)
    graph = ModelGraph.trace(model, x[:1])
    small = without(model, graph, {"a": [0, 3, 5]})
    assert small.norm.num_groups == small.norm.num_channels == 9
    torch.testing.assert_close(small(x), silenced(model, graph, {"a": [0, 3, 5]})(x), rtol=0, atol=1e-5)


def test_layers_that_a_residual_branch_of_almost_nothing_hides_are_seen():
    def run(self: Net, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(pooled(x + self.gain * self.b(self.a(x) / self.a(x).shape[1])))

    model = Net(run, stem=conv(3, 8), a=conv(8, 12), b=conv(12, 8), head=nn.Linear(8, 5))
    model.gain = nn.Parameter(torch.full((8, 1, 1), 1e-6))
    assert "silenced" in str(ModelGraph.trace(model, pictures()).group_of("a").refusal)


def test_the_check_names_the_layer_that_would_work_on_other_channels():
    model, x = MOVES["rolled on by a number"](), pictures()
    labels, small = follow_channels(model, x), copy.deepcopy(model)
    a, b = Slot("a", "out", tuple(range(12))), Slot("b", "in", tuple(channel % 12 for channel in range(5, 17)))
    group = ChannelGroup("a", 12, (), None, (a, b))
    lost = drop_channels(small, (group,), {"a": [8, 9]}, x)
    with pytest.raises(CandidateError, match="'b' would work on other channels"):
        check_wiring(labels, small, lost, x)


def test_a_candidate_whose_choice_of_channels_goes_wrong_is_none():
    # Halves of equal numbers are swapped rightly; without an early trial nothing but the check tells the others.
    model, x = MOVES["halves swapped"](), pictures(2)
    graph = ModelGraph.trace(model, x[:1])
    slots = (Slot("a", "out", tuple(range(12))), Slot("b", "in", (*range(6, 12), *range(6))))
    held = graph.group_of("a")
    released = ChannelGroup("a", 12, held.members, None, slots)
    object.__setattr__(graph, "groups", tuple(released if group.root == "a" else group for group in graph.groups))
    even, odd = {"a": [0, 1, 6, 8]}, {"a": [0, 1, 2, 3]}
    expected = silenced(model, graph, even)(x)
    torch.testing.assert_close(without(model, graph, even)(x), expected, rtol=0, atol=1e-5)
    with pytest.raises(CandidateError, match="'b' would work on other channels"):
        without(model, graph, odd)


@pytest.mark.parametrize("name", ["torchvision:shufflenet_v2_x0_5", "timm:ghostnet_050"])
def test_real_networks_that_move_channels_are_what_they_are_with_some_silenced(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = build_model(name, num_classes=10).eval(), torch.randn(2, 3, 32, 32)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 1.5)
    graph = ModelGraph.trace(model, x[:1])
    groups = list(free(graph))
    assert groups
    for group in groups:
        dropped = {group.root: some(group.channels, len(group.root))}
        small = copy.deepcopy(model)
        with torch.no_grad():
            drop_channels(small, graph.groups, dropped, x[:1])
            expected = silenced(model, graph, dropped)(x)
            assert float((small(x) - expected).abs().max()) <= 1e-4 * float(expected.std()), group.root
