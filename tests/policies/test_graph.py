"""What a network is made of, as the trace finds it, and which channels are refused."""

from __future__ import annotations

import copy

import pytest
import torch
from paretopress.evaluators.models import build_model
from paretopress.policies.architectures import DigitsCNN, LeNet5, LeNet300100, ResNet20
from paretopress.policies.coupling import Coupled
from paretopress.policies.errors import ModelError
from paretopress.policies.graph import ModelGraph, drop_channels, group_scores
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)


def sample(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def traced(make, *shape: int) -> ModelGraph:
    return ModelGraph.trace(seeded(make), sample(1, *shape))


def free_roots(graph: ModelGraph) -> list[str]:
    return [group.root for group in graph.groups if group.refusal is None]


class Net(nn.Module):
    """Layers ``a``, ``b``, ``c``, ... and a forward pass given as a function of the network and its input."""

    def __init__(self, layers: dict[str, nn.Module], run) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def conv(a: int, b: int, **geometry) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, padding=1, **geometry)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def test_layers_stand_in_the_order_of_the_forward_pass_with_their_shapes():
    graph = traced(LeNet5, 1, 28, 28)
    assert list(graph.layers) == ["conv1", "conv2", "fc1", "fc2"]
    conv2 = graph.layers["conv2"]
    assert (conv2.weight_shape, conv2.input_shape, conv2.output_shape) == ((50, 20, 5, 5), (20, 12, 12), (50, 8, 8))
    assert [info.macs for info in graph.layers.values()] == [288_000, 1_600_000, 400_000, 5_000]
    assert sum(info.weights for info in graph.layers.values()) == 430_500


def test_a_layer_that_is_defined_first_but_runs_last_stands_last():
    net = Net({"a": nn.Linear(8, 5), "b": conv(3, 8)}, lambda self, x: self.a(pooled(self.b(x))))
    assert list(ModelGraph.trace(net, sample(1, 3, 8, 8)).layers) == ["b", "a"]


def test_a_layer_that_the_forward_pass_does_not_reach_is_left_out():
    net = Net({"a": conv(3, 8), "b": conv(8, 8), "c": nn.Linear(8, 5)}, lambda self, x: self.c(pooled(self.a(x))))
    graph = ModelGraph.trace(net, sample(1, 3, 8, 8))
    assert list(graph.layers) == ["a", "c"]
    assert free_roots(graph) == ["a"]


def test_a_linear_layer_behind_a_flatten_loses_as_many_inputs_as_the_map_has_places():
    groups = {group.root: group for group in traced(LeNet5, 1, 28, 28).groups}
    assert set(groups["conv2"].members) == {Coupled("conv2", "out", 1), Coupled("fc1", "in", 16)}
    assert groups["conv2"].channels == 50
    assert set(groups["fc1"].members) == {Coupled("fc1", "out", 1), Coupled("fc2", "in", 1)}


def test_residual_sums_couple_a_stage():
    graph = traced(lambda: ResNet20(width=8), 3, 32, 32)
    group = graph.group_of("layer1.2.conv2")
    assert group is not None
    assert (group.root, group.channels) == ("conv1", 8)
    assert set(group.producers) == {"conv1", "layer1.0.conv2", "layer1.1.conv2", "layer1.2.conv2"}
    assert len(graph.groups) == 13
    assert [group.root for group in graph.groups if group.refusal] == ["fc"]


@pytest.mark.parametrize(
    ("make", "shape", "groups"),
    [(LeNet5, (1, 28, 28), 4), (LeNet300100, (1, 28, 28), 3), (DigitsCNN, (1, 8, 8), 4)],
    ids=["lenet5", "lenet300100", "digits"],
)
def test_every_layer_of_a_chain_is_a_group_and_only_the_output_is_refused(make, shape, groups):
    graph = traced(make, *shape)
    assert len(graph.groups) == groups
    assert [group.root for group in graph.groups if group.refusal] == [list(graph.layers)[-1]]
    assert graph.groups[-1].refusal == "its channels are the network's outputs"


def test_the_trace_leaves_the_network_as_it_was():
    model = seeded(lambda: ResNet20(width=8))
    model.conv1.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    ModelGraph.trace(model, sample(1, 3, 32, 32))
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["conv1.weight"]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_frozen_network_has_the_same_groups():
    free, frozen = seeded(lambda: ResNet20(width=8)), seeded(lambda: ResNet20(width=8)).requires_grad_(False)
    x = sample(1, 3, 32, 32)
    assert ModelGraph.trace(free, x) == ModelGraph.trace(frozen, x)
    drop_channels(frozen, ModelGraph.trace(frozen, x).groups, {"conv1": [0, 3]}, x)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_depthwise_convolutions_follow_the_layer_before_them():
    model = build_model("timm:mobilenetv2_035", num_classes=10).eval()
    graph = ModelGraph.trace(model, sample(1, 3, 32, 32))
    depthwise = {name for name, info in graph.layers.items() if info.groups > 1}
    assert len(depthwise) == 17
    assert not depthwise & {group.root for group in graph.groups}
    assert all(graph.group_of(name) is not None for name in depthwise)
    assert [group.root for group in graph.groups if group.refusal] == ["classifier"]


