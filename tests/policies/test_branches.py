"""Residual branches: found, dropped, trained, stored, restored and exported."""

from __future__ import annotations

import functools
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from paretopress.evaluators.models import build_model
from paretopress.evaluators.runtime import session
from paretopress.policies.apply import CompressedModel, apply_plan, restore
from paretopress.policies.architectures import DigitsCNN, ResNet20
from paretopress.policies.batch_norms import reestimate_statistics, settle_statistics
from paretopress.policies.branches import Nothing
from paretopress.policies.coding.press import decode, encode
from paretopress.policies.errors import PolicyError
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.export.tracing import OnnxTracer
from paretopress.policies.graph import ModelGraph
from paretopress.policies.layout import laid_out
from paretopress.policies.plan import Plan, make_plan
from paretopress.policies.policy import Policy, Step
from torch import Tensor, nn

torch.set_num_threads(1)

DROP = Step.of("drop_branch")
W8A8, SHARE = Step.of("quantize", bits=8, activations="int8"), Step.of("share", clusters=5)
HALF = Step.of("prune_channels", sparsity=0.5, multiple=2)


def conv(channels: int = 6) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1)


class Sums(nn.Module):
    """Sums written in every way, some of which are no residual branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.plain, self.torch_add, self.method, self.in_place, self.behind = (conv() for _ in range(5))
        self.gate, self.squeeze, self.act = conv(), nn.Conv2d(6, 6, 1), nn.ReLU(inplace=True)
        self.outer, self.inner, self.identity = conv(), conv(), nn.Sequential(nn.Identity(), nn.Dropout(0.5))
        self.shared, self.read, self.left, self.right, self.writes = (conv() for _ in range(5))
        self.weight_free, self.grown, self.scale = nn.AvgPool2d(3, 1, 1), conv(), nn.Parameter(torch.ones(6, 1, 1))
        self.scaled, self.fc = conv(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (self.plain(x) + x).tanh()
        x = torch.add(self.torch_add(x), x).tanh()
        x = x.add(self.method(x)).tanh()
        y = self.in_place(x)
        y += self.identity(x)
        x = self.behind(self.act(y.tanh() - 0.5)) + x
        y = self.gate(x)
        x = self.squeeze(y * y.mean((2, 3), keepdim=True).sigmoid()) + x
        y = self.outer(x)
        x = x + self.squeeze_twice(y + self.inner(y))
        x = x + self.shared(x)
        x = self.shared(x).tanh()
        read = self.read(x)
        x = x + read
        x = (self.left(x) + self.right(x)).tanh() * read
        x = (x + self.writes(self.act(x))).tanh()
        x = x + self.weight_free(x)
        x = x.mean((2, 3), keepdim=True) + self.grown(x)
        x = x + self.scale * self.scaled(x)
        return self.fc(x.mean((2, 3)))

    def squeeze_twice(self, x: Tensor) -> Tensor:
        return self.act(x) / 2


class Branching(nn.Module):
    """A branch beside control flow on values, which cannot be followed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 6, 3, padding=1), conv(), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv(x) if float(x.detach().mean()) < 1e9 else x
        return self.fc(x.mean((2, 3)))


