"""What compact files leave out comes back from the network and the policy."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from paretopress.policies.architectures import DigitsCNN
from paretopress.policies.batch_norms import settle_statistics
from paretopress.policies.coding.tensors import DenseTensor, StoredTensor
from paretopress.policies.compact import brief_policy, named, numbered, read_brief
from paretopress.policies.errors import FormatError, PolicyError
from paretopress.policies.policy import Policy, Step
from torch import nn

LAYERS = ("conv1", "conv2", "fc1", "fc2")
QUANTIZED = (Step.of("quantize", bits=4),)


def stored(model: nn.Module) -> dict[str, StoredTensor]:
    state = model.state_dict()
    return {name: DenseTensor(state[name].numpy()) for name in state if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    "layers",
    [
        {},
        dict.fromkeys(LAYERS, QUANTIZED),
        {"conv2": QUANTIZED, "fc1": (Step.of("prune_magnitude", sparsity=0.5), *QUANTIZED), "fc2": QUANTIZED},
    ],
)
@pytest.mark.parametrize("shape", [{}, {"family": "pocket", "stem": 8}])
def test_a_brief_policy_is_the_same_policy(layers, shape):
    policy = Policy(layers, shape=shape)
    text = json.dumps(brief_policy(policy, LAYERS))
    assert read_brief(json.loads(text), LAYERS) == policy
    assert text.count("quantize") <= 2
    assert "conv" not in text


def test_steps_that_are_equal_but_written_otherwise_stay_apart():
    steps = {"conv1": (Step.of("prune_magnitude", sparsity=0),), "conv2": (Step.of("prune_magnitude", sparsity=0.0),)}
    policy = Policy(steps)
    assert read_brief(json.loads(json.dumps(brief_policy(policy, LAYERS))), LAYERS).digest == policy.digest


def test_a_brief_policy_of_other_layers_is_refused():
    with pytest.raises(PolicyError, match="unknown layers conv9"):
        brief_policy(Policy({"conv9": QUANTIZED}), LAYERS)
    brief = brief_policy(Policy({"conv1": QUANTIZED}), LAYERS)
    for damaged in ({**brief, "places": [0, 1]}, {**brief, "places": [0, 1, 1, 9]}, {"layers": []}):
        with pytest.raises(PolicyError, match="each of 4 layers"):
            read_brief(damaged, LAYERS)


@pytest.mark.parametrize("settled", [False, True])
def test_tensors_find_their_names_again(settled):
    model = DigitsCNN().eval()
    with torch.no_grad():
        model.bn1.running_mean.fill_(0.5)
    if settled:
        settle_statistics(model)
    tensors = stored(model)
    without = numbered(tensors, model)
    assert list(without) == [str(place) for place in range(len(without))]
    assert len(without) == len(tensors) - (4 if settled else 0)
    again = named(without, list(tensors), DigitsCNN())
    assert set(again) == set(tensors)
    assert all(np.array_equal(again[name].decode(), tensors[name].decode()) for name in tensors)


def test_tensors_with_names_stay_as_they_are():
    model = DigitsCNN()
    tensors = stored(model)
    assert named(tensors, list(tensors), model) is tensors


def test_too_few_tensors_are_told():
    model = DigitsCNN()
    tensors = stored(model)
    few = {str(place): tensor for place, tensor in enumerate(list(tensors.values())[:3])}
    with pytest.raises(FormatError, match="3 tensors without names"):
        named(few, list(tensors), model)
