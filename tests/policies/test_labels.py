"""Channels followed by labels: exact through shuffles, joins and products, and refused with a reason where they get lost."""

from __future__ import annotations

import copy

import pytest
import torch
from paretopress.evaluators.models import build_model
from paretopress.policies.coupling import ChannelGroup
from paretopress.policies.graph import ModelGraph, drop_channels
from paretopress.policies.labels import follow_channels
from torch import Tensor, nn

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


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def picture() -> Tensor:
    return torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def free(graph: ModelGraph) -> dict[str, ChannelGroup]:
    return {group.root: group for group in graph.groups if group.refusal is None}


def shuffled(x: Tensor) -> Tensor:
    n, c, height, width = x.shape
    return x.view(n, 2, c // 2, height, width).transpose(1, 2).reshape(n, c, height, width)


def shuffle_unit(self: Net, x: Tensor) -> Tensor:
    x = self.stem(x)
    for _ in range(2):
        kept, worked = x.chunk(2, 1)
        x = shuffled(torch.cat([kept, self.last(self.deep(self.first(worked)).relu())], 1))
    return self.head(pooled(x))


def flattened_maps(self: Net, x: Tensor) -> Tensor:
    return self.head(torch.cat([self.a(x).flatten(1), self.b(x).relu().flatten(1)], 1))


def swapped_halves(self: Net, x: Tensor) -> Tensor:
    one, other = self.a(x), self.b(x)
    return self.head(pooled(self.c(torch.cat([other, one], 1)) + self.c(torch.cat([other, one], 1).relu())))


def merged_patches(self: Net, x: Tensor) -> Tensor:
    x = self.a(x).permute(0, 2, 3, 1)
    x = torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
    return self.head(self.c(x).relu().mean((1, 2)))


def attention(self: Net, x: Tensor) -> Tensor:
    x = x.flatten(2).transpose(1, 2)
    scores = self.query(x) @ self.key(x).transpose(1, 2)
    return self.head(self.out(scores.softmax(-1) @ self.value(x)).mean(1))


def added_in_part(self: Net, x: Tensor) -> Tensor:
    part, whole = self.a(x), self.b(x)
    whole[:, : part.shape[1]] += part
    return self.head(pooled(self.c(whole.relu())))


def gated(self: Net, x: Tensor) -> Tensor:
    x = self.norm(self.a(x))
    return self.head(pooled(x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()))


class Scale(nn.Module):
    """A number for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


def padded(self: Net, x: Tensor) -> Tensor:
    return self.head(pooled(self.b(nn.functional.pad(self.scale(self.a(x)), (0, 1, 0, 1)))))


NETS = {
    "shuffled": (
        lambda: Net(
            shuffle_unit,
            stem=conv(3, 8),
            first=conv(4, 6),
            deep=conv(6, 6, groups=6),
            last=conv(6, 4),
            head=nn.Linear(8, 5),
        ),
        {"first": {("first", "out"), ("deep", "out"), ("last", "in")}},
    ),
    "flattened maps joined": (
        lambda: Net(flattened_maps, a=conv(3, 4), b=conv(3, 6), head=nn.Linear(640, 5)),
        {"a": {("a", "out"), ("head", "in")}, "b": {("b", "out"), ("head", "in")}},
    ),
    "swapped halves": (
        lambda: Net(swapped_halves, a=conv(3, 4), b=conv(3, 6), c=conv(10, 7), head=nn.Linear(7, 5)),
        {
            "a": {("a", "out"), ("c", "in")},
            "b": {("b", "out"), ("c", "in")},
            "c": {("c", "out"), ("head", "in")},
        },
    ),
    "patches merged": (
        lambda: Net(merged_patches, a=conv(3, 4), c=nn.Linear(16, 6), head=nn.Linear(6, 5)),
        {"a": {("a", "out"), ("c", "in")}, "c": {("c", "out"), ("head", "in")}},
    ),
    "attention": (
        lambda: Net(
            attention,
            query=nn.Linear(3, 6),
            key=nn.Linear(3, 6),
            value=nn.Linear(3, 8),
            out=nn.Linear(8, 7),
            head=nn.Linear(7, 5),
        ),
        {
            "query": {("query", "out"), ("key", "out")},
            "value": {("value", "out"), ("out", "in")},
            "out": {("out", "out"), ("head", "in")},
        },
    ),
    "added in part": (
        lambda: Net(added_in_part, a=conv(3, 4), b=conv(3, 8), c=conv(8, 6), head=nn.Linear(6, 5)),
        {"a": {("a", "out"), ("b", "out"), ("c", "in")}, "c": {("c", "out"), ("head", "in")}},
    ),
    "scaled, padded on one side": (
        lambda: Net(padded, a=conv(3, 8), scale=Scale(8), b=nn.Conv2d(8, 6, 3, stride=2), head=nn.Linear(6, 5)),
        {"a": {("a", "out"), ("scale", "out"), ("b", "in")}, "b": {("b", "out"), ("head", "in")}},
    ),
    "squeezed and excited": (
        lambda: Net(
            gated,
            a=conv(3, 8),
            norm=nn.BatchNorm2d(8),
            down=nn.Conv2d(8, 4, 1),
            up=nn.Conv2d(4, 8, 1),
            head=nn.Linear(8, 5),
        ),
        {
            "a": {("a", "out"), ("norm", "out"), ("down", "in"), ("up", "out"), ("head", "in")},
            "down": {("down", "out"), ("up", "in")},
        },
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_channels_are_coupled_where_their_numbers_go(name: str) -> None:
    make, expected = NETS[name]
    graph = ModelGraph.trace(make(), picture())
    found = {root: {(slot.module, slot.axis) for slot in group.slots} for root, group in free(graph).items()}
    assert found == expected


@pytest.mark.parametrize("name", NETS)
def test_dropping_channels_that_nothing_reads_changes_no_output(name: str) -> None:
    model, x = NETS[name][0](), picture()
    graph = ModelGraph.trace(model, x)
    for root, group in free(graph).items():
        silent, dropped = copy.deepcopy(model), [0, group.channels - 1]
        read = [slot for slot in group.slots if slot.axis == "in"] or [s for s in group.slots if s.module == root]
        with torch.no_grad():
            for slot in read:
                places = sorted(slot.of(dropped, group.channels))
                layer = silent.get_submodule(slot.module)
                if slot.axis == "in":
                    layer.weight[:, places] = 0
                else:
                    layer.weight[places], layer.bias[places] = 0, 0
            expected = silent(x)
            drop_channels(silent, graph.groups, {root: dropped}, x)
            torch.testing.assert_close(silent(x), expected, rtol=0, atol=1e-5, msg=root)


def test_channels_that_different_layers_read_are_refused():
    def run(self: Net, x: Tensor) -> Tensor:
        one, other = self.a(x).chunk(2, 1)
        return self.head(pooled(self.b(one) + self.c(other)))

    net = Net(run, a=conv(3, 8), b=conv(4, 6), c=conv(4, 6), head=nn.Linear(6, 5))
    graph = ModelGraph.trace(net, picture())
    assert set(free(graph)) == {"b"}
    assert graph.group_of("a").refusal == "'b' has only some of its channels"


def test_what_is_not_followed_is_named_and_its_channels_alone_are_refused():
    net = Net(
        lambda self, x: self.head(pooled(self.c(self.b(self.a(x)).cumsum(1)))),
        a=conv(3, 8),
        b=conv(8, 8),
        c=conv(8, 6),
        head=nn.Linear(6, 5),
    )
    labels = follow_channels(net, picture())
    assert [reason for _, reason in labels.lost] == [
        "it passes through 'cumsum', which is not followed",
        "its channels are the network's outputs",
    ]
    assert {"a", "c"} <= set(free(ModelGraph.trace(net, picture())))


def test_channels_that_a_layer_norm_is_taken_over_stay_since_its_statistics_are_theirs():
    def run(self: Net, x: Tensor) -> Tensor:
        x = self.a(x).permute(0, 2, 3, 1)
        rows = torch.cat([x[:, :1], self.b(x)[:, 1:]], 1) + x
        return self.head(self.norm(rows).mean((1, 2)))

    net, x = Net(run, a=conv(3, 8), b=nn.Linear(8, 8), norm=nn.LayerNorm(8), head=nn.Linear(8, 5)), picture()
    graph = ModelGraph.trace(net, x)
    assert graph.group_of("a").refusal == "'norm' takes mean and variance over its channels"


def test_a_layer_over_positions_keeps_its_outputs_and_lets_channels_pass():
    net = Net(
        lambda self, x: self.head(self.mix(self.a(x).flatten(2)).mean(2)),
        a=conv(3, 8),
        mix=nn.Linear(64, 10),
        head=nn.Linear(8, 5),
    )
    graph = ModelGraph.trace(net, picture())
    assert {(slot.module, slot.axis) for slot in free(graph)["a"].slots} == {("a", "out"), ("head", "in")}
    assert "works on positions" in str(graph.group_of("mix").refusal)


def test_a_network_of_shuffled_channels_loses_those_inside_its_units():
    model = build_model("torchvision:shufflenet_v2_x0_5", num_classes=7).eval()
    graph = ModelGraph.trace(model, torch.zeros(1, 3, 32, 32))
    assert graph.coupling_error is None
    inner = {f"stage{s}.{i}.branch2.0" for s, n in ((2, 4), (3, 8), (4, 4)) for i in range(n)}
    assert inner <= set(free(graph))