def test_a_convolution_that_classifies_is_the_output():
    model = build_model("torchvision:squeezenet1_1", num_classes=7).eval()
    graph = ModelGraph.trace(model, sample(1, 3, 32, 32))
    assert [(g.root, g.refusal) for g in graph.groups if g.refusal] == [
        ("classifier.1", "its channels are the network's outputs")
    ]
    assert graph.layers["classifier.1"].weight_shape[0] == 7


def test_concatenated_maps_are_read_by_one_layer_from_several_groups():
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.grow1, self.grow2 = conv(3, 8), conv(8, 6), conv(14, 4)
            self.norm, self.head = nn.BatchNorm2d(18), nn.Linear(18, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = torch.cat([x, self.grow1(x.relu())], 1)
            x = torch.cat([x, self.grow2(x.relu())], 1)
            return self.head(pooled(self.norm(x).relu()))

    graph = traced(Dense, 3, 8, 8)
    assert free_roots(graph) == ["stem", "grow1", "grow2"]
    readers = {group.root: {m.layer for m in group.members if m.axis == "in"} for group in graph.groups}
    assert readers["stem"] == {"grow1", "grow2", "head"}
    assert readers["grow1"] == {"grow2", "head"}
    assert readers["grow2"] == {"head"}


def test_heads_whose_outputs_are_joined_are_the_output():
    net = Net(
        {"a": conv(3, 8), "b": nn.Linear(8, 4), "c": nn.Linear(8, 6)},
        lambda self, x: torch.cat([self.b(pooled(self.a(x))), self.c(pooled(self.a(x)))], 1),
    )
    graph = ModelGraph.trace(net, sample(1, 3, 8, 8))
    assert free_roots(graph) == ["a"]
    assert "its channels are the network's outputs" in {group.refusal for group in graph.groups}


UNFIT = {
    "grouped": (
        {"a": conv(3, 8), "b": conv(8, 16, groups=4), "c": nn.Linear(16, 5)},
        lambda self, x: self.c(pooled(self.b(self.a(x)))),
        "grouped convolution that is not depthwise",
    ),
    "depthwise with a multiplier": (
        {"a": conv(3, 8), "b": conv(8, 16, groups=8), "c": nn.Linear(16, 5)},
        lambda self, x: self.c(pooled(self.b(self.a(x)))),
        "grouped convolution that is not depthwise",
    ),
    "a size written into a view": (
        {"a": conv(3, 8), "c": nn.Linear(512, 5)},
        lambda self, x: self.c(self.a(x).view(-1, 512)),
        "does not run",
    ),
    "added to the picture": (
        {"a": conv(3, 3), "b": conv(3, 8), "c": nn.Linear(8, 5)},
        lambda self, x: self.c(pooled(self.b(x + self.a(x)))),
        "does not run",
    ),
    "gated by its own half": (
        {"a": conv(3, 8), "b": conv(4, 8), "c": nn.Linear(8, 5)},
        lambda self, x: self.c(pooled(self.b(functional.glu(self.a(x), 1)))),
        "",
    ),
    "shuffled to pixels": (
        {"a": conv(3, 8), "b": conv(2, 8), "c": nn.Linear(8, 5)},
        lambda self, x: self.c(pooled(self.b(functional.pixel_shuffle(self.a(x), 2)))),
        "",
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_channels_that_cannot_be_dropped_are_refused_with_the_reason(name):
    layers, run, reason = UNFIT[name]
    graph = ModelGraph.trace(Net(layers, run), sample(1, 3, 8, 8))
    assert graph.coupling_error is not None or "a" not in free_roots(graph)
    if graph.coupling_error is None:
        assert reason in str(graph.group_of("a").refusal)


def test_a_transformer_is_traced_and_its_attention_refused():
    model = build_model("timm:vit_tiny_patch16_224", num_classes=5, img_size=32, depth=2).eval()
    graph = ModelGraph.trace(model, sample(1, 3, 32, 32))
    assert graph.layers["blocks.0.mlp.fc1"].macs == 5 * 192 * 768
    assert graph.coupling_error is not None or not any("attn" in root for root in free_roots(graph))


class Doubled(torch.autograd.Function):
    """An operation of the user's own, without a derivative."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x


@pytest.mark.parametrize(
    "run",
    [
        lambda self, x: self.c(pooled(self.b(Doubled.apply(self.a(x))))),
        lambda self, x: self.c(pooled(self.b(self.a(x).detach()))),
        lambda self, x: self.c(pooled(self.b(torch.from_numpy(self.a(x).detach().numpy())))),
        lambda self, x: (self.c(pooled(self.b(self.a(x)))), x)[0].clone().detach(),
        lambda self, x: {"logits": self.c(pooled(self.b(self.a(x))))},
    ],
    ids=["custom function", "detached", "through numpy", "no record at all", "a dictionary"],
)
def test_what_autograd_cannot_follow_is_refused_and_crashes_nothing(run):
    net = Net({"a": conv(3, 8), "b": conv(8, 8), "c": nn.Linear(8, 5)}, run)
    graph = ModelGraph.trace(net, sample(1, 3, 8, 8))
    assert list(graph.layers) == ["a", "b", "c"]
    for root in free_roots(graph):
        dropped = copy.deepcopy(net)
        drop_channels(dropped, graph.groups, {root: [0]}, sample(1, 3, 8, 8))
        assert dropped(sample(1, 3, 8, 8)).shape == (1, 5)


def test_python_control_flow_is_no_obstacle():
    def run(self, x):
        for layer in [self.a, self.b] if x.shape[0] > 0 else []:
            x = layer(x) if x.mean() > -1e9 else x
        return self.c(pooled(x))

    graph = ModelGraph.trace(Net({"a": conv(3, 8), "b": conv(8, 8), "c": nn.Linear(8, 5)}, run), sample(1, 3, 8, 8))
    assert free_roots(graph) == ["a", "b"]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Softmax(1)), "no nn.Conv2d and no nn.Linear"),
        (Net({"a": nn.Linear(4, 4)}, lambda self, x: x.flatten(1)), "no nn.Conv2d and no nn.Linear"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), r"fails on an input of shape \(1, 3, 8, 8\)"),
    ],
    ids=["nothing to compress", "never reached", "wrong size"],
)
def test_a_network_that_cannot_be_compressed_is_refused(net, message):
    with pytest.raises(ModelError, match=message):
        ModelGraph.trace(net, sample(1, 3, 8, 8))


def test_a_channel_with_larger_weights_is_more_important():
    model = seeded(DigitsCNN)
    graph = ModelGraph.trace(model, sample(1, 1, 8, 8))
    group = graph.group_of("conv1")
    with torch.no_grad():
        model.conv1.weight[5] *= 10
        model.conv2.weight[:, 7] *= 0.01
    scores = group_scores(model, group)
    assert scores.shape == (32,)
    assert scores.argmax() == 5
    model.conv1.weight.data.mul_(100)
    assert torch.allclose(group_scores(model, group), scores), "a layer's scale is of no account"


@pytest.mark.parametrize(
    ("make", "shape", "axis"),
    [
        (lambda: ResNet20(width=8), (3, 32, 32), "in"),
        (lambda: build_model("timm:mobilenetv2_035", num_classes=10), (3, 32, 32), "in"),
        (lambda: build_model("torchvision:squeezenet1_1", num_classes=10), (3, 32, 32), "out"),
        (DigitsCNN, (1, 8, 8), "in"),
    ],
    ids=["resnet", "mobilenet", "squeezenet", "digits"],
)
def test_dropping_channels_that_are_zero_everywhere_changes_no_output(make, shape, axis):
    model = seeded(make)
    x = sample(2, *shape)
    graph = ModelGraph.trace(model, x[:1])
    dropped = {root: [0, graph.group_of(root).channels - 2] for root in free_roots(graph)}
    with torch.no_grad():
        silence(model, graph, dropped, axis)
        expected = model(x)
        drop_channels(model, graph.groups, dropped, x[:1])
        assert torch.allclose(model(x), expected, atol=1e-4 * float(expected.abs().max()))


def silence(model: nn.Module, graph: ModelGraph, dropped: dict[str, list[int]], axis: str) -> None:
    """Set the weights that read these channels to zero, or, where no batch norm adds to them, those that make them."""
    for root, indices in dropped.items():
        for member in graph.group_of(root).members:
            layer = model.get_submodule(member.layer)
            for index in indices if member.axis == axis else []:
                if axis == "out":
                    layer.weight[index], layer.bias[index] = 0, 0
                else:
                    layer.weight[:, index * member.factor : (index + 1) * member.factor] = 0


def test_attributes_that_the_network_reads_of_a_layer_are_noted():
    def run(self, x):
        x = self.a(x.to(self.b.weight.dtype))
        return self.c(pooled(self.b(x))) * self.c.out_features

    net = Net({"a": conv(3, 8), "b": conv(8, 8), "c": nn.Linear(8, 5)}, run)
    layers = ModelGraph.trace(net, sample(1, 3, 8, 8)).layers
    assert {name: layer.read for name, layer in layers.items()} == {"a": (), "b": ("weight",), "c": ("out_features",)}
    assert type(net.b) is nn.Conv2d


def test_a_layer_under_two_names_is_watched_under_both():
    net = Net({"a": conv(3, 3)}, lambda self, x: pooled(self.again(self.a(x))) + self.again.bias)
    net.again = net.a
    assert ModelGraph.trace(net, sample(1, 3, 8, 8)).layers["a"].read == ("bias",)
