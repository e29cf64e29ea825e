"""Networks from compact files that say which network they are of."""

from __future__ import annotations

import json
from pathlib import Path

import paretopress as pp
import pytest
import torch
from paretopress.policies.apply import apply_plan, round_vectors
from paretopress.policies.architectures.shapes import network_of
from paretopress.policies.batch_norms import settle_statistics
from paretopress.policies.coding.press import encode
from paretopress.policies.compact import brief_policy, numbered
from paretopress.policies.errors import FormatError
from paretopress.policies.graph import ModelGraph
from paretopress.policies.loading import described
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from torch import nn

torch.set_num_threads(1)
SHAPE = {"family": "pocket", "side": 28, "stem": 4, "blocks": "8-8"}


def written(path: Path, searched: bool, says: object = None) -> nn.Module:
    """A compressed network, and its compact file; the file's network by the policy's shape or by its own."""
    torch.manual_seed(0)
    dense = network_of(SHAPE, 10, 1).eval()
    pictures = torch.randn(16, 1, 28, 28)
    graph = ModelGraph.trace(dense, pictures[:1], of_shape=SHAPE if searched else None)
    policy = Policy({name: (Step.of("quantize", bits=4),) for name in graph.layers}, shape=SHAPE if searched else {})
    compressed = apply_plan(make_plan(policy, graph), graph, dense, pictures)
    settle_statistics(compressed.model)
    round_vectors(compressed.model, 5)
    metadata = {
        "policy": brief_policy(compressed.plan.policy, list(graph.layers)),
        "network": says or described(SHAPE, 10, 1),
    }
    path.write_bytes(encode(numbered(compressed.stored(), compressed.model), metadata, compact=True))
    return compressed.plain()


@pytest.mark.parametrize("searched", [False, True])
def test_the_file_alone_gives_the_network(tmp_path, searched):
    expected, x = written(tmp_path / "a.press", searched), torch.randn(8, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(pp.load(tmp_path / "a.press")(x), expected(x), rtol=1e-4, atol=1e-4)


def test_what_the_file_says_of_its_network_takes_few_bytes():
    assert len(json.dumps(described(SHAPE, 10, 1), separators=(",", ":"))) < 60


@pytest.mark.parametrize(
    "says",
    [[{"family": "pockets"}, 10, 1], [{"family": "pocket", "blocks": "9-9"}, 10, 1], [{"family": "pocket"}, 10], 7],
    ids=str,
)
def test_a_file_of_another_network_is_refused(tmp_path, says):
    written(tmp_path / "a.press", False, says)
    with pytest.raises(FormatError, match=r"is no compact file of a family's network|do not fit|tensors"):
        pp.load(tmp_path / "a.press")


def test_a_file_that_does_not_say_which_network_it_is_of_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "a.press").write_bytes(encode({}, {"policy": {}}))
    with pytest.raises(FormatError, match=r"does not say of which network it is.*open_front"):
        pp.load(tmp_path / "a.press")
    with pytest.raises(FormatError, match="cannot read"):
        pp.load(tmp_path / "none.press")
