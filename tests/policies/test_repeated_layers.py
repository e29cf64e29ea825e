"""Layers that one forward pass calls several times, on other inputs and at other sizes: every call counts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from paretopress.evaluators.macs import profile
from paretopress.evaluators.observe import Observations
from paretopress.evaluators.runtime import logits, session
from paretopress.evaluators.winograd import by_algorithm
from paretopress.policies.apply import apply_plan
from paretopress.policies.dead import _constants
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.graph import ModelGraph, input_energies
from paretopress.policies.importance import Importance, input_activities
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.policies.recording import GRADIENT_BATCH, prediction_slopes, record_gradients
from paretopress.policies.second_order import hessian_of_calls, layer_hessian
from paretopress.policies.slicing import Slot
from paretopress.policies.techniques import Calibration, build
from paretopress.policies.techniques.fisher import weight_fisher
from paretopress.policies.techniques.hessians import layer_hessians
from paretopress.policies.techniques.input_ranges import input_range
from torch import Tensor, nn
from torch.nn import functional


class Scales(nn.Module):
    """A head that two scales share, the second one's maps smaller and their values larger, and a norm that both share."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.head, self.norm, self.fc = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = functional.relu(self.stem(x))
        second = 6 * functional.relu(self.down(first))
        heads = [functional.relu(self.norm(self.head(maps))).mean((2, 3)) for maps in (first, second)]
        return self.fc(torch.cat(heads, 1))


class Recursion(nn.Module):
    """One layer over and over, each time on larger values."""

    def __init__(self, steps: int = 4) -> None:
        super().__init__()
        self.steps, self.stem, self.step, self.fc = steps, nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        for _ in range(self.steps):
            x = 2 * x + functional.relu(self.step(x))
        return self.fc(x.mean((2, 3)))


class TwoNames(nn.Module):
    """One layer under two names, the second name's inputs larger."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.second(5 * functional.relu(self.first(x))).mean((2, 3)))


NETWORKS = {"scales": (Scales, "head"), "recursion": (Recursion, "step"), "two names": (TwoNames, "first")}


def made(kind: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = kind()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 2.0)
    return model.eval(), torch.randn(24, 3, 8, 8)


def calls_of(model: nn.Module, layer: str, pictures: Tensor) -> list[Tensor]:
    """Inputs of each call, by a hook of the test's own."""
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    with torch.no_grad():
        model(pictures)
    handle.remove()
    return seen


@pytest.mark.parametrize("name", NETWORKS)
def test_the_8_bit_file_has_a_range_for_all_calls_and_stays_near_the_network(name: str) -> None:
    kind, layer = NETWORKS[name]
    model, pictures = made(kind)
    graph = ModelGraph.trace(model, pictures[:1])
    steps = (Step("quantize", {"bits": 8, "activations": "int8"}),)
    compressed = apply_plan(make_plan(Policy({layer: steps}), graph), graph, model, pictures)
    inside, calls = compressed.model.get_submodule(layer), calls_of(model, layer, pictures)
    top = float((255 - inside.input_zero_point) * inside.input_scale)
    assert len(calls) > 1 and top == pytest.approx(max(float(x.max()) for x in calls), rel=0.02)
    file = export_onnx(compressed.model, pictures[:1], calibration=pictures)
    with torch.no_grad():
        dense = model(pictures).numpy()
    assert np.abs(logits(session(file), pictures.numpy(), 8) - dense).max() < 0.05 * dense.std()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_float_file_folds_norms_behind_each_call_as_torch_computes_them(name: str) -> None:
    model, pictures = made(NETWORKS[name][0])
    with torch.no_grad():
        dense = model(pictures).numpy()
    file = export_onnx(model, pictures[:1], calibration=None)
    assert np.abs(logits(session(file), pictures.numpy(), 1) - dense).max() < 1e-5 * dense.std()


