"""Scales in batch norms: the network computes the same, and shares nothing that was changed."""

from __future__ import annotations

import copy

import pytest
import torch
from paretopress.policies import forms
from paretopress.policies.apply import apply_plan
from paretopress.policies.architectures import SHAPED
from paretopress.policies.batch_norms import settle_statistics
from paretopress.policies.copying import sharing_copy
from paretopress.policies.folding import fold_scales, norms_around, round_scales
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)


class Plain(nn.Module):
    """A batch norm that is read twice, a layer with a bias before a batch norm, and ReLUs that are functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.depthwise1 = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.depthwise2 = nn.Conv2d(8, 8, 3, groups=8, bias=False)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        x = functional.relu(x) + self.depthwise1(x).mean((2, 3), keepdim=True)
        x = functional.relu(self.bn2(self.conv2(x)))
        return self.fc(self.depthwise2(x).mean((2, 3)))


def network(kind: str) -> nn.Module:
    torch.manual_seed(0)
    model = Plain() if kind == "plain" else SHAPED["pocket"](in_channels=1, norms=kind, blocks="8-12")
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    return torch.randn(16, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def quantized(kind: str, pictures: Tensor, activations: str = "float32") -> nn.Module:
    model = network(kind)
    graph = ModelGraph.trace(model, pictures[:1])
    steps = (Step.of("quantize", bits=4, activations=activations),)
    plan = make_plan(Policy(dict.fromkeys(graph.layers, steps)), graph)
    out = apply_plan(plan, graph, model, pictures).model
    settle_statistics(out)
    return out


def scales(model: nn.Module) -> dict[str, int]:
    return {name: forms.form_of(layer).scale.numel() for name, layer in forms.weighted_modules(model)}


def test_norms_are_found_where_nothing_else_reads_what_they_scale():
    assert norms_around(network("plain")).after == {"conv1": "bn1", "conv2": "bn2"}
    assert norms_around(network("plain")).before == {"depthwise2": "bn2"}
    before = norms_around(network("pointwise")).before
    assert before == {"blocks.0.depthwise": "stem.bn", "blocks.1.depthwise": "blocks.0.pointwise.bn"}
    each = norms_around(network("each"))
    assert each.before == {}
    assert len(each.after) == 5


@pytest.mark.parametrize(("kind", "left"), [("plain", 8 + 8 + 10), ("pointwise", 10), ("each", 10)])
def test_the_network_computes_the_same_with_whole_numbers_for_weights(kind, left, pictures):
    model = quantized(kind, pictures)
    before = copy.deepcopy(model)
    shared = sharing_copy(model)
    norms = norms_around(network(kind))
    fold_scales(model, norms)
    with torch.no_grad():
        expected = before(pictures)
        torch.testing.assert_close(model(pictures), expected, rtol=1e-4, atol=1e-5 * float(expected.std()))
        assert torch.equal(shared(pictures), expected)
    assert sum(count for count in scales(model).values() if count > 1) == left
    folded = [name for name, count in scales(model).items() if count == 1]
    for name in folded:
        weight = model.get_submodule(name).weight
        assert torch.equal(weight, weight.round())
        assert int(weight.abs().max()) <= 7
        layer = forms.stored_weight(model.get_submodule(name))
        assert (layer.decode() == weight.detach().numpy()).all()


def test_layers_with_8_bit_inputs_keep_their_scales(pictures):
    model = quantized("pointwise", pictures, "int8")
    before = scales(model)
    fold_scales(model, norms_around(network("pointwise")))
    round_scales(model, 2)
    assert scales(model) == before
    assert any(len(forms.form_of(layer).scale.unique()) > 4 for _, layer in forms.weighted_modules(model))


def test_scales_are_rounded_to_significant_bits(pictures):
    model = quantized("pointwise", pictures)
    fine = {name: forms.form_of(layer).scale.clone() for name, layer in forms.weighted_modules(model)}
    round_scales(model, 3)
    for name, layer in forms.weighted_modules(model):
        coarse = forms.form_of(layer).scale
        mantissa, _ = torch.frexp(coarse)
        assert torch.equal(mantissa * 8, (mantissa * 8).round())
        assert float((coarse / fine[name] - 1).abs().max()) <= 1 / 8
