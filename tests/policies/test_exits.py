"""Networks with early exits, and their one file that leaves its graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from paretopress.evaluators.exits import ALWAYS, NEVER, Exits, cost_before, macs_by_exit, run_exits
from paretopress.evaluators.macs import profile
from paretopress.evaluators.runtime import session
from paretopress.evaluators.training.early_exits import exits_loss
from paretopress.policies.architectures import FAMILIES
from paretopress.policies.errors import ModelError, PolicyError
from paretopress.policies.exits import EveryExit, ExitNetwork, candidates_for_exits, places_for_exits
from paretopress.policies.export.early_exit import with_exits
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.policy import Policy
from torch.nn import functional

torch.set_num_threads(1)
EXAMPLE = torch.zeros(1, 3, 32, 32)
AFTER = ("layer1", "layer2")


@pytest.fixture(scope="module", params=[0, 12], ids=["linear", "convolution"])
def network(request) -> ExitNetwork:
    torch.manual_seed(0)
    return ExitNetwork(FAMILIES["resnet20"](num_classes=10), AFTER, EXAMPLE, request.param).eval()


@pytest.fixture(scope="module")
def file(network: ExitNetwork) -> bytes:
    return export_onnx(EveryExit(network), EXAMPLE, calibration=None)


@pytest.mark.parametrize("thresholds", [(ALWAYS, ALWAYS), (NEVER, ALWAYS), (NEVER, NEVER)])
def test_the_file_gives_the_logits_of_the_exit_that_is_taken(network, file, thresholds) -> None:
    x = torch.randn(3, 3, 32, 32)
    logits, taken = run_exits(session(with_exits(file, thresholds)), x.numpy())
    expected = thresholds.index(ALWAYS) if ALWAYS in thresholds else 2
    assert taken.tolist() == [expected] * 3
    with torch.no_grad():
        np.testing.assert_allclose(logits, network.exits(x)[expected].numpy(), rtol=1e-3, atol=1e-4)


def test_each_picture_leaves_where_it_is_sure_enough(network, file) -> None:
    x = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        logits = torch.stack(network.exits(x)).numpy()
    exits = Exits(logits, np.zeros(16, np.int64), np.array([1.0, 2.0, 4.0]), np.array([0.25, 0.5, 1.0]))
    thresholds = tuple(float(np.median(one)) + 1e-6 for one in exits.certainty)
    _, taken = run_exits(session(with_exits(file, thresholds)), x.numpy())
    average = exits.at(thresholds)
    assert average.shares == tuple((np.bincount(taken, minlength=3) / 16).tolist())
    assert len(set(taken.tolist())) > 1
    assert average.macs == pytest.approx(float(np.dot(average.shares, [1, 2, 4])))
    assert average.latency_ratio == pytest.approx(float(np.dot(average.shares, [0.25, 0.5, 1.0])))


def test_thresholds_can_be_moved_without_another_file(file) -> None:
    running, x = session(with_exits(file, (NEVER, NEVER))), np.zeros((1, 3, 32, 32), np.float32)
    assert running.run(["exit"], {"input": x})[0].tolist() == [2]
    assert running.run(["exit"], {"input": x, "threshold_0": np.zeros(1, np.float32)})[0].tolist() == [0]


def test_what_follows_an_exit_stands_in_its_branch_alone(file, network) -> None:
    own = hasattr(network.heads[0], "conv")
    graph = onnx.load_from_string(with_exits(file, (0.5, 0.5))).graph
    convolutions = [node.op_type for node in graph.node].count("Conv")
    (branch,) = (node for node in graph.node if node.op_type == "If")
    inner = next(a.g for a in branch.attribute if a.name == "else_branch")
    assert convolutions == 7 + own
    assert [node.op_type for node in inner.node].count("Conv") == 7 + own
    assert sum(len(value.raw_data) for value in graph.initializer) < sum(len(v.raw_data) for v in inner.initializer)


def test_as_many_thresholds_as_exits_are_asked_for(file) -> None:
    with pytest.raises(ModelError, match="expected 2 thresholds"):
        with_exits(file, (0.5,))


def test_a_picture_that_leaves_early_takes_what_lies_before_it(network) -> None:
    whole = profile(network.backbone, EXAMPLE).macs
    first, second, last = macs_by_exit(network, EXAMPLE)
    before = cost_before(network.backbone, EXAMPLE)
    heads = 16 * 16 * 10, 32 * 16 * 10
    if hasattr(network.heads[0], "conv"):
        heads = 16 * 12 * 9 * 16**2 + 12 * 16 * 10, 32 * 12 * 9 * 8**2 + 12 * 16 * 10
    assert first == before["layer1"] + heads[0]
    assert second == before["layer2"] + sum(heads)
    assert last == whole + sum(heads)


def test_exits_are_placed_at_equal_shares_of_the_cost(network) -> None:
    costs = cost_before(network.backbone, EXAMPLE)
    assert places_for_exits(costs, 2) == ["layer1", "layer2"]
    assert places_for_exits({"conv": 10.0, "norm": 10.0, "end": 20.0}, 1) == ["norm"]
    assert places_for_exits({"end": 20.0}, 2) == []


def test_a_frozen_backbone_neither_learns_nor_moves(network) -> None:
    torch.manual_seed(1)
    own = ExitNetwork(network.backbone, AFTER, EXAMPLE).tuned(False)
    before = {name: value.clone() for name, value in own.backbone.state_dict().items()}
    x, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    loss = exits_loss(own)(x, own.train()(x), labels)
    loss.backward()
    assert all(parameter.grad is None for parameter in own.backbone.parameters())
    assert all(parameter.grad is not None for parameter in own.heads.parameters())
    assert all(torch.equal(before[name], value) for name, value in own.backbone.state_dict().items())


def test_the_loss_is_half_labels_and_half_the_last_exit(network) -> None:
    own = ExitNetwork(network.backbone, AFTER, EXAMPLE).tuned(True)
    x, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    logits = own.train()(x)
    *early, last = own.latest
    expected = functional.cross_entropy(last, labels)
    for outputs in early:
        hard, soft = functional.cross_entropy(outputs, labels), functional.cross_entropy(outputs, last.softmax(1))
        expected = expected + 0.5 * hard + 0.5 * soft
    assert exits_loss(own)(x, logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (("layer9",), "expected modules that are called once"),
        ((), "got none"),
        (("layer2", "layer1"), "expected the order of the forward pass, layer1, layer2"),
    ],
)
def test_exits_that_cannot_be_are_refused(network, after, expected) -> None:
    with pytest.raises(ModelError, match=expected):
        ExitNetwork(network.backbone, after, EXAMPLE)


def test_features_of_linear_networks_have_exits_too() -> None:
    model = FAMILIES["lenet300100"](num_classes=10).eval()
    names = candidates_for_exits(model, torch.zeros(1, 1, 28, 28))
    network = ExitNetwork(model, [names[1]], torch.zeros(1, 1, 28, 28)).eval()
    first, last = network.exits(torch.zeros(2, 1, 28, 28))
    assert first.shape == last.shape == (2, 10)


def test_a_policys_exits_are_read_as_they_are_written() -> None:
    policy = Policy(exits={"layer1": 0.9, "layer2": 0.75})
    assert Policy.from_text(policy.to_yaml()) == policy == Policy.from_text(policy.to_json())
    assert "exits" not in Policy().as_dict()
    with pytest.raises(PolicyError, match="'exits' maps module names to certainties"):
        Policy.from_dict({"layers": {}, "exits": {"layer1": "soon"}})