class TwoNames(nn.Module):
    """A branch whose layers stand in a list as well, which the forward pass uses; no batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.fc = nn.Conv2d(3, 6, 3, padding=1), conv(), conv(), nn.Linear(6, 4)
        self.branch = nn.ModuleList([self.first, nn.ReLU(), self.second])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = x
        for module in self.branch:
            y = module(y)
        return self.fc((x + y).mean((2, 3)))


NETWORKS = {
    "resnet20": lambda: ResNet20(width=8),
    "sums": Sums,
    "two names": TwoNames,
    "branching": Branching,
    "basic": lambda: build_model("timm:resnet18", num_classes=10),
    "inverted": lambda: build_model("timm:mobilenetv2_035", num_classes=10),
    "squeezing": lambda: build_model("timm:mobilenetv3_small_050", num_classes=10),
}


@functools.cache
def network(name: str) -> tuple[nn.Module, ModelGraph, Tensor]:
    """The network, with batch-norm statistics as if it were trained, its graph and calibration pictures."""
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = NETWORKS[name]().eval()
        # Some networks start with branches that give zeros.
        for parameter in model.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5) if parameter.ndim == 1 else parameter.mul_(2)
    reestimate_statistics(model, x)
    return model, ModelGraph.trace(model, x[:1]), x


def plan_of(name: str, layers: dict[str, list[Step]]) -> Plan:
    return make_plan(Policy({layer: tuple(steps) for layer, steps in layers.items()}), network(name)[1])


def compress(name: str, layers: dict[str, list[Step]]) -> CompressedModel:
    model, graph, x = network(name)
    return apply_plan(plan_of(name, layers), graph, model, x)


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def run(data: bytes, x: Tensor) -> np.ndarray:
    return session(data).run(None, {"input": x.numpy()})[0]


def operators(data: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(data).graph.node)


def test_the_blocks_of_resnet20_without_a_projection_are_its_branches():
    graph = network("resnet20")[1]
    blocks = ["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2"]
    assert [branch.root for branch in graph.branches] == [f"{block}.conv1" for block in blocks]
    first = graph.branches[0]
    assert first.layers == ("layer1.0.conv1", "layer1.0.conv2")
    assert first.modules == tuple(f"layer1.0.{name}" for name in ("conv1", "bn1", "relu1", "conv2", "bn2"))
    assert first.last == "layer1.0.bn2"
    assert graph.branch_of("layer1.0.conv2") == first
    assert graph.branch_of("layer2.0.conv2") is graph.branch_of("conv1") is None


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("basic", 5, ("layer1.0.conv1", "layer1.0.conv2"), "layer1.0.bn2"),
        ("inverted", 10, tuple(f"blocks.1.1.conv_{part}" for part in ("pw", "dw", "pwl")), "blocks.1.1.drop_path"),
        ("squeezing", 7, tuple(f"blocks.1.1.conv_{part}" for part in ("pw", "dw", "pwl")), "blocks.1.1.drop_path"),
    ],
)
def test_blocks_of_timm_are_branches_where_the_shape_is_kept(name, count, first, last):
    branches = network(name)[1].branches
    assert len(branches) == count
    assert (branches[0].layers, branches[0].last) == (first, last)


def test_squeeze_and_excitation_belongs_to_its_branch():
    branch = network("squeezing")[1].branch_of("blocks.2.1.conv_pw")
    assert {"blocks.2.1.se.conv_reduce", "blocks.2.1.se.conv_expand"} < set(branch.layers)


def test_branches_are_found_however_the_sum_is_written_and_only_they():
    graph = network("sums")[1]
    found = {branch.root: branch.layers for branch in graph.branches}
    assert found == {
        "plain": ("plain",),
        "torch_add": ("torch_add",),
        "method": ("method",),
        "in_place": ("in_place",),
        "gate": ("gate", "squeeze"),
        "inner": ("inner",),
    }


def test_a_network_that_cannot_be_followed_has_no_branches():
    assert network("branching")[1].branches == ()
    with pytest.raises(PolicyError, match=r"layer 'conv': drop_branch .* can be dropped; the network has none"):
        plan_of("branching", {"conv": [DROP]})


@pytest.mark.parametrize("name", ["resnet20", "sums", "two names", "basic", "inverted", "squeezing"])
def test_every_branch_can_be_dropped_trained_stored_restored_and_exported(name):
    model, graph, x = network(name)
    for roots in [*([branch.root] for branch in graph.branches[:3]), [branch.root for branch in graph.branches]]:
        compressed = compress(name, {root: [DROP] for root in roots})
        gone = {layer for branch in compressed.plan.dropped for layer in branch.modules}
        assert not any(key.rpartition(".")[0] in gone for key in compressed.model.state_dict())
        expected = outputs(compressed.model, x[:4])
        assert not torch.allclose(expected, outputs(model, x[:4]), atol=1e-4)
        stored = compressed.stored()
        assert not any(key.rpartition(".")[0] in gone for key in stored)
        restored = restore(make_plan(compressed.plan.policy, graph), graph, model, stored)
        assert torch.equal(outputs(restored, x[:4]), expected)
        onnx_file = export_onnx(compressed.model, x[:1], calibration=None)
        np.testing.assert_allclose(run(onnx_file, x[:4]), expected.numpy(), rtol=1e-3, atol=1e-4)
        compressed.model.train()(x[:4]).square().sum().backward()
        assert all(parameter.grad is not None for parameter in compressed.model.parameters())


def test_a_dropped_block_leaves_nothing_in_the_file():
    model, graph, x = network("resnet20")
    compressed = compress("resnet20", {"layer2.1.conv1": [DROP], "layer1.0.conv1": [SHARE]})
    press = decode(encode(compressed.stored(), {"policy": compressed.plan.policy.as_dict()}))
    assert not any(name.startswith("layer2.1.") for name in press.tensors)
    plan = make_plan(Policy.from_dict(press.metadata["policy"]), graph)
    assert torch.equal(outputs(restore(plan, graph, model, press.tensors), x), outputs(compressed.model, x))


def test_a_dropped_block_is_the_identity():
    model, _, x = network("resnet20")
    dropped = compress("resnet20", {"layer1.2.conv1": [DROP], "layer3.1.conv1": [DROP]}).model
    by_hand = ResNet20(width=8).eval()
    by_hand.load_state_dict(model.state_dict())
    by_hand.layer1[2] = by_hand.layer3[1] = nn.Identity()
    reestimate_statistics(by_hand, laid_out(by_hand, x))
    assert torch.equal(outputs(dropped, x), outputs(by_hand, x))
    assert sum(p.numel() for p in dropped.parameters()) == sum(p.numel() for p in by_hand.parameters())


def test_a_block_is_gone_under_every_name_of_its_modules():
    dropped = compress("two names", {"first": [DROP]}).model
    assert all(isinstance(module, Nothing) for module in (*dropped.branch, dropped.first, dropped.second))
    assert sorted(dropped.state_dict()) == ["fc.bias", "fc.weight", "stem.bias", "stem.weight"]


def test_the_gradient_flows_past_a_dropped_block_as_through_the_identity():
    x = network("resnet20")[2][:4]
    dropped = compress("resnet20", {"layer2.1.conv1": [DROP]}).model.train()
    dropped(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in dropped.parameters())
    assert dropped.conv1.weight.grad.abs().sum() > 0


def test_the_exported_file_is_that_of_a_network_built_without_the_block():
    model, _, x = network("resnet20")
    by_hand = ResNet20(width=8).eval()
    by_hand.load_state_dict(model.state_dict())
    by_hand.layer1[1] = by_hand.layer1[2] = nn.Identity()
    drop = {"layer1.1.conv1": [DROP], "layer1.2.conv1": [DROP]}
    file = export_onnx(compress("resnet20", drop).model, x[:1], calibration=None)
    assert operators(file) == operators(export_onnx(by_hand, x[:1], calibration=None))
    assert operators(file)["Add"] == 7


def test_eight_bit_layers_around_a_dropped_block_run_on_integers():
    model, graph, x = network("resnet20")
    layers = {name: [W8A8] for name in graph.layers}
    compressed = compress("resnet20", {**layers, "layer1.2.conv1": [DROP, W8A8]})
    settle_statistics(compressed.model)
    file = export_onnx(compressed.model, x[:1], calibration=x)
    assert operators(file)["Conv"] == operators(export_onnx(model, x[:1], calibration=None))["Conv"] - 2
    expected, found = outputs(compressed.model, x).numpy(), run(file, x)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    whole = export_onnx(compress("resnet20", layers).model, x[:1], calibration=x)
    saved = operators(whole) - operators(file)
    assert saved["Conv"] == 2 and saved["Add"] == 1 and saved["QuantizeLinear"] >= 3


def test_a_residual_groups_channels_are_cut_where_a_block_of_it_is_gone():
    model, graph, x = network("resnet20")
    compressed = compress(
        "resnet20", {"conv1": [HALF], "layer1.1.conv1": [DROP], "layer1.2.conv1": [HALF], "layer1.0.conv2": [SHARE]}
    )
    assert compressed.model.conv1.weight.shape[0] == compressed.model.layer1[2].conv2.weight.shape[0] == 4
    expected = outputs(compressed.model, x[:4])
    restored = restore(compressed.plan, graph, model, compressed.stored())
    assert torch.equal(outputs(restored, x[:4]), expected)
    file = export_onnx(compressed.model, x[:1], calibration=None)
    np.testing.assert_allclose(run(file, x[:4]), expected.numpy(), rtol=1e-3, atol=1e-4)


def test_a_remembered_trace_never_stands_for_a_network_with_other_blocks():
    x = network("resnet20")[2]
    tracer = OnnxTracer()
    policies = [{}, {"layer1.1.conv1": [DROP]}, {"layer1.2.conv1": [DROP]}, {"conv1": [HALF], "layer1.1.conv1": [DROP]}]
    for policy in [*policies, *policies]:
        model = compress("resnet20", policy).model
        known = export_onnx(model, x[:1], calibration=None, tracer=tracer)
        assert known == export_onnx(model, x[:1], calibration=None)


def test_whatever_else_is_asked_of_a_dropped_block_is_the_same_candidate():
    alone = plan_of("resnet20", {"layer1.2.conv1": [DROP]})
    assert alone.policy == Policy({"layer1.2.conv1": (DROP,)})
    assert alone.dropped == (network("resnet20")[1].branch_of("layer1.2.conv1"),)
    others = {"layer1.2.conv1": [DROP, W8A8, HALF], "layer1.2.conv2": [HALF, SHARE, Step.of("svd", rank=2)]}
    assert plan_of("resnet20", others) == alone
    assert make_plan(alone.policy, network("resnet20")[1]) == alone


def test_a_block_that_lies_in_another_dropped_one_is_dropped_with_it():
    graph = network("sums")[1]
    outer = ModelGraph.trace(Nested().eval(), torch.randn(1, 3, 8, 8))
    assert {branch.root: branch.layers for branch in outer.branches} == {
        "first": ("first", "inner", "last"),
        "inner": ("inner",),
    }
    assert outer.branch_of("inner").layers == ("inner",)
    plan = make_plan(Policy({"first": (DROP,), "inner": (DROP,)}), outer)
    assert plan.policy == Policy({"first": (DROP,)})
    assert plan == make_plan(plan.policy, outer)
    assert graph.branch_of("squeeze").root == "gate"


class Nested(nn.Module):
    """A branch within a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.inner, self.last = nn.Conv2d(3, 6, 3, padding=1), conv(), conv(), conv()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.first(x)
        return self.fc((x + self.last(y + self.inner(y))).mean((2, 3)))


def test_a_layer_that_starts_no_branch_is_refused_with_those_that_do():
    with pytest.raises(PolicyError) as caught:
        plan_of("resnet20", {"layer1.0.conv2": [DROP], "layer2.0.conv1": [DROP], "layer1.1.conv1": [DROP]})
    text = str(caught.value)
    for name in ("layer1.0.conv2", "layer2.0.conv1"):
        assert f"layer '{name}': drop_branch cannot be applied: it does not start a residual branch" in text
    assert "these layers do: layer1.0.conv1, layer1.1.conv1" in text
    assert len(text.splitlines()) == 3


def test_a_network_without_sums_has_no_branches():
    assert ModelGraph.trace(DigitsCNN().eval(), torch.randn(1, 1, 8, 8)).branches == ()
