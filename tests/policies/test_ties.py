"""Parameters that several layers share: one network in memory, in the stored file and in ONNX, stored once while they are one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from paretopress.evaluators.runtime import logits, session
from paretopress.policies.apply import apply_plan, restore, round_vectors
from paretopress.policies.batch_norms import reestimate_statistics, settle_statistics
from paretopress.policies.coding.press import decode, encode
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plain_layers import make_plain
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)

W4, SPARSE, SHARE = (
    Step.of("quantize", bits=4),
    Step.of("prune_magnitude", sparsity=0.5),
    Step.of("share", clusters=4),
)
HALF, FACTORS = Step.of("prune_channels", sparsity=0.5), Step.of("svd_spatial", rank=2)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 5)
        self.a, self.b, self.c = (nn.Conv2d(8, 8, 3, 1, 1) for _ in range(3))
        self.norm, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for layer in (self.a, self.norm, self.b, self.norm2, self.c):
            x = layer(x)
            x = x.relu() if isinstance(layer, nn.BatchNorm2d) else x
        return self.last(x.mean((2, 3)))


class Weights(Base):
    def __init__(self) -> None:
        super().__init__()
        self.b.weight = self.c.weight = self.a.weight


class Biases(Base):
    def __init__(self) -> None:
        super().__init__()
        self.b.bias = self.a.bias


class Norms(Base):
    """Scale and shift are shared, statistics are not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm2.weight, self.norm2.bias = self.norm.weight, self.norm.bias


class Transposed(Base):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(self.a(self.stem(x).relu()).relu().mean((2, 3))).relu()
        return self.last(functional.linear(y, self.fc.weight.t()))


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


class WeightsMadePlain(Base):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (Standardised(8, 8, 3, 1, 1) for _ in range(2))
        self.b.weight = self.a.weight


class TwoNames(Base):
    def __init__(self) -> None:
        super().__init__()
        self.b = self.a


CASES = {kind.__name__: kind for kind in Base.__subclasses__()}
POLICIES = {
    "dense": {},
    "first": {"a": (W4,)},
    "later": {"c": (SHARE,)},
    "both": {"a": (SPARSE,), "b": (SPARSE,)},
    "split": {"a": (FACTORS,)},
    "other": {"stem": (W4,), "last": (SPARSE,)},
    "smaller": {"last": (W4,), "stem": (HALF,)},
}


def made(build: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = build(), torch.randn(16, 3, 12, 12)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.rand(parameter.shape)
    reestimate_statistics(model.eval(), x)
    return make_plain(model, x[:1]).model, x


def outputs(model: nn.Module, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(x).numpy()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", CASES)
def test_memory_stored_file_and_onnx_are_one_network(name: str, policy: str) -> None:
    model, x = made(CASES[name])
    graph = ModelGraph.trace(model, x[:1])
    refused = {group.root for group in graph.groups if group.refusal}
    layers = {
        n: steps for n, steps in POLICIES[policy].items() if n in graph.layers and not (HALF in steps and n in refused)
    }
    compressed = apply_plan(make_plan(Policy(layers), graph), graph, model, x)
    with torch.no_grad():
        for parameter in compressed.model.parameters():
            # Training moves what is still shared together, and what is not apart.
            parameter.mul_(1 + 0.05 * torch.rand(parameter.shape, generator=torch.Generator().manual_seed(1)))
    settle_statistics(compressed.model)
    round_vectors(compressed.model)
    expected = outputs(compressed.plain(), x)
    again = restore(compressed.plan, graph, model, decode(encode(compressed.stored_once(), {})).tensors)
    assert np.array_equal(outputs(again, x), expected)
    file = logits(session(export_onnx(compressed.model, x[:1], calibration=x)), x.numpy(), 16)
    assert np.sqrt(((file - expected) ** 2).mean()) < 1e-5 * expected.std()


def test_a_tie_is_stored_once_while_it_holds() -> None:
    model, x = made(Weights)
    graph = ModelGraph.trace(model, x[:1])
    assert graph.ties == (("a.weight", "b.weight", "c.weight"),)
    plans = {name: make_plan(Policy(POLICIES[name]), graph) for name in ("dense", "later")}
    stored = {name: set(apply_plan(plan, graph, model, x).stored_once()) for name, plan in plans.items()}
    assert "a.weight" in stored["dense"] and not {"b.weight", "c.weight"} & stored["dense"]
    assert {"a.weight", "b.weight", "c.weight"} <= stored["later"]
    (note,) = make_plain(model, x[:1]).notes
    assert "a.weight = b.weight = c.weight" in note
    assert ModelGraph.trace(made(WeightsMadePlain)[0], x[:1]).ties == (("a.weight", "b.weight"),)


def test_settled_batch_norms_that_share_their_scale_compute_what_they_did() -> None:
    model, x = made(Norms)
    expected = outputs(model, x)
    settle_statistics(model)
    assert np.abs(outputs(model, x) - expected).max() < 1e-4 * expected.std()