def test_a_hessian_is_the_mean_over_the_positions_of_all_calls() -> None:
    model, pictures = made(Scales)
    calls = calls_of(model, "head", pictures)
    rows = [functional.unfold(x, 3, padding=1).transpose(1, 2).flatten(0, 1).double() for x in calls]
    expected = torch.cat(rows).T @ torch.cat(rows) / sum(map(len, rows))
    assert torch.allclose(hessian_of_calls(model.head, calls), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(hessian_of_calls(model.head, calls[:1]), layer_hessian(model.head, calls[0]))
    seen = Observations.of(model, ModelGraph.trace(model, pictures[:1]), pictures)
    assert torch.allclose(seen.hessian("head"), expected, rtol=1e-4, atol=1e-5)
    first, again = (layer_hessians("x", model.head, [model.head], Calibration.from_calls(calls))[0] for _ in range(2))
    assert first is again and torch.allclose(first, expected, rtol=1e-4, atol=1e-5)
    (one,) = layer_hessians("x", model.head, [model.head], Calibration(calls[0]))
    assert torch.equal(one, layer_hessian(model.head, calls[0]))


def test_energies_activities_and_saliencies_are_those_of_all_calls() -> None:
    model, pictures = made(Scales)
    graph, calls = ModelGraph.trace(model, pictures[:1]), calls_of(model, "head", pictures)
    features = torch.cat([x.transpose(0, 1).flatten(1) for x in calls], 1)
    readers = [group for group in graph.groups if "head" in group.readers]
    assert readers
    assert torch.allclose(input_energies(model, pictures, readers)["head"], features.square().mean(1), rtol=1e-5)
    activities = input_activities(model, pictures, readers)["head"]
    assert torch.allclose(activities, (features != 0).float().mean(1), atol=1e-6)
    (saliencies,) = [
        one
        for group in readers
        for name, one in zip(
            Importance(model, readers, pictures)._wide(group), Importance(model, readers, pictures)._saliencies(group)
        )
        if name == "head"
    ][:1]
    alone = Importance(_FirstCallAlone(model), readers, pictures)._saliencies(readers[0])[0]
    assert saliencies.shape == alone.shape and not torch.allclose(saliencies, alone, rtol=0.1)


class _FirstCallAlone(nn.Module):
    """The network that judges the second scale by another head of the same weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name, child in copy.deepcopy(model).named_children():
            setattr(self, name, child)
        self.other = copy.deepcopy(self.head)

    def forward(self, x: Tensor) -> Tensor:
        first = functional.relu(self.stem(x))
        second = 6 * functional.relu(self.down(first))
        heads = [self.head(first), self.other(second)]
        return self.fc(torch.cat([functional.relu(self.norm(maps)).mean((2, 3)) for maps in heads], 1))


def test_fisher_information_sums_a_pictures_gradient_over_the_calls_before_it_is_squared() -> None:
    model, pictures = made(Scales)
    seen = record_gradients(model, {"head": model.head}, pictures)["head"]
    assert [call.inputs.shape[2:] for call in seen.calls] == [(8, 8), (4, 4)]
    (found,) = weight_fisher(model.head, [model.head], seen)
    generator = torch.Generator().manual_seed(0)
    slopes = torch.cat([prediction_slopes(model(batch), generator) for batch in pictures.split(GRADIENT_BATCH)])
    total = torch.zeros_like(found)
    for picture, slope in zip(pictures, slopes):
        (gradient,) = torch.autograd.grad(model(picture[None]), [model.head.weight], grad_outputs=slope[None])
        total += gradient.square()
    assert torch.allclose(found, total / len(pictures), rtol=1e-3, atol=1e-9)


def test_an_output_that_nothing_reads_has_no_gradient_and_its_call_still_counts() -> None:
    class Unread(Scales):
        def forward(self, x: Tensor) -> Tensor:
            self.head(functional.relu(self.stem(x)))
            return super().forward(x)

    model, pictures = made(Unread)
    seen = record_gradients(model, {"head": model.head}, pictures)["head"]
    assert [bool(call.gradients.any()) for call in seen.calls] == [False, True, True]


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_one_range_holds_the_inputs_of_all_calls(method: str) -> None:
    calls = [torch.rand(4, 6, 8, 8), 9 * torch.rand(4, 6, 3, 3)]
    joined = torch.cat([x.flatten() for x in calls])
    assert input_range(calls, method) == input_range(joined, method)
    assert input_range(calls[:1], method) == input_range(calls[0], method)


@pytest.mark.parametrize(
    "step",
    [
        Step("prune_obs", {"sparsity": 0.5}),
        Step("prune_obd", {"sparsity": 0.5}),
        Step("quantize", {"bits": 4, "rounding": "second_order"}),
        Step("svd_channel", {"rank": 3, "whitening": "activations"}),
        Step("rewrite_separable", {"fit": "outputs"}),
    ],
    ids=lambda step: step.technique,
)
def test_what_is_fitted_to_inputs_is_fitted_to_those_of_every_call(step: Step) -> None:
    """On the second call's inputs, which are larger, it errs less than what is fitted to the first call alone."""
    model, pictures = made(Scales)
    technique = build(step)
    observed = record_gradients(model, {"head": model.head}, pictures)["head"]
    first = Calibration(observed.inputs, observed.gradients)
    second = observed.later[0].inputs
    errors = []
    with torch.no_grad():
        for calibration in (observed, first):
            layer = technique.apply(copy.deepcopy(model.head), calibration)
            errors.append(float((layer(second) - model.head(second)).square().mean()))
    assert errors[0] < errors[1]


def test_a_channel_that_is_constant_in_each_call_but_not_the_same_is_no_constant() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            same, other = torch.ones(1, 2, 4, 4), torch.ones(1, 2, 2, 2) * torch.tensor([1.0, 3.0]).view(1, 2, 1, 1)
            return self.conv(same).mean((2, 3)) + self.conv(other).mean((2, 3))

    model = Constant()
    first, constant = _constants(model, [Slot("conv", "in", (0, 1))], torch.zeros(1, 2, 4, 4))["conv"]
    assert first.tolist() == [1.0, 1.0] and constant.tolist() == [True, False]


@pytest.mark.parametrize("name", NETWORKS)
def test_multiplications_of_every_call_are_counted_at_its_own_size(name: str) -> None:
    model, pictures = made(NETWORKS[name][0])
    layers = ModelGraph.trace(model, pictures[:1]).layers.values()
    direct = by_algorithm(layers)["direct"]
    assert (
        direct == sum(call.macs for layer in layers for call in layer.each_call()) == profile(model, pictures[:1]).macs
    )
