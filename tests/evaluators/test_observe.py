"""What is seen of a network's layers on calibration pictures."""

from __future__ import annotations

import copy

import pytest
import torch
from paretopress.evaluators import observe
from paretopress.evaluators.observe import Observations, as_channels
from paretopress.policies.architectures import DigitsCNN
from paretopress.policies.graph import ModelGraph
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)

PICTURES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(2))


class Tiny(nn.Module):
    """A convolution whose output is overwritten, a linear layer at many positions, one at a single one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.each, self.fc = nn.Conv2d(1, 3, 3, 2), nn.Linear(3, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.conv(x), inplace=True)
        return self.fc(self.each(x.flatten(2).transpose(1, 2)).tanh().mean(1))


def made(kind: type[nn.Module]) -> tuple[nn.Module, ModelGraph]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind().eval()
    return model, ModelGraph.trace(model, PICTURES[:1])


def test_inputs_and_outputs_are_those_of_each_layer():
    model, graph = made(DigitsCNN)
    seen = Observations.of(model, graph, PICTURES)
    with torch.no_grad():
        first = model.conv1(PICTURES)
        second = model.relu1(model.bn1(first))
        hidden = model.flatten(model.pool(model.relu2(model.bn2(model.conv2(second)))))
        assert torch.equal(seen.inputs("conv1")[0], PICTURES)
        assert torch.equal(seen.outputs("conv1"), first.transpose(0, 1).reshape(32, -1))
        assert torch.allclose(seen.inputs("conv2")[0], second, atol=1e-6)
        assert torch.allclose(seen.inputs("fc1")[0], hidden, atol=1e-6)
        assert torch.allclose(seen.outputs("fc2"), model(PICTURES).T, atol=1e-5)
    assert not seen.inputs("conv2")[0].requires_grad


def test_the_hessian_is_the_mean_product_of_the_inputs():
    model, graph = made(DigitsCNN)
    seen = Observations.of(model, graph, PICTURES)
    x = seen.inputs("fc2")[0].double()
    assert torch.allclose(seen.hessian("fc2"), x.T @ x / len(PICTURES), atol=1e-5)
    assert seen.hessian("fc2") is seen.hessian("fc2")


def fisher(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """Half the mean over pictures of the squared gradients, summed over positions, by differences taken of the loss."""
    with torch.no_grad():
        probabilities = model(PICTURES).softmax(1)
    labels = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(seed))[:, 0]
    totals: dict[str, Tensor] = {}
    for picture, label in zip(PICTURES, labels):
        x = model.conv(picture[None])
        y = model.each(x.relu().flatten(2).transpose(1, 2))
        z = model.fc(y.tanh().mean(1))
        grads = torch.autograd.grad(functional.cross_entropy(z, label[None]), [x, y, z])
        squares = (grads[0].square().sum((0, 2, 3)), grads[1].square().sum((0, 1)), grads[2].square().sum(0))
        for name, square in zip(("conv", "each", "fc"), squares):
            totals[name] = totals.get(name, 0) + square / (2 * len(PICTURES))
    return totals


def test_squared_gradients_are_the_diagonal_of_the_fisher_matrix():
    model, graph = made(Tiny)
    seen = Observations.of(model, graph, PICTURES, seed=3)
    direct = fisher(model, 3)
    for name in ("conv", "each", "fc"):
        assert seen.squared_gradients[name].shape == (graph.layers[name].weight_shape[0],)
        assert torch.allclose(seen.squared_gradients[name], direct[name], rtol=1e-4, atol=1e-9), name
    assert not torch.allclose(
        Observations.of(model, graph, PICTURES, seed=4).squared_gradients["fc"], direct["fc"], rtol=1e-3
    )


def test_the_weighted_error_is_about_what_the_loss_rises_by():
    model, graph = made(Tiny)
    # Pictures enough that the drawn labels average out.
    pictures = torch.randn(256, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    seen = Observations.of(model, graph, pictures)
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        changed.fc.weight += 0.05 * torch.randn(changed.fc.weight.shape, generator=generator)
        change = as_channels(model.fc, changed.fc(seen.inputs("fc")[0])) - seen.outputs("fc")
        estimate = float((change.square().mean(1) * seen.squared_gradients["fc"]).sum())
        dense = model(pictures).log_softmax(1)
        rise = functional.kl_div(changed(pictures).log_softmax(1), dense, log_target=True, reduction="batchmean")
    assert 0.5 * float(rise) < estimate < 2 * float(rise)


def test_a_frozen_network_is_seen_like_any_other_and_no_gradients_stay():
    model, graph = made(Tiny)
    frozen = copy.deepcopy(model).requires_grad_(False)
    one, other = (Observations.of(m, graph, PICTURES) for m in (model, frozen))
    for name in graph.layers:
        assert torch.allclose(one.inputs(name)[0], other.inputs(name)[0], atol=1e-6)
        assert torch.allclose(one.squared_gradients[name], other.squared_gradients[name])
    for m, trains in ((model, True), (frozen, False)):
        assert all(p.grad is None and p.requires_grad is trains for p in m.parameters())
        assert not any(module._forward_hooks for module in m.modules())


def test_gradients_that_a_network_has_are_left_to_it():
    model, graph = made(Tiny)
    model(PICTURES).sum().backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    Observations.of(model, graph, PICTURES)
    assert all(torch.equal(p.grad, before[name]) for name, p in model.named_parameters())


def test_inputs_are_those_of_the_moment_even_where_they_are_overwritten_later():
    class Overwriting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.fc = nn.Linear(8, 2), nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            x -= 1.0
            y = self.first(x)
            x.zero_()
            return self.fc(y.mean((1, 2)))

    model = Overwriting().eval().requires_grad_(False)
    pictures = PICTURES.clone()
    seen = Observations.of(model, ModelGraph.trace(model, pictures[:1].clone()), pictures)
    assert torch.equal(seen.inputs("first")[0], PICTURES - 1.0)
    assert torch.equal(pictures, PICTURES)


def test_every_call_of_a_layer_is_seen_each_at_its_own_size():
    class Repeating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(self.conv(x))
            return self.fc(self.conv(functional.avg_pool2d(x, 2)).mean((2, 3)))

    model = Repeating().eval()
    seen = Observations.of(model, ModelGraph.trace(model, PICTURES[:1]), PICTURES)
    count, graph = len(PICTURES), ModelGraph.trace(model, PICTURES[:1])
    assert [x.shape for x in seen.inputs("conv")] == [(count, 1, 8, 8), (count, 1, 8, 8), (count, 1, 4, 4)]
    first, second, third = seen.inputs("conv")
    assert torch.allclose(second, model.conv(first)) and torch.equal(first, PICTURES)
    assert torch.allclose(third, functional.avg_pool2d(model.conv(second), 2), atol=1e-6)
    assert seen.outputs("conv").shape == (1, count * (64 + 64 + 16))
    assert seen.squared_gradients["conv"].shape == (1,) and graph.layers["conv"].calls == 3


@pytest.mark.parametrize(("room", "pictures"), [(100, 12), (10, 10), (1, 8)])
def test_as_many_pictures_are_kept_as_the_memory_holds(monkeypatch, room, pictures):
    model, graph = made(Tiny)
    each = 4 * ((64 + 3 * 9) + (9 * 3 + 9 * 5) + (5 + 4))
    monkeypatch.setattr(observe, "OBSERVED_BYTES", room * each)
    seen = Observations.of(model, graph, PICTURES)
    assert torch.equal(seen.inputs("conv")[0], PICTURES[:pictures])
