from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from paretopress.policies import forms
from paretopress.policies.coding.press import decode, encode
from paretopress.policies.errors import PolicyError
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.forms.binary_input import is_input_binary
from paretopress.policies.stored_layers import read_layer, write_layer
from paretopress.policies.techniques.base import Calibration
from paretopress.policies.techniques.binarize import Binarize
from paretopress.policies.techniques.fisher import weight_fisher
from paretopress.policies.techniques.prune_magnitude import PruneMagnitude
from torch import nn
from torch.nn import functional

torch.set_num_threads(1)

METHODS = ("sign", "mean", "xnor", "loss_aware", "connect", "connect_stochastic")


def normal(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def linear(inputs, outputs, seed=5):
    layer = nn.Linear(inputs, outputs)
    layer.weight.data = 0.1 * normal(outputs, inputs, seed=seed)
    return layer


def test_the_mean_scale_minimises_the_distance_to_the_weights():
    layer = nn.Conv2d(6, 10, 3)
    weight = layer.weight.detach().clone()
    Binarize("mean").apply(layer, None)
    scale = weight.abs().mean((1, 2, 3))
    assert torch.allclose(layer.weight, scale.view(-1, 1, 1, 1) * weight.sign())
    least = (layer.weight - weight).square().sum((1, 2, 3))
    for share in (0.5, 0.9, 0.999, 1.001, 1.1, 2.0):
        assert ((share * layer.weight - weight).square().sum((1, 2, 3)) > least).all()


def test_one_scale_for_the_layer_errs_more_and_none_at_all_most():
    # Channels of different size: what the scale of each is good for.
    weight = normal(20, 24) * torch.linspace(0.01, 0.3, 20)[:, None]
    errors = {}
    for technique in (Binarize("mean"), Binarize("sign"), Binarize("sign", scaled=False)):
        layer = linear(24, 20)
        layer.weight.data = weight.clone()
        technique.apply(layer, None)
        errors[technique] = float((layer.weight - weight).detach().square().sum())
    mean, sign, bare = errors.values()
    assert mean < 0.7 * sign < 0.1 * bare
    assert set(layer.weight.detach().flatten().tolist()) == {-1.0, 1.0}


def test_the_loss_aware_scale_errs_less_where_the_fisher_information_is():
    layer, inputs = linear(24, 20), normal(80, 24) * torch.linspace(0.1, 4, 24)
    weight, asked = layer.weight.detach().clone(), Calibration(inputs, normal(80, 20, seed=9))
    (fisher,) = weight_fisher(layer, [layer], asked)
    errors = []
    for technique in (Binarize("loss_aware"), Binarize("mean")):
        binary = technique.apply(copy.deepcopy(layer), asked)
        errors.append((fisher * (binary.weight - weight).square()).sum(1))
    assert (errors[0] <= errors[1] * 1.0001).all()
    assert float(errors[0].detach().sum()) < 0.98 * float(errors[1].detach().sum())


def test_the_loss_aware_scale_is_the_papers_and_the_mean_where_nothing_matters():
    weight, d = normal(3, 8), normal(3, 8, seed=4).square()
    d[1] = 0
    scale = forms.weighted_scales(weight, d, None)
    expected = (d * weight.abs()).sum(1) / d.sum(1)
    expected[1] = weight[1].abs().mean()
    assert torch.allclose(scale, expected)


def test_the_loss_aware_scale_follows_the_gradients_while_it_trains():
    layer, inputs = linear(8, 4), normal(50, 8)
    Binarize("loss_aware").apply(layer, Calibration(inputs, torch.zeros(50, 4)))
    assert not forms.form_of(layer).curvature.any()
    layer(inputs).square().mean().backward()
    curvature = forms.form_of(layer).curvature
    assert (curvature > 0).all()
    # Straight through, the gradient of the binary weight is that of the latent one up to what moves the scale.
    kept = curvature.clone()
    layer.eval()(inputs).square().mean().backward()
    assert torch.equal(forms.form_of(layer).curvature, kept)


def test_a_latent_weight_that_changes_sign_flips_the_binary_one():
    layer = Binarize("connect").apply(linear(8, 4), None)
    latent = layer.parametrizations.weight.original
    assert (latent.abs() <= 1).all()
    before = layer.weight.detach().clone()
    with torch.no_grad():
        latent[0, 0] = -torch.sign(latent[0, 0]) * 7
    assert torch.equal(layer.weight[0, 0], -before[0, 0])
    assert torch.equal(layer.weight[0, 1:], before[0, 1:])
    # Read for training, the latent weights are clipped to [-1, 1] first.
    assert latent[0, 0].abs() == 1


def test_the_drawn_signs_have_the_hard_sigmoid_as_their_probability():
    layer = Binarize("connect_stochastic", scaled=False).apply(linear(5, 2), None)
    latent = torch.tensor([[-1.0, -0.5, 0.0, 0.5, 1.0], [-2.0, -0.9, 0.1, 0.9, 2.0]])
    layer.parametrizations.weight.original.data = latent.clone()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        up = torch.stack([(layer.weight > 0).float() for _ in range(4000)]).mean(0)
    expected = ((latent + 1) / 2).clamp(0, 1)
    assert torch.allclose(up, expected, atol=5 * 0.5 / 4000**0.5)
    assert torch.equal(up[expected == 0], expected[expected == 0])
    assert torch.equal(up[expected == 1], expected[expected == 1])
    layer.eval()
    assert torch.equal(layer.weight, layer.weight)
    assert torch.equal(layer.weight.detach(), torch.where(latent >= 0, 1.0, -1.0))


@pytest.mark.parametrize("method", ["mean", "loss_aware", "connect", "connect_stochastic"])
def test_binary_weights_learn(method):
    inputs = normal(200, 16)
    targets = (inputs @ normal(16, 4, seed=11)).argmax(1)
    layer = linear(16, 4)
    Binarize(method).apply(layer, Calibration(inputs, functional.one_hot(targets, 4) - 0.25))
    optimizer, losses = torch.optim.Adam(layer.parameters(), lr=0.02), []

    def evaluated():
        with torch.no_grad():
            return float(functional.cross_entropy(layer.eval()(inputs) * 3, targets))

    first = evaluated()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for _ in range(150):
            optimizer.zero_grad()
            functional.cross_entropy(layer.train()(inputs) * 3, targets).backward()
            optimizer.step()
            losses.append(evaluated())
    # A weight of one bit that flips moves the loss a lot: the mean of many steps says whether it learns.
    assert sum(losses[-50:]) / 50 < 0.8 * first
    assert len(layer.weight.detach().abs().unique()) <= 4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pruned", [False, True])
def test_a_layer_that_was_read_is_the_one_that_was_written(method, pruned):
    inputs, layer = normal(30, 8, 6, 6), nn.Conv2d(8, 6, 3, padding=1)
    other = copy.deepcopy(layer)
    if pruned:
        PruneMagnitude(0.5).apply(layer, None)
    technique = Binarize(method)
    technique.apply(layer, Calibration(inputs, normal(30, 6, 6, 6))).eval()
    data = write_layer(layer)
    read_layer(data, other, pruned)
    technique.resume(other.eval())
    assert torch.equal(other.weight, layer.weight)
    assert torch.equal(other(inputs), layer(inputs))
    assert write_layer(other) == data
    kept = forms.mask_of(layer)
    assert kept is None or torch.equal(forms.mask_of(other), kept)


@pytest.mark.parametrize("technique", [Binarize("mean"), Binarize("sign"), Binarize("sign", scaled=False)], ids=str)
def test_a_layer_takes_a_bit_a_weight_and_its_scales(technique):
    stored = forms.stored_weight(technique.apply(linear(256, 256), None))
    size = len(encode({"w": stored}, {}))
    scales = 4 * len(np.unique(stored.scales))
    assert 0.97 * 8192 < size < 1.03 * (8192 + scales)
    assert decode(encode({"w": stored}, {})).tensors["w"].decode().tobytes() == stored.decode().tobytes()


def test_an_xnor_layer_computes_the_papers_approximation():
    layer, x = nn.Conv2d(6, 4, 3, stride=2, padding=1), normal(2, 6, 9, 7)
    weight = layer.weight.detach().clone()
    Binarize("xnor").apply(layer, None)
    box = torch.full((1, 1, 3, 3), 1 / 9)
    k = functional.conv2d(x.abs().mean(1, keepdim=True), box, stride=2, padding=1)
    scale = weight.abs().mean((1, 2, 3)).view(-1, 1, 1)
    expected = functional.conv2d(x.sign(), weight.sign(), stride=2, padding=1) * k * scale
    assert torch.allclose(layer(x), expected + layer.bias.view(-1, 1, 1), atol=1e-5)


def test_the_gradient_passes_the_sign_of_an_input_within_one():
    layer = Binarize("xnor").apply(nn.Linear(3, 2, bias=False), None)
    x = torch.tensor([[0.5, -3.0, 1.0]], requires_grad=True)
    layer(x).sum().backward()
    scale = layer.weight.detach().sum(0)
    through = scale * x.detach().abs().mean() * torch.tensor([1.0, 0.0, 1.0])
    by_scale = x.detach().sign()[0] * float(x.detach().sign() @ scale) / 3
    assert torch.allclose(x.grad[0], through + by_scale)


def pictures_away_from_ties(network, pictures, margin=1e-4):
    """The pictures (N, C, H, W) whose every value before a sign is further from zero than rounding errors reach."""
    nearest = torch.full((len(pictures),), torch.inf)
    watched = [layer for layer in network if is_input_binary(layer)]

    def watch(_, inputs):
        nearest.copy_(torch.minimum(nearest, inputs[0].abs().flatten(1).amin(1)))

    hooks = [layer.register_forward_pre_hook(watch) for layer in watched]
    network(pictures)
    for hook in hooks:
        hook.remove()
    return pictures[nearest > margin]


def test_an_xnor_network_is_exported_with_standard_operators():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 6, (5, 3), 2, (2, 1), bias=False, padding_mode="reflect"),
            nn.BatchNorm2d(6),
            nn.Flatten(),
            nn.Linear(6 * 16, 5),
        ).eval()
    # Sums of as many signs of either kind are zero: without a shift, rounding errors would be their signs.
    network[3].running_mean = normal(6)
    for index in (0, 2, 5):
        Binarize("xnor").apply(network[index], None)
    x = pictures_away_from_ties(network, normal(32, 3, 8, 8))
    assert len(x) >= 8
    data = export_onnx(network, x[:1], calibration=None)
    (exported,) = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"input": x.numpy()})
    assert np.allclose(exported, network(x).detach().numpy(), atol=1e-5)
    operators = {node.op_type for node in onnx.load_from_string(data).graph.node}
    assert {"Sign", "Abs", "ReduceMean", "AveragePool", "Conv", "Mul"} <= operators


def test_loss_aware_weights_need_gradients():
    technique = Binarize("loss_aware")
    assert technique.needs_gradients
    assert not Binarize("mean").needs_gradients
    with pytest.raises(PolicyError, match="needs calibration inputs and output gradients"):
        technique.apply(linear(4, 4), Calibration(normal(5, 4)))
