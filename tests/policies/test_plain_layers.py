"""A network as it is compressed: layers made plain, parts left out, the network that came untouched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from paretopress.evaluators.runtime import logits, session
from paretopress.evaluators.torchvision_guard import import_torchvision
from paretopress.policies.apply import apply_plan, restore
from paretopress.policies.coding.press import decode, encode
from paretopress.policies.errors import ModelError
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.graph import ModelGraph
from paretopress.policies.own_forward import PaddedConv2d
from paretopress.policies.plain_layers import left_alone_notes, make_plain
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

torch.set_num_threads(1)
import_torchvision()
from timm.layers import ScaledStdConv2d, StdConv2d, StdConv2dSame  # noqa: E402

W8A8, HALF = Step.of("quantize", bits=8, activations="int8"), Step.of("prune_channels", sparsity=0.5)
TOLERANCE = 1e-5


class Net(nn.Module):
    """Two convolutions and a linear layer; ``middle`` and ``last`` are the case's."""

    def __init__(self, middle: nn.Module | None = None, last: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.middle = middle or nn.Conv2d(8, 8, 3, 1, 1)
        self.last = last or nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(self.stem(x).relu()).relu().mean((2, 3)))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        spread, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (spread + 1e-5), self.bias)


class LowRankAdapted(nn.Linear):
    def __init__(self, features: int, outputs: int) -> None:
        super().__init__(features, outputs)
        self.down, self.up = nn.Parameter(torch.randn(2, features)), nn.Parameter(torch.randn(outputs, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.5 * (x @ self.down.T) @ self.up.T


class FakeQuantized(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, (self.weight * 20).round() / 20, self.bias)


class Observed(nn.Linear):
    """Has parts of its own that go with it."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__(features, outputs)
        self.observer = nn.BatchNorm1d(features)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.clamp(-0.1, 0.1), self.bias)


class Computed(nn.Linear):
    """Its weight is a property."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__(features, outputs)
        self.latent = self._parameters.pop("weight")

    @property
    def weight(self) -> Tensor:
        return self.latent.tanh()


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight.tanh()


class Dynamic(nn.Conv2d):
    """Its weight depends on what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * x.mean().sigmoid(), self.bias)


class Gated(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * x.mean(1, keepdim=True).sigmoid()


def conv(kind: type[nn.Conv2d] = nn.Conv2d, **changes: Any) -> nn.Conv2d:
    return kind(8, 8, 3, **{"padding": 1, **changes})


def trained(layer: nn.Module) -> nn.Module:
    """As a training step leaves a layer whose weight hooks compute: with a weight that is no leaf."""
    layer(torch.ones(2, 8, 6, 6) if isinstance(layer, nn.Conv2d) else torch.ones(2, 8)).sum().backward()
    return layer


def masked(layer: nn.Module, name: str = "weight") -> nn.Module:
    prune.random_unstructured(layer, name, amount=0.5)
    return layer


def hooked(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, inputs, output: output * 1.5)
    return layer


def watched(layer: nn.Module) -> nn.Module:
    layer.register_forward_pre_hook(lambda module, inputs: None)
    return layer


def parametrized(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Scaled())
    return layer


CASES: dict[str, Callable[[], Net]] = {
    "old weight_norm": lambda: Net(trained(weight_norm(conv())), trained(weight_norm(nn.Linear(8, 5), dim=None))),
    "old spectral_norm": lambda: Net(trained(spectral_norm(conv())), spectral_norm(nn.Linear(8, 5))),
    "new weight_norm": lambda: Net(parametrizations.weight_norm(conv())),
    "new spectral_norm": lambda: Net(parametrizations.spectral_norm(conv())),
    "orthogonal": lambda: Net(last=parametrizations.orthogonal(nn.Linear(8, 5))),
    "parametrized": lambda: Net(parametrized(conv()), parametrized(nn.Linear(8, 5))),
    "masks": lambda: Net(trained(masked(masked(conv()), "bias")), masked(nn.Linear(8, 5))),
    "standardised": lambda: Net(conv(Standardised)),
    "standardised, timm": lambda: Net(conv(StdConv2d)),
    "scaled standardised, timm": lambda: Net(conv(ScaledStdConv2d)),
    "standardised, padded by itself": lambda: Net(StdConv2dSame(8, 8, 3, stride=2)),
    "standardised, wrapped around": lambda: Net(conv(Standardised, padding_mode="circular")),
    "low rank adapted": lambda: Net(last=LowRankAdapted(8, 5)),
    "fake quantized": lambda: Net(last=FakeQuantized(8, 5)),
    "observed": lambda: Net(last=Observed(8, 5)),
    "weight as a property": lambda: Net(last=Computed(8, 5)),
    "a hook that watches": lambda: Net(watched(conv())),
    "frozen": lambda: Net(conv(Standardised).requires_grad_(False)),
}


def made(build: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval(), torch.randn(16, 3, 13, 13)


def outputs(model: nn.Module, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(x).numpy()


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.sqrt(((found - expected) ** 2).mean()) / expected.std())


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("name", CASES)
def test_layers_that_others_compute_are_made_plain_and_compressed_like_any(name: str) -> None:
    model, x = made(CASES[name])
    expected, state, kinds = outputs(model, x), dict(model.state_dict()), [type(m) for m in model.modules()]
    plain = make_plain(model, x[:1])
    graph = ModelGraph.trace(plain.model, x[:1])
    assert plain.notes
    assert not graph.left_alone and list(graph.layers) == ["stem", "middle", "last"]
    assert distance(outputs(plain.model, x), expected) < TOLERANCE
    assert list(model.state_dict()) == list(state) and [type(m) for m in model.modules()] == kinds
    assert np.array_equal(outputs(model, x), expected)
    smaller = {} if graph.groups[0].refusal else {"stem": (HALF,)}
    assert smaller or "wrapped" in name
    plan = make_plan(Policy({**smaller, "middle": (W8A8,), "last": (W8A8,)}), graph)
    compressed = apply_plan(plan, graph, plain.model, x)
    stored = decode(encode(compressed.stored_once(), {})).tensors
    again = restore(plan, graph, plain.model, stored)
    assert np.array_equal(outputs(again, x), outputs(compressed.plain(), x))
    assert (
        distance(logits(session(export_onnx(again, x[:1], calibration=None)), x.numpy(), 16), outputs(again, x))
        < TOLERANCE
    )


def test_a_frozen_layer_stays_frozen_and_padding_on_one_side_is_kept() -> None:
    model, x = made(CASES["frozen"])
    assert not any(p.requires_grad for p in make_plain(model, x[:1]).model.middle.parameters())
    model, x = made(CASES["standardised, padded by itself"])
    padded = make_plain(model, x[:1]).model.middle
    assert not isinstance(padded, PaddedConv2d)
    padded = make_plain(model, x[:1, :, :12, :12]).model.middle
    assert isinstance(padded, PaddedConv2d) and padded.pads == (0, 1, 0, 1)


@pytest.mark.parametrize("middle", [lambda: conv(Dynamic), lambda: conv(Gated), lambda: hooked(conv(Gated))])
def test_a_layer_that_cannot_be_made_plain_is_left_alone_and_named(middle: Callable[[], nn.Module]) -> None:
    model, x = made(lambda: Net(middle()))
    assert make_plain(model, x[:1]).model is model
    graph = ModelGraph.trace(model, x[:1])
    assert list(graph.layers) == ["stem", "last"]
    (note,) = left_alone_notes(graph.left_alone)
    assert "middle" in note and type(model.middle).__name__ in note
    assert all(group.refusal for group in graph.groups)
    compressed = apply_plan(make_plan(Policy({"stem": (W8A8,), "last": (W8A8,)}), graph), graph, model, x)
    again = restore(compressed.plan, graph, model, compressed.stored_once())
    assert np.array_equal(outputs(again, x), outputs(compressed.plain(), x))


def test_an_ordinary_network_is_taken_as_it_is() -> None:
    model, x = made(Net)
    plain = make_plain(model, x[:1])
    assert plain.model is model and plain.notes == ()


def test_what_would_change_the_network_is_refused() -> None:
    class Counting(nn.Module):
        """Depends on how its weight is made, not on its value alone."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = parametrized(nn.Linear(3, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.mean((2, 3))) * (2 if parametrize.is_parametrized(self.layer) else 1)

    model, x = made(Counting)
    with pytest.raises(ModelError, match="change what the network computes"):
        make_plain(model, x[:1])


class Auxiliary(Net):
    """A head that only training runs, and one that nothing runs."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(nn.Conv2d(8, 64, 1), nn.Flatten(), nn.LazyLinear(5))
        self.spare = nn.ModuleList([nn.Linear(8, 8), nn.BatchNorm1d(8)])
        self.centre = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Any:
        y = self.stem(x).relu()
        out = self.last(self.middle(y).relu().mean((2, 3)))
        return (out, self.aux(y)) if self.training else out


def test_parts_that_evaluation_never_reaches_are_left_out_of_files_and_counts() -> None:
    model, x = made(Auxiliary)
    model.train()(x)
    model.eval()
    expected = outputs(model, x)
    plain = make_plain(model, x[:1])
    (note,) = plain.notes
    assert "centre, aux, spare" in note
    assert all(name.split(".")[0] in ("stem", "middle", "last") for name in plain.model.state_dict())
    assert np.array_equal(outputs(plain.model, x), expected)
    assert any(name.startswith("aux") for name in model.state_dict())
    # It trains without them, whatever its training adds to the logits.
    assert plain.model.train()(x)[0].shape == expected.shape
    plain.model.eval()
    graph = ModelGraph.trace(plain.model, x[:1])
    compressed = apply_plan(make_plan(Policy({"stem": (HALF,)}), graph), graph, plain.model, x)
    assert compressed.model.train()(x)[0].shape == expected.shape


def test_what_a_forward_pass_reads_without_calling_it_is_reached() -> None:
    class Functional(Net):
        def __init__(self) -> None:
            super().__init__()
            self.held, self.norm = nn.Linear(8, 8), nn.BatchNorm2d(8)
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.middle(self.stem(x).relu())).mean((2, 3)) * self.scale
            return self.last(functional.linear(y, self.held.weight, self.held.bias))

    model, x = made(Functional)
    assert make_plain(model, x[:1]).model is model
    assert "held" in ModelGraph.trace(model, x[:1]).left_alone


def test_a_part_that_training_cannot_do_without_is_kept() -> None:
    class Needed(Auxiliary):
        def forward(self, x: Tensor) -> Tensor:
            out = super().forward(x)
            return out[0] + 0.1 * out[1] * self.spare[0].weight.mean() if self.training else out

    model, x = made(Needed)
    model.train()(x)
    plain = make_plain(model.eval(), x[:1]).model
    plain.train()(x)
