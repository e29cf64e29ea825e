from __future__ import annotations

import pytest
import torch
from paretopress.policies import forms
from paretopress.policies.coding.press import decode, encode
from paretopress.policies.coding.tensors import UniformTensor
from paretopress.policies.techniques.fixed_point import FixedPoint, power_of_two_scales
from paretopress.policies.techniques.prune_magnitude import PruneMagnitude
from torch import nn

torch.set_num_threads(1)


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def layer_of(weight):
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data = weight.clone()
    return layer


@pytest.mark.parametrize("bits", [2, 4, 8, 11, 16])
@pytest.mark.parametrize("exponents", ["tensor", "channel"])
def test_a_weight_is_a_mantissa_of_so_many_bits_times_a_power_of_two(bits, exponents):
    layer = FixedPoint(bits, exponents).apply(layer_of(normal(12, 40)), None)
    stored = forms.stored_weight(layer)
    assert isinstance(stored, UniformTensor)
    assert stored.bits == bits
    assert abs(stored.codes.astype(int)).max() <= 2 ** (bits - 1) - 1
    assert (torch.from_numpy(stored.scales).log2() % 1 == 0).all()
    assert len(set(stored.scales.tolist())) == 1 or exponents == "channel"
    read = decode(encode({"w": stored}, {})).tensors["w"]
    assert read.codes.dtype == stored.codes.dtype
    assert read.decode().tobytes() == layer.weight.detach().numpy().tobytes()


def test_sixteen_bits_are_next_to_float():
    weight = normal(30, 50)
    layer = FixedPoint(16).apply(layer_of(weight), None)
    step = float(forms.form_of(layer).scale[0])
    assert step <= 2 * float(weight.abs().max()) / 32767
    assert ((layer.weight - weight).abs() <= step / 2).all()


@pytest.mark.parametrize("bits", [3, 5, 8])
def test_the_exponent_has_the_least_squared_error_of_all(bits):
    weight, limit = normal(8, 200), 2 ** (bits - 1) - 1
    chosen = power_of_two_scales(weight, bits, "channel")
    errors = {}
    for exponent in range(-14, 4):
        errors[exponent] = (
            ((weight / 2.0**exponent).round().clamp(-limit, limit) * 2.0**exponent - weight).square().sum(1)
        )
    least = torch.stack(list(errors.values())).amin(0)
    found = (weight / chosen[:, None]).round().clamp(-limit, limit) * chosen[:, None]
    assert torch.allclose((found - weight).square().sum(1), least)


def test_an_exponent_for_each_channel_errs_less_than_one_for_all():
    weight = normal(16, 100) * torch.logspace(-3, 0, 16)[:, None]
    errors = []
    for exponents in ("channel", "tensor"):
        layer = FixedPoint(6, exponents).apply(layer_of(weight), None)
        errors.append(((layer.weight - weight).square().sum(1) / weight.square().sum(1)).mean())
    assert errors[0] < 0.1 * errors[1]


def test_stochastic_rounding_has_the_weight_as_its_mean():
    weight, seeds = normal(4, 30).clamp(-1.5, 1.5), 600
    scale = power_of_two_scales(weight, 4, "tensor")[0]
    rounded = [FixedPoint(4, "tensor", "stochastic", seed).apply(layer_of(weight), None) for seed in range(seeds)]
    values = torch.stack([layer.weight.detach() for layer in rounded])
    inside = weight.abs() <= 7 * scale
    # A value lies between two steps: its deviation is at most half a step.
    assert ((values.mean(0) - weight).abs()[inside] < 5 * 0.5 * scale / seeds**0.5).all()
    assert ((values - weight).abs()[:, inside] < scale).all()
    assert len({value.numpy().tobytes() for value in values}) == seeds


def test_stochastic_rounding_tells_from_seed_and_weights_alone():
    technique, weight = FixedPoint(4, "tensor", "stochastic", 7), normal(6, 20)
    one, same = (technique.apply(layer_of(weight), None).weight for _ in range(2))
    assert torch.equal(one, same)
    scale = forms.form_of(technique.apply(layer_of(weight), None)).scale[0]
    other = technique.apply(layer_of(weight + 8 * scale * 0), None).weight
    assert torch.equal(one, other)
    moved = technique.apply(layer_of(weight * 1.0000001), None).weight
    assert not torch.equal(one, moved)


def test_stochastic_rounding_draws_anew_while_it_trains_and_settles_at_evaluation():
    layer = FixedPoint(4, "tensor", "stochastic").apply(layer_of(normal(6, 20)), None)
    assert torch.equal(layer.weight, layer.weight)
    layer.parametrizations.weight.original.data += 0.3 * forms.form_of(layer).scale[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(layer.weight, layer.weight)
    layer.eval()
    assert torch.equal(layer.weight, layer.weight)
    assert forms.stored_weight(layer).decode().tobytes() == layer.weight.detach().numpy().tobytes()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_zeros_and_pruned_weights_stay_zero(rounding):
    layer = PruneMagnitude(0.5).apply(layer_of(normal(10, 20)), None)
    mask = forms.mask_of(layer)
    FixedPoint(3, "channel", rounding).apply(layer, None)
    assert torch.equal(forms.mask_of(layer), mask)
    assert not layer.weight[~mask].any()
    nothing = FixedPoint(8, "channel", rounding).apply(layer_of(torch.zeros(3, 4)), None)
    assert not nothing.weight.any()
