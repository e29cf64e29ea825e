"""Dropped branches in the bank: stitched, put together, and measured on every rung."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from paretopress.evaluators.bank import Bank
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.data import DataSet, Pictures, Preprocess
from paretopress.evaluators.kernels import kernel_policy
from paretopress.evaluators.observe import Observations
from paretopress.evaluators.stitch import StitchedNetwork, norms_after
from paretopress.evaluators.training.loop import Recipe
from paretopress.evaluators.workbench import Settings, Workbench
from paretopress.policies.apply import apply_plan
from paretopress.policies.architectures import ResNet20
from paretopress.policies.batch_norms import reestimate_statistics
from paretopress.policies.copying import with_modules
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.graph import ModelGraph, input_energies
from paretopress.policies.plan import Plan, make_plan
from paretopress.policies.policy import Policy, Step
from torch import Tensor, nn

torch.set_num_threads(1)

DROP, SHARE, W4 = Step.of("drop_branch"), Step.of("share", clusters=4), Step.of("quantize", bits=4)
HALF, W8A8 = Step.of("prune_channels", sparsity=0.5, multiple=2), Step.of("quantize", bits=8, activations="int8")


class NormFree(nn.Module):
    """Three residual blocks without batch norms, so that no statistics are estimated anew."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for block in self.blocks:
            shortcut = x
            x = block(x)
            x += shortcut
            x = x.relu()
        return self.fc(x.mean((2, 3)))


PICTURES = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(3))


def network(make) -> tuple[nn.Module, ModelGraph]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
    reestimate_statistics(model, PICTURES)
    return model, ModelGraph.trace(model, PICTURES[:1])


def bank_of(model: nn.Module, graph: ModelGraph) -> Bank:
    energies = input_energies(model, PICTURES, graph.groups)
    return Bank(model, graph, Observations.of(model, graph, PICTURES), energies, norms_after(model))


def plan_of(graph: ModelGraph, layers: dict[str, list[Step]]) -> Plan:
    return make_plan(Policy({name: tuple(steps) for name, steps in layers.items()}), graph)


POLICIES = {
    "one": {"blocks.1.0": [DROP]},
    "all": {f"blocks.{i}.0": [DROP] for i in range(3)},
    "with channels": {"blocks.1.0": [DROP, SHARE], "stem": [HALF], "blocks.1.2": [W4], "blocks.2.2": [W4]},
}


@pytest.mark.parametrize("name", POLICIES)
def test_stitched_and_put_together_they_compute_the_same(name):
    model, graph = network(NormFree)
    bank, plan = bank_of(model, graph), plan_of(graph, POLICIES[name])
    stitched = StitchedNetwork(model, PICTURES.split(16))
    assert stitched.followed
    before = torch.cat(stitched.run({}))
    with torch.no_grad():
        expected = bank.assemble(plan, PICTURES).model(PICTURES)
    assert torch.allclose(torch.cat(stitched.run(bank.stitch(plan).modules)), expected, atol=1e-6)
    assert torch.equal(torch.cat(stitched.run({})), before)
    assert not torch.allclose(before, expected, atol=1e-3)


def test_without_other_steps_the_bank_makes_what_the_plan_makes():
    model, graph = network(lambda: ResNet20(width=8))
    reestimate_statistics(model, PICTURES)
    bank = bank_of(model, graph)
    plan = plan_of(graph, {"layer1.1.conv1": [DROP], "layer3.2.conv1": [DROP]})
    stitch = bank.stitch(plan)
    with torch.no_grad():
        ours, theirs = (
            m.model(PICTURES) for m in (bank.assemble(plan, PICTURES), apply_plan(plan, graph, model, PICTURES))
        )
        swapped = with_modules(model, stitch.modules)(PICTURES)
    assert torch.equal(ours, theirs)
    stitched = StitchedNetwork(model, [PICTURES]).run(stitch.modules)[0]
    assert torch.allclose(stitched, ours, atol=0.05), "its batch norms follow as if estimated anew"
    assert not torch.allclose(swapped, ours, atol=0.05)


def test_a_dropped_branch_takes_no_bytes_and_the_others_take_theirs():
    model, graph = network(lambda: ResNet20(width=8))
    bank = bank_of(model, graph)
    dense = bank.stitch(plan_of(graph, {})).stored_bytes
    one, other = ({root: [DROP]} for root in ("layer1.1.conv1", "layer3.2.conv1"))
    saved = [dense - bank.stitch(plan_of(graph, drop)).stored_bytes for drop in (one, other)]
    weights = [2 * 4 * 8 * 8 * 9, 2 * 4 * 32 * 32 * 9]
    assert all(0.8 * size < spared < 1.2 * size for spared, size in zip(saved, weights))
    both = bank.stitch(plan_of(graph, one | other))
    assert dense - both.stored_bytes == sum(saved)
    assert bank.stitch(plan_of(graph, one)).modules.items() <= both.modules.items(), "stand-ins are made once"
    assert not both.variants


def test_the_step_decides_which_kernels_run():
    policy = Policy({"layer1.1.conv1": (DROP,), "conv1": (SHARE,)})
    assert kernel_policy(policy) == Policy({"layer1.1.conv1": (DROP,)})


@pytest.fixture(scope="module")
def evaluator() -> CandidateEvaluator:
    model, graph = network(lambda: ResNet20(width=8, num_classes=4))
    rng = np.random.default_rng(0)

    def part(count: int) -> Pictures:
        return Pictures(rng.integers(0, 256, (count, 3, 16, 16), np.uint8), rng.integers(0, 4, count))

    data = DataSet("noise", 4, part(96), part(32), part(64), None, Preprocess((0.5,) * 3, (0.5,) * 3))
    settings = Settings(stitch_pictures=64, screen_pictures=64, screen_seconds=0.1, recovery=Recipe(epochs=1))
    reference = export_onnx(model, PICTURES[:1], calibration=None)
    return CandidateEvaluator(Workbench(model, graph, data, reference, settings))


def test_every_rung_takes_a_dropped_block(evaluator):
    drop = Policy({"layer1.1.conv1": (DROP,), "conv1": (W8A8,), "layer1.2.conv1": (W8A8,)})
    kept = Policy({"conv1": (W8A8,), "layer1.2.conv1": (W8A8,)})
    assert evaluator.stitch(drop, math.inf)["metrics"]["kl"] > 0
    screened, dense = evaluator.screen(drop)["metrics"], evaluator.screen(kept)["metrics"]
    assert screened["macs"] == dense["macs"] - 2 * 8 * 8 * 9 * 16 * 16
    assert screened["stored_bytes"] < dense["stored_bytes"]
    assert screened["onnx_bytes"] < dense["onnx_bytes"]
    assert screened["unknown_operations"] == 0
    assert evaluator.recover(drop, 0)["metrics"]["error_pct"] <= 100


def test_the_profile_of_a_dropped_block_says_that_all_of_its_output_is_lost(evaluator):
    drop = Policy({"layer1.1.conv1": (DROP,)})
    found = evaluator.profile(drop, Policy({"layer1.1.conv2": (W4,)}))["metrics"]
    assert found["relative_error"] == 1
    assert found["layer_bytes"] == 0
    assert "weighted_error" not in found
    assert found["estimated_stored_bytes"] < evaluator.profile(Policy(), Policy())["metrics"]["estimated_stored_bytes"]
