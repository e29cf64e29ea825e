"""Which controls apply, how long they train, and what they begin with."""

from __future__ import annotations

import pytest
import torch
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.controls import ControlEvaluator, applicable, epochs_of
from paretopress.evaluators.data import DataSet, SplitSizes
from paretopress.evaluators.models import build_model
from paretopress.evaluators.sources import load_data
from paretopress.evaluators.training.loop import Recipe, train
from paretopress.evaluators.untrained import Untrained, redrawn
from paretopress.evaluators.workbench import Settings, Workbench
from paretopress.policies.coding.press import decode
from paretopress.policies.errors import CandidateError
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from torch import nn

torch.set_num_threads(1)

PRUNED = Step.of("prune_magnitude", sparsity=0.5)
CUT = Step.of("prune_channels", sparsity=0.5, multiple=8)
LOTTERY = ("rewind", "random", "signs", "supermask")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy({"a": (Step.of("quantize", bits=8),)}), ()),
        (Policy({"a": (PRUNED,)}), LOTTERY),
        (Policy({"a": (CUT,)}), ("scratch_e", "scratch_b")),
        (Policy({"a": (CUT, PRUNED)}), ("scratch_e", "scratch_b", *LOTTERY)),
        (Policy({"a": (Step.of("drop_branch"),)}), ("scratch_e", "scratch_b")),
        (Policy(shape={"family": "mobilenet_v1"}), ("scratch_e", "scratch_b")),
        (Policy({"a": (PRUNED, Step.of("drop_dead"))}), ("scratch_e", "scratch_b")),
        (
            Policy({"a": (PRUNED,), "b": (Step.of("merge_neurons", sparsity=0.5),)}),
            ("scratch_e", "scratch_b", "random"),
        ),
    ],
)
def test_controls_apply_by_what_a_policy_does(policy: Policy, expected: tuple[str, ...]) -> None:
    assert applicable(policy) == expected


def test_scratch_b_trains_for_the_dense_networks_computation() -> None:
    assert epochs_of("scratch_e", 160, 1000, 250) == 160
    assert epochs_of("scratch_b", 160, 1000, 250) == 640
    assert epochs_of("scratch_b", 3, 1000, 900) == 3
    assert epochs_of("scratch_b", 1, 100, 900) == 1
    assert epochs_of("rewind", 160, 1000, 250) == 160 and epochs_of("supermask", 160, 1000, 250) == 0


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return load_data("digits", sizes=SplitSizes(0.1, 64, 0.2), seed=0)


RECIPE = Recipe(epochs=2, batch_size=64, lr=0.05)


@pytest.fixture(scope="module")
def bench(digits: DataSet) -> Workbench:
    """A small network and how it began."""
    model = build_model("family:digits_cnn", num_classes=10, in_channels=1, seed=7)
    train(model, digits, RECIPE, seed=7)
    example = digits.preprocess(digits.calibration.images[:1])
    graph, reference = ModelGraph.trace(model, example), export_onnx(model, example, calibration=None)
    untrained = Untrained(RECIPE, "family:digits_cnn", 10, 1, {}, 7)
    return Workbench(model, graph, digits.without_test(), reference, Settings(), untrained=untrained)


def layers_of(bench: Workbench) -> list[str]:
    return list(bench.graph.layers)


def begun(bench: Workbench, control: str, *steps: Step, seed: int = 1) -> tuple[dict[str, torch.Tensor], Policy]:
    """A control as its training begins: its stored tensors, where no epoch follows; and the policy."""
    evaluator = CandidateEvaluator(bench)
    policy = make_plan(Policy({layers_of(bench)[1]: steps}), bench.graph).policy
    assert bench.untrained is not None
    member = evaluator.recover(policy, 0)["artefacts"]["model.press"]
    result = ControlEvaluator(evaluator, bench.untrained)(control, policy, member, 0, seed)  # type: ignore[arg-type]
    tensors = decode(result["artefacts"][f"{control}.press"]).tensors
    return {name: torch.from_numpy(tensor.decode().copy()) for name, tensor in tensors.items()}, policy


def test_a_rewound_ticket_has_the_initial_weights_where_the_member_has_any(bench: Workbench) -> None:
    layer = layers_of(bench)[1]
    found, _ = begun(bench, "rewind", PRUNED)
    initial = build_model("family:digits_cnn", num_classes=10, in_channels=1, seed=7).get_submodule(layer)
    weight, kept = found[f"{layer}.weight"], found[f"{layer}.weight"] != 0
    assert kept.float().mean() == pytest.approx(0.5, abs=0.01)
    assert torch.equal(weight[kept], initial.get_parameter("weight").detach()[kept])
    trained = bench.model.get_submodule(layer).get_parameter("weight").detach().abs()
    assert trained[kept].min() >= trained[~kept].max(), "the mask is that of the trained weights"


def test_channels_that_a_rewound_ticket_keeps_are_the_members(bench: Workbench) -> None:
    layer = layers_of(bench)[1]
    found, policy = begun(bench, "rewind", CUT, PRUNED)
    initial = build_model("family:digits_cnn", num_classes=10, in_channels=1, seed=7).get_submodule(layer)
    rows = initial.get_parameter("weight").detach()
    evaluator = CandidateEvaluator(bench)
    member = decode(evaluator.recover(policy, 0)["artefacts"]["model.press"]).tensors[f"{layer}.weight"].decode()
    dense = bench.model.get_submodule(layer).get_parameter("weight").detach()
    for own, rewound in zip(torch.from_numpy(member.copy()), found[f"{layer}.weight"]):
        (channel,) = [c for c, row in enumerate(dense) if torch.equal(row[own != 0], own[own != 0])]
        assert torch.equal(rewound[own != 0], rows[channel][own != 0])


def test_a_network_from_scratch_follows_from_its_seed_and_owes_nothing_to_the_trained_one(bench: Workbench) -> None:
    layer = layers_of(bench)[1]
    one, again, other = (begun(bench, "scratch_e", CUT, seed=seed)[0][f"{layer}.weight"] for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    dense = bench.model.get_submodule(layer).get_parameter("weight")
    assert one.shape[0] < dense.shape[0]
    assert torch.isin(one, dense).float().mean() < 0.01, "no more than chance has it"


def test_weights_that_lost_inputs_are_drawn_for_those_left(bench: Workbench) -> None:
    reader = layers_of(bench)[2]
    found, _ = begun(bench, "scratch_e", CUT)
    drawn = build_model("family:digits_cnn", num_classes=10, in_channels=1, seed=1).get_submodule(reader)
    dense = drawn.get_parameter("weight").detach()
    weight = found[f"{reader}.weight"]
    share = weight[0].numel() / dense[0].numel()
    assert share == 0.5 and weight.var() * share == pytest.approx(float(dense.var()), rel=0.15)


def test_a_network_that_was_handed_over_draws_its_weights_anew() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    drawn = Untrained(RECIPE, None, 2, 1).drawn(3, model, {})
    again = Untrained(RECIPE, None, 2, 1).drawn(3, model, {})
    assert torch.equal(drawn[0].weight, again[0].weight) and not torch.equal(drawn[0].weight, model[0].weight)  # type: ignore[index]


def test_a_module_that_cannot_draw_its_weights_anew_is_named() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

    with pytest.raises(CandidateError, match=r"module '1' \(Scaled\) has weights but no reset_parameters"):
        redrawn(nn.Sequential(nn.Linear(2, 2), Scaled()))
