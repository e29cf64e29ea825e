"""Prune, share, code as one policy (1510.00149), from the policy to the file and back."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from paretopress.policies.apply import apply_plan, restore
from paretopress.policies.coding.press import breakdown, decode, encode
from paretopress.policies.coding.tensors import CodebookTensor
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy
from torch import nn

torch.set_num_threads(1)

PRUNE, SHARE = {"prune_magnitude": {"sparsity": 0.85}}, {"share": {"clusters": 16}}
LAYERS = ("0", "3")


@pytest.fixture(scope="module")
def dense():
    with torch.random.fork_rng():
        torch.manual_seed(6)
        model = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 36, 20)).eval()
        pictures = torch.randn(32, 3, 8, 8)
    return model, ModelGraph.trace(copy.deepcopy(model), pictures[:1]), pictures


def compressed(dense, *steps):
    model, graph, pictures = dense
    policy = Policy.from_dict({"version": 1, "layers": {name: list(steps) for name in LAYERS}})
    return apply_plan(make_plan(policy, graph), graph, model, pictures)


@pytest.mark.parametrize("coder", ["ans", "huffman"])
def test_the_whole_path_is_exact(dense, coder):
    model, graph, pictures = dense
    found = compressed(dense, PRUNE, SHARE)
    data = encode(found.stored(), {"policy": found.plan.policy.as_dict()}, coder=coder)
    again = decode(data)
    assert Policy.from_dict(again.metadata["policy"]) == found.plan.policy
    rebuilt = restore(make_plan(Policy.from_dict(again.metadata["policy"]), graph), graph, model, again.tensors)
    with torch.no_grad():
        assert torch.equal(rebuilt(pictures), found.plain()(pictures))
    for name in LAYERS:
        tensor = again.tensors[f"{name}.weight"]
        assert isinstance(tensor, CodebookTensor)
        assert tensor.decode().tobytes() == found.model.get_submodule(name).weight.detach().numpy().tobytes()
        assert abs(1 - np.count_nonzero(tensor.decode()) / (0.15 * tensor.mask.size)) < 0.02
        assert len(tensor.codebook) == 16


@pytest.mark.parametrize("coder", ["ans", "huffman"])
def test_both_together_are_smaller_than_either_alone_and_every_part_is_counted(dense, coder):
    sizes = [
        len(encode(compressed(dense, *steps).stored(), {}, coder=coder)) for steps in ([PRUNE, SHARE], [PRUNE], [SHARE])
    ]
    assert sizes[0] < 0.5 * min(sizes[1:])
    data = encode(compressed(dense, PRUNE, SHARE).stored(), {}, coder=coder)
    parts = breakdown(data)
    assert sum(parts.values()) == len(data)
    assert min(parts.values()) > 0


def test_huffman_codes_take_more_bytes_than_ans(dense):
    stored = compressed(dense, PRUNE, SHARE).stored()
    assert len(encode(stored, {})) < len(encode(stored, {}, coder="huffman"))
