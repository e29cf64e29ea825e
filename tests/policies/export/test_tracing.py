"""A remembered trace gives, byte for byte, the file that a new one gives."""

from __future__ import annotations

import copy

import pytest
import torch
from paretopress.evaluators.models import build_model
from paretopress.policies.apply import apply_plan
from paretopress.policies.architectures import DigitsCNN, LeNet5, ResNet20
from paretopress.policies.batch_norms import reestimate_statistics, settle_statistics
from paretopress.policies.errors import ModelError
from paretopress.policies.export import tracing
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.export.tracing import OnnxTracer
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from torch import Tensor, nn

torch.set_num_threads(1)

W8A8, W4, SHARE = (
    Step.of("quantize", bits=8, activations="int8"),
    Step.of("quantize", bits=4),
    Step.of("share", clusters=4),
)
HALF, SVD, SPATIAL = Step.of("prune_channels", sparsity=0.5), Step.of("svd", rank=4), Step.of("svd_spatial", rank=4)


class Tied(nn.Module):
    """A layer used twice, two layers with one weight, an unused layer, many equal tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(n, 8, 3, padding=1) for n in (3, 8, 8))
        self.norm, self.unused, self.head = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)
        self.again, self.c.weight = self.b, self.b.weight
        with torch.no_grad():
            self.unused.weight.copy_(self.b.weight)
            for layer in (self.unused, self.b, self.c):
                layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.c(self.again(self.b(self.a(x)).relu()))).mean((2, 3)))


class Sequence(nn.Module):
    """Patches as a sequence: products with transposed weights, sizes computed from shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + self.down(self.up(self.norm(x)).relu())
        return self.head(x.reshape(x.shape[0], -1, 8).mean(1))


# The network, its input, policies, and how many traces they take.
CASES = {
    "lenet5": (LeNet5, (1, 28, 28), [{}, {"conv1": [W8A8], "fc1": [HALF, W4]}, {"conv2": [HALF], "fc1": [SHARE]}], 1),
    "resnet20": (
        lambda: ResNet20(width=8),
        (3, 32, 32),
        [{}, {"conv1": [HALF, W8A8], "layer1.0.conv1": [W8A8]}, {"layer2.1.conv1": [HALF, W4], "fc": [W8A8]}],
        1,
    ),
    "digits": (DigitsCNN, (1, 8, 8), [{"conv1": [HALF, W8A8], "conv2": [W8A8]}, {"conv2": [SHARE]}, {}], 1),
    "factors": (
        DigitsCNN,
        (1, 8, 8),
        [{"conv2": [SPATIAL], "fc1": [SVD]}, {"conv2": [HALF, SPATIAL, W8A8], "fc1": [SVD]}, {"conv2": [SPATIAL]}],
        2,
    ),
    "depthwise": (
        lambda: build_model("timm:mobilenetv2_035", num_classes=5),
        (3, 33, 33),
        [{}, {"conv_stem": [W8A8]}, {"conv_stem": [HALF]}],
        2,
    ),
    "tied": (Tied, (3, 8, 8), [{}, {"a": [W8A8]}, {"head": [W4]}], 1),
    "sequence": (Sequence, (3, 16, 16), [{}, {"up": [W8A8], "down": [SHARE]}, {"up": [HALF]}], 2),
}


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Networks that were traced."""
    traced: list[nn.Module] = []
    real = tracing.export

    def counted(model: nn.Module, example: Tensor, opset: int):
        traced.append(model)
        return real(model, example, opset)

    monkeypatch.setattr(tracing, "export", counted)
    return traced


def made(build, *shape: int) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().eval()
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(1))
    reestimate_statistics(model, x + 0.5)
    return model, x


@pytest.mark.parametrize("name", CASES)
def test_files_from_remembered_traces_are_those_from_new_ones(name: str, traces: list[nn.Module]) -> None:
    build, shape, policies, expected = CASES[name]
    model, x = made(build, *shape)
    graph, tracer = ModelGraph.trace(model, x[:1]), OnnxTracer()
    files = []
    for layers in policies:
        plan = make_plan(Policy({layer: tuple(steps) for layer, steps in layers.items()}), graph)
        compressed = apply_plan(plan, graph, model, x).model
        for _ in range(2):
            files.append((copy.deepcopy(compressed), export_onnx(compressed, x[:1], calibration=x, tracer=tracer)))
            settle_statistics(compressed)
    assert len(traces) == expected
    assert all(data == export_onnx(network, x[:1], calibration=x) for network, data in files)


@pytest.mark.parametrize("values", [0.0, 1.0, None])
def test_equal_tensors_are_stored_once_as_by_a_new_trace(values: float | None, traces: list[nn.Module]) -> None:
    model, x = made(Tied, 3, 8, 8)
    tracer = OnnxTracer()
    export_onnx(model, x[:1], calibration=None, tracer=tracer)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.fill_(number % 2 if values is None else values)
    data = export_onnx(model, x[:1], calibration=None, tracer=tracer)
    assert len(traces) == 1
    assert data == export_onnx(model, x[:1], calibration=None)


@pytest.mark.parametrize(
    "change",
    [
        lambda net: setattr(net[0], "stride", (2, 2)),
        lambda net: setattr(net[0], "bias", None),
        lambda net: net.append(nn.ReLU()),
        lambda net: net.__setitem__(1, nn.Tanh()),
        lambda net: setattr(net, "step", 2),
        lambda net: net.register_buffer("passing", torch.ones(1), persistent=False),
        lambda net: net[0].register_forward_hook(lambda module, inputs, output: 2 * output),
    ],
    ids=["setting", "bias", "added", "kind", "own attribute", "constant", "hook"],
)
def test_another_structure_is_traced_anew(change, traces: list[nn.Module]) -> None:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        )

    (one, x), (other, _) = made(build, 1, 8, 8), made(build, 1, 8, 8)
    change(other)
    tracer = OnnxTracer()
    for model in (one, other, one, other):
        assert export_onnx(model, x[:1], calibration=None, tracer=tracer) == export_onnx(model, x[:1], calibration=None)
    assert len(traces) == 2 + 4


def test_other_inputs_opsets_and_numbers_of_classes_are_traced_anew(traces: list[nn.Module]) -> None:
    (model, x), (wider, _) = made(DigitsCNN, 1, 8, 8), made(lambda: DigitsCNN(num_classes=7), 1, 8, 8)
    tracer, calls = OnnxTracer(), []
    for net, example, opset in [(model, x[:1], 17), (wider, x[:1], 17), (model, x[:1], 16), (model, x[:1], 17)]:
        tracer.graph(net, example, opset)
        calls.append(len(traces))
    assert calls[:3] == [1, 2, 3]
    assert export_onnx(model, x[:1], calibration=None, tracer=tracer) == export_onnx(model, x[:1], calibration=None)
    assert export_onnx(wider, x[:1], calibration=None, tracer=tracer) == export_onnx(wider, x[:1], calibration=None)


class Branching(nn.Module):
    """Computes by the value of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x.mean((2, 3)))
        return y.relu() if float(self.gain) > 0 else -y


