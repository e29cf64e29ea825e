from __future__ import annotations

import copy

import pytest
import torch
from paretopress.policies import forms
from paretopress.policies.errors import CandidateError, PolicyError
from paretopress.policies.techniques.base import Calibration
from paretopress.policies.techniques.prune_magnitude import PruneMagnitude
from paretopress.policies.techniques.quantize_uniform import QuantizeUniform, channel_scales
from paretopress.policies.techniques.svd_linear import SVDLinear
from torch import nn

torch.set_num_threads(1)


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def squared_error(weight, bits, scale):
    weight_form = forms.UniformWeight(scale, bits, None)
    return (weight_form(weight) - weight).square().flatten(1).sum(1)


def test_eight_bit_errs_by_half_a_step_at_most():
    layer = nn.Conv2d(6, 10, 3)
    weight = layer.weight.detach().clone()
    QuantizeUniform(8).apply(layer, None)
    scale = weight.abs().amax((1, 2, 3)) / 127
    assert torch.equal(forms.form_of(layer).scale, scale)
    assert ((layer.weight - weight).abs() <= scale.view(-1, 1, 1, 1) * 0.5001).all()


@pytest.mark.parametrize("bits", range(2, 8))
def test_clipping_never_errs_more_than_the_full_range(bits):
    weight = normal(16, 500)
    full = weight.abs().amax(1) / (2 ** (bits - 1) - 1)
    chosen = channel_scales(weight, bits)
    assert (squared_error(weight, bits, chosen) <= squared_error(weight, bits, full)).all()
    if bits <= 4:
        assert (squared_error(weight, bits, chosen) < 0.8 * squared_error(weight, bits, full)).all()


def test_three_levels_of_a_normal_weight_err_as_the_theory_says():
    # The best symmetric three-level quantizer of a unit normal variable has its outer levels at 1.224 and a mean
    # squared error of 0.1902 (Max 1960, "Quantizing for minimum distortion").
    weight = normal(1, 200_000)
    scale = channel_scales(weight, 2)
    assert float(scale) == pytest.approx(1.224, rel=0.06)
    assert float(squared_error(weight, 2, scale)) / 200_000 == pytest.approx(0.1902, rel=0.01)


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_channels_of_zeros_and_of_next_to_nothing_are_safe(bits):
    weight = torch.stack([torch.zeros(8), torch.full((8,), 1e-45), torch.linspace(-1, 1, 8)])
    scale = channel_scales(weight, bits)
    assert (scale > 0).all()
    assert scale[0] == 1
    assert forms.UniformWeight(scale, bits, None)(weight).isfinite().all()


def test_pruned_weights_stay_zero():
    layer = PruneMagnitude(0.6).apply(nn.Linear(20, 10), None)
    mask = forms.mask_of(layer)
    QuantizeUniform(4).apply(layer, None)
    assert torch.equal(forms.mask_of(layer), mask)
    assert not layer.weight[~mask].any()


@pytest.mark.parametrize(
    "technique", [QuantizeUniform(8, "int8"), QuantizeUniform(4, rounding="second_order")], ids=str
)
def test_only_int8_activations_and_second_order_rounding_need_calibration(technique):
    assert not QuantizeUniform(8).needs_calibration
    assert technique.needs_calibration
    with pytest.raises(PolicyError, match="needs calibration inputs"):
        technique.apply(nn.Linear(4, 4), None)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("pruned", [False, True])
def test_second_order_rounding_errs_less_on_other_inputs(bits, pruned):
    inputs, others = ((normal(900, 8) @ normal(8, 24)).relu() + 0.1 * normal(900, 24)).split([450, 450])
    errors, layers = [], [nn.Linear(24, 20)]
    for rounding in ("nearest", "second_order"):
        layer = copy.deepcopy(layers[0])
        if pruned:
            PruneMagnitude(0.3).apply(layer, None)
        mask = forms.mask_of(layer)
        expected = layer(others)
        QuantizeUniform(bits, rounding=rounding).apply(layer, Calibration(inputs))
        assert mask is None or not layer.weight[~mask].any()
        errors.append(float((layer(others) - expected).detach().square().mean()))
        layers.append(layer)
    assert errors[1] < 0.8 * errors[0]
    assert torch.equal(forms.form_of(layers[1]).scale, forms.form_of(layers[2]).scale)


def test_second_order_rounding_starts_training_from_the_codes():
    layer = QuantizeUniform(3, rounding="second_order").apply(nn.Linear(24, 20), Calibration(normal(90, 24)))
    form, latent = forms.form_of(layer), layer.parametrizations.weight.original
    assert torch.equal(latent, form.codes(latent) * form.scale[:, None])
    assert torch.equal(latent, layer.weight)


def test_inputs_that_are_not_finite_fail_the_candidate():
    with pytest.raises(CandidateError, match="finite"):
        QuantizeUniform(8, "int8").apply(nn.Linear(2, 2), Calibration(torch.tensor([[1.0, torch.nan]])))


def test_each_factor_gets_the_range_of_its_own_inputs():
    inputs = normal(50, 12)
    module = QuantizeUniform(8, "int8").apply(SVDLinear(3).apply(nn.Linear(12, 9), None), Calibration(inputs))
    first, second = (layer for _, layer in forms.weighted_modules(module))
    between = nn.functional.linear(inputs, first.weight).detach()
    for layer, values in ((first, inputs), (second, between)):
        assert float(layer.input_scale) == pytest.approx(float(values.max() - values.min()) / 255, rel=1e-5)
    assert not torch.equal(module(inputs), forms.plain(module)(inputs))


def test_a_quantized_input_errs_by_half_a_step_at_most():
    inputs = normal(50, 12).relu()
    layer = nn.Linear(12, 12, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(12))
    QuantizeUniform(8, "int8").apply(layer, Calibration(inputs))
    assert int(layer.input_zero_point) == 0
    assert ((layer(inputs) - inputs).abs() <= float(inputs.max()) / 255 * 0.501).all()
