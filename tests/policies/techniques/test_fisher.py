"""The diagonal Fisher information: as a plain loop over pictures gives it, and what it is made from."""

from __future__ import annotations

import pytest
import torch
from paretopress.evaluators.observe import Observations
from paretopress.policies import forms
from paretopress.policies.architectures import DigitsCNN
from paretopress.policies.errors import PolicyError
from paretopress.policies.graph import ModelGraph
from paretopress.policies.recording import GRADIENT_BATCH, prediction_slopes, record_gradients
from paretopress.policies.techniques.base import Calibration
from paretopress.policies.techniques.fisher import weight_fisher
from paretopress.policies.techniques.prune_magnitude import PruneMagnitude
from paretopress.policies.techniques.svd_spatial import SVDSpatial
from torch import nn

torch.set_num_threads(1)


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


MODULES = {
    "linear": (lambda: nn.Linear(6, 5), normal(7, 6)),
    "tokens": (lambda: nn.Linear(6, 5), normal(7, 3, 6)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, padding_mode="reflect"), normal(7, 4, 7, 6)),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=4, dilation=2), normal(7, 4, 7, 6)),
    "factors": (lambda: SVDSpatial(4).apply(nn.Conv2d(4, 6, 3, padding=1), None), normal(7, 4, 7, 6)),
    "pruned": (lambda: PruneMagnitude(0.5).apply(nn.Linear(6, 5), None), normal(7, 6)),
}


def looped(module, calibration):
    plain = forms.plain(module).requires_grad_(True)
    weights = [layer.weight for _, layer in forms.weighted_modules(plain)]
    totals = [torch.zeros_like(weight) for weight in weights]
    for x, gradient in zip(calibration.inputs, calibration.gradients):
        found = torch.autograd.grad(plain(x[None]), weights, grad_outputs=gradient[None])
        totals = [total + one.square() for total, one in zip(totals, found)]
    return [total / len(calibration.inputs) for total in totals]


@pytest.mark.parametrize("name", MODULES)
def test_it_is_that_of_a_loop_over_pictures(name):
    make, inputs = MODULES[name]
    module = make()
    calibration = Calibration(inputs, normal(*module(inputs).shape))
    layers = [layer for _, layer in forms.weighted_modules(module)]
    found, expected = weight_fisher(module, layers, calibration), looped(module, calibration)
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_it_is_given_in_the_order_that_is_asked_for():
    module, inputs = MODULES["factors"][0](), MODULES["factors"][1]
    calibration = Calibration(inputs, normal(*module(inputs).shape))
    first, second = weight_fisher(module, [module[1], module[0]], calibration)
    assert (first.shape, second.shape) == (module[1].weight.shape, module[0].weight.shape)


def test_it_needs_gradients_that_belong_to_the_inputs():
    layer = nn.Linear(6, 5)
    for calibration in (None, Calibration(normal(7, 6))):
        with pytest.raises(PolicyError, match="needs calibration inputs and output gradients of the layer, got none"):
            weight_fisher(layer, [layer], calibration)
    with pytest.raises(PolicyError, match="as many gradients as inputs, got 4 and 7"):
        weight_fisher(layer, [layer], Calibration(normal(7, 6), normal(4, 5)))


def test_from_what_is_recorded_it_is_the_networks_own():
    model, pictures = DigitsCNN().eval().requires_grad_(False), normal(40, 1, 8, 8)
    layers = {name: model.get_submodule(name) for name in ("conv2", "fc1")}
    seen = record_gradients(model, layers, pictures)
    weights = [layer.weight.requires_grad_(True) for layer in layers.values()]
    totals = [torch.zeros_like(weight) for weight in weights]
    generator = torch.Generator().manual_seed(0)
    slopes = torch.cat([prediction_slopes(model(batch), generator) for batch in pictures.split(GRADIENT_BATCH)])
    for picture, slope in zip(pictures, slopes):
        found = torch.autograd.grad(model(picture[None]), weights, grad_outputs=slope[None])
        totals = [t + g.square() for t, g in zip(totals, found)]
    for (name, layer), total in zip(layers.items(), totals):
        (found,) = weight_fisher(layer, [layer], seen[name])
        assert torch.allclose(found, total / len(pictures), rtol=1e-3, atol=1e-9)


def test_slopes_of_a_prediction_have_the_covariance_of_labels_drawn_from_it():
    logits = torch.tensor([[2.0, 0.0, -1.0, 9.0], [0.5, 0.0, 0.0, -0.5]])
    p = logits.softmax(1)
    slopes = prediction_slopes(logits.repeat(20_000, 1), torch.Generator().manual_seed(0)).view(-1, 2, 4)
    covariance = torch.einsum("nki,nkj->kij", slopes, slopes) / len(slopes)
    expected = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    for found, one in zip(covariance, expected):
        assert torch.allclose(found, one, atol=0.03 * float(one.abs().max()))


def test_of_a_sure_network_every_picture_tells_something():
    """With its likeliest class as the label, a gradient would be about a hundred-millionth; here it is the root of that."""
    logits = 18.0 * torch.eye(10)
    assert float(prediction_slopes(logits, torch.Generator().manual_seed(0)).norm(dim=1).min()) > 1e-4


def test_observations_hand_the_gradients_over_once_and_leave_the_network_as_it_was():
    model, pictures = DigitsCNN().eval(), normal(12, 1, 8, 8)
    seen = Observations.of(model, ModelGraph.trace(model, pictures[:1]), pictures)
    assert seen.with_gradients("conv2") is seen.with_gradients("conv2")
    assert torch.allclose(seen.with_gradients("conv2").inputs, seen.inputs("conv2")[0], atol=1e-6)
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