class Unknown(nn.Sequential):
    """With an attribute that nothing is known of."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(256, 3))
        self.helper = object()


@pytest.mark.parametrize("build", [Branching, Unknown])
def test_what_may_depend_on_values_is_traced_each_time(build, traces: list[nn.Module]) -> None:
    model, x = made(build, 4, 8, 8)
    tracer = OnnxTracer()
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(sign)
        data = export_onnx(model, x[:1], calibration=None, tracer=tracer)
        assert data == export_onnx(model, x[:1], calibration=None)
    assert len(traces) == 4


def test_the_traces_used_last_are_kept(traces: list[nn.Module]) -> None:
    tracer = OnnxTracer(capacity=2)
    examples = [torch.zeros(1, 1, side, side) for side in (8, 9, 10)]
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    for number in (0, 1, 0, 2, 0, 1):
        tracer.graph(model, examples[number], 17)
    assert len(traces) == 4
    assert len(tracer._traces) == 2


def test_a_network_that_cannot_be_traced_is_refused_every_time() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("the cause")

    tracer = OnnxTracer()
    for _ in range(2):
        with pytest.raises(ModelError, match="the cause"):
            export_onnx(Broken(), torch.zeros(1, 1, 4, 4), calibration=None, tracer=tracer)


def test_networks_are_left_as_they_were_and_their_tensors_are_not_kept() -> None:
    model, x = made(DigitsCNN, 1, 8, 8)
    before = copy.deepcopy(model.state_dict())
    tracer = OnnxTracer()
    first = export_onnx(model, x[:1], calibration=None, tracer=tracer)
    with torch.no_grad():
        model.fc1.weight.zero_()
    assert export_onnx(model, x[:1], calibration=None, tracer=tracer) != first
    model.load_state_dict(before)
    assert export_onnx(model, x[:1], calibration=None, tracer=tracer) == first
    (trace,) = tracer._traces.values()
    assert not trace.model.graph.initializer
