"""Whatever a forward pass computes from a network's tensors, the file holds that of its own network."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from paretopress.evaluators.models import build_model
from paretopress.evaluators.runtime import logits, session
from paretopress.policies import forms
from paretopress.policies.apply import apply_plan
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.export.tracing import OnnxTracer
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)

TOLERANCE = 1e-5
CHANNELS = 8


class Net(nn.Module):
    """A stem, what a case computes from parameters, and a linear layer; ``middle`` is the case."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, CHANNELS, 3, 2, 1), nn.Linear(CHANNELS, 5)
        self.own = nn.Parameter(torch.linspace(0.5, 1.5, CHANNELS))

    def middle(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x)).mean((2, 3)))


class Slopes(Net):
    def __init__(self) -> None:
        super().__init__()
        self.slopes, self.one = nn.PReLU(CHANNELS), nn.PReLU()

    def middle(self, x: Tensor) -> Tensor:
        return self.one(self.slopes(x) + 0.1)


class LayerScale(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x + x.relu() * self.own.view(1, -1, 1, 1)


class StandardisedWeight(Net):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(CHANNELS, CHANNELS, 3, 3))

    def middle(self, x: Tensor) -> Tensor:
        spread, mean = torch.std_mean(self.kernel, (1, 2, 3), keepdim=True)
        return functional.conv2d(
            x, self.own.view(-1, 1, 1, 1) * (self.kernel - mean) / (spread + 1e-6), padding=1
        ).relu()


class PositionTable(Net):
    """Attention of places with a bias looked up in a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(2 * 64 - 1))
        places = torch.arange(64)
        self.register_buffer("index", places[:, None] - places[None, :] + 63)

    def middle(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)
        weights = (y @ y.transpose(1, 2) / 8 + self.table[self.index.view(-1)].view(64, 64)).softmax(-1)
        return (weights @ y).transpose(1, 2).reshape(x.shape)


class Temperature(Net):
    def middle(self, x: Tensor) -> Tensor:
        return (x / self.own[:1].exp()).softmax(1) * 8


class GeneralisedMean(Net):
    def middle(self, x: Tensor) -> Tensor:
        p = self.own[0]
        return functional.avg_pool2d(x.clamp(min=1e-3).pow(p), 8).pow(1 / p)


class PythonNumber(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x * float(self.own[0]) + self.own.sum().item()


class DataAttribute(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x * self.own.data.view(1, -1, 1, 1)


class ArrayOfNumbers(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x * torch.from_numpy(np.tanh(self.own.detach().numpy())).view(1, -1, 1, 1)


class BranchOnValues(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x.relu() if self.own.sum() > CHANNELS else -x


class Buffers(Net):
    """One that is stored, one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.linspace(1, 2, CHANNELS).view(1, -1, 1, 1))
        self.register_buffer("shift", torch.linspace(1, 2, CHANNELS).view(1, -1, 1, 1), persistent=False)

    def middle(self, x: Tensor) -> Tensor:
        return (x * self.scale.square() + self.shift.square()).relu()


class Expanded(Net):
    """A token that is repeated for each picture, and positions scaled to the map's size."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(1, CHANNELS, 4, 4))

    def middle(self, x: Tensor) -> Tensor:
        places = functional.interpolate(self.positions, x.shape[2:], mode="bilinear")
        token = self.own.view(1, -1, 1, 1).expand(x.shape[0], -1, -1, x.shape[3])
        return torch.cat([(x + places).relu(), token], 2)


CASES = {kind.__name__: kind for kind in Net.__subclasses__()}
STEPS = {
    "float": {},
    "8 bit": {"stem": (Step.of("quantize", bits=8),)},
    "sparse": {"stem": (Step.of("prune_magnitude", sparsity=0.5),), "head": (Step.of("quantize", bits=4),)},
}


def distance(data: bytes, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected = forms.plain(model)(x).numpy()
    return float(np.sqrt(((logits(session(data), x.numpy(), len(x)) - expected) ** 2).mean()) / expected.std())


def trained(model: nn.Module, seed: int) -> None:
    """Other values for every tensor, as training leaves them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.4 * torch.rand(tensor.shape, generator=generator))


def made(build: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval(), torch.randn(6, 3, 16, 16)


@pytest.mark.parametrize("name", CASES)
def test_each_file_of_one_structure_is_its_own_network(name: str) -> None:
    model, x = made(CASES[name])
    graph, tracer = ModelGraph.trace(model, x[:1]), OnnxTracer()
    for seed in range(3):
        for layers in STEPS.values():
            network = apply_plan(make_plan(Policy(layers), graph), graph, model, x).model
            if seed:
                trained(network, seed)
            assert distance(export_onnx(network, x[:1], calibration=None, tracer=tracer), network, x) < TOLERANCE


def test_a_real_network_keeps_its_own_scales() -> None:
    model = build_model("timm:convnext_atto", num_classes=5).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tracer = OnnxTracer()
    for seed in range(3):
        network = copy.deepcopy(model)
        trained(network, seed)
        assert distance(export_onnx(network, x[:1], calibration=None, tracer=tracer), network, x) < TOLERANCE


class Positions(Net):
    """A convolution that runs on positions alone."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Conv2d(2, CHANNELS, 1)

    def middle(self, x: Tensor) -> Tensor:
        steps = torch.linspace(-1, 1, x.shape[-1])
        return (x + self.places(torch.stack(torch.meshgrid(steps, steps, indexing="ij"))[None])).relu()


def test_an_eight_bit_layer_that_reads_no_pictures_stands_in_the_file_as_what_it_gives() -> None:
    model, x = made(Positions)
    graph = ModelGraph.trace(model, x[:1])
    step = Step.of("quantize", bits=8, activations="int8")
    network = apply_plan(make_plan(Policy(dict.fromkeys(("places", "head"), (step,))), graph), graph, model, x).model
    with torch.no_grad():
        expected = network(x).numpy()
    file = logits(session(export_onnx(network, x[:1], calibration=x)), x.numpy(), len(x))
    assert np.abs(file - expected).max() < 0.05 * expected.std()
