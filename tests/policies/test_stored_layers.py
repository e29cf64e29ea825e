from __future__ import annotations

import copy

import pytest
import torch
from paretopress.policies import forms
from paretopress.policies.coding.press import encode
from paretopress.policies.errors import FormatError
from paretopress.policies.policy import Step
from paretopress.policies.stored_layers import read_layer, write_layer
from paretopress.policies.techniques import Technique, build
from torch import nn

STEPS = {
    "dense": (),
    "pruned": (Step.of("prune_magnitude", sparsity=0.7),),
    "shared": (Step.of("share", clusters=5),),
    "pruned and shared": (Step.of("prune_magnitude", sparsity=0.7), Step.of("share", clusters=5)),
    "four bits": (Step.of("quantize", bits=4),),
    "pruned, three bits": (Step.of("prune_magnitude", sparsity=0.5), Step.of("quantize", bits=3)),
    "circulant": (Step.of("circulant", block=3, seed=5),),
    "Fastfood": (Step.of("fastfood"),),
    "in groups": (Step.of("prune_nm"),),
    "factors, four bits": (Step.of("svd", rank=3), Step.of("quantize", bits=4)),
}


def compressed(name: str) -> nn.Module:
    torch.manual_seed(0)
    module: nn.Module = nn.Linear(12, 9)
    for step in STEPS[name]:
        technique = build(step)
        assert isinstance(technique, Technique)
        module = technique.apply(module, None)
    return module


def blank(name: str) -> nn.Module:
    """The same shapes, other values, no forms."""
    module = forms.plain(copy.deepcopy(compressed(name)))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    return module


@pytest.mark.parametrize("name", STEPS)
def test_a_layer_comes_back_bit_for_bit_and_is_stored_alike(name: str) -> None:
    original, again = compressed(name), blank(name)
    data = write_layer(original)
    read_layer(data, again, pruned="pruned" in name)
    x = torch.randn(4, 12)
    assert torch.equal(original(x), again(x))
    assert write_layer(again) == data


@pytest.mark.parametrize("name", ["pruned", "pruned and shared", "pruned, three bits"])
def test_what_was_pruned_stays_zero_in_training(name: str) -> None:
    layer = blank(name)
    read_layer(write_layer(compressed(name)), layer, pruned=True)
    assert isinstance(layer, nn.Linear)
    zero = layer.weight.detach() == 0
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(8, 12)).square().sum().backward()
        optimizer.step()
    assert zero.any() and (layer.weight.detach()[zero] == 0).all()


def test_a_file_of_another_layer_is_refused() -> None:
    with pytest.raises(FormatError, match=r"expected a weight of shape \(9, 12\) for '', the file has \(4, 4\)"):
        read_layer(write_layer(nn.Linear(4, 4)), blank("dense"), pruned=False)
    with pytest.raises(FormatError, match="the file has None"):
        read_layer(encode({}, {}), blank("dense"), pruned=False)
