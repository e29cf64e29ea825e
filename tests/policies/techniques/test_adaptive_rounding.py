from __future__ import annotations

import copy

import pytest
import torch
from paretopress.policies import forms
from paretopress.policies.techniques.adaptive_rounding import round_adaptively
from paretopress.policies.techniques.base import Calibration
from paretopress.policies.techniques.prune_magnitude import PruneMagnitude
from paretopress.policies.techniques.quantize_uniform import QuantizeUniform, channel_scales
from torch import nn

torch.set_num_threads(1)


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def layer(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(24, 20)


INPUTS, OTHERS = ((normal(900, 8) @ normal(8, 24)).relu() + 0.1 * normal(900, 24)).split([450, 450])


@pytest.mark.parametrize("bits", [2, 4, 6])
@pytest.mark.parametrize("pruned", [False, True])
def test_it_errs_less_than_the_nearest_and_about_as_second_order_on_other_inputs(bits, pruned):
    errors = {}
    for rounding in ("nearest", "second_order", "adaptive"):
        rounded = layer()
        if pruned:
            PruneMagnitude(0.3).apply(rounded, None)
        mask, expected = forms.mask_of(rounded), rounded(OTHERS).detach()
        QuantizeUniform(bits, rounding=rounding).apply(rounded, Calibration(INPUTS))
        assert mask is None or not rounded.weight[~mask].any()
        errors[rounding] = float((rounded(OTHERS) - expected).detach().square().mean())
    assert errors["adaptive"] < 0.75 * errors["nearest"]
    assert errors["adaptive"] < 2 * errors["second_order"]


def test_each_weight_goes_up_or_down_by_less_than_a_step():
    weight, hessian = layer().weight.detach(), (INPUTS.T @ INPUTS / len(INPUTS)).double()
    scale, limit = channel_scales(weight, 8), 127
    rounded = round_adaptively(weight, hessian, scale, limit)
    steps = rounded / scale[:, None]
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert ((rounded - weight).abs() < 1.0001 * scale[:, None]).all()
    assert ((rounded - weight).abs() > 0.51 * scale[:, None]).any()


def test_no_channel_errs_more_than_with_the_nearest_values():
    weight, hessian = layer().weight.detach(), (INPUTS.T @ INPUTS / len(INPUTS)).double()
    scale = channel_scales(weight, 3)
    nearest = (weight / scale[:, None]).round().clamp(-3, 3) * scale[:, None]
    found = round_adaptively(weight, hessian, scale, 3)
    losses = [(((w - weight).double() @ hessian) * (w - weight)).sum(1) for w in (found, nearest)]
    assert (losses[0] <= losses[1] * 1.0001).all()


def test_inputs_that_are_all_zero_leave_the_nearest_values():
    weight = layer().weight.detach()
    scale = channel_scales(weight, 4)
    found = round_adaptively(weight, torch.zeros(24, 24).double(), scale, 7)
    assert torch.equal(found, (weight / scale[:, None]).round().clamp(-7, 7) * scale[:, None])


def test_training_goes_on_from_the_codes_that_were_learned():
    rounded = QuantizeUniform(4, rounding="adaptive").apply(copy.deepcopy(layer()), Calibration(INPUTS))
    form, latent = forms.form_of(rounded), rounded.parametrizations.weight.original
    assert torch.equal(form.codes(latent) * form.scale[:, None], rounded.weight)
    assert torch.allclose(latent, rounded.weight, atol=1e-7)
