"""The lowest rung: how far a stitched candidate is from the dense network on training pictures."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from paretopress.evaluators.bank import Bank
from paretopress.evaluators.data import DataSet, Pictures
from paretopress.evaluators.observe import Observations
from paretopress.evaluators.stitch import norms_after
from paretopress.evaluators.stitched import BATCH, LARGEST_KL, StitchedRung
from paretopress.policies.apply import apply_plan
from paretopress.policies.graph import ModelGraph, input_energies
from paretopress.policies.plan import Plan, make_plan
from paretopress.policies.policy import Policy, Step
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)

PICTURES = 2 * BATCH + 40


class Small(nn.Module):
    """Without batch norms, so that a plan that only quantizes changes nothing beside the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return 20 * self.fc(self.conv2(self.conv1(x).relu()).relu().flatten(1))


def part(count: int, seed: int) -> Pictures:
    rng = np.random.default_rng(seed)
    return Pictures(rng.normal(size=(count, 1, 8, 8)).astype(np.float32), rng.integers(0, 5, count))


@pytest.fixture(scope="module")
def data() -> DataSet:
    return DataSet("noise", 5, part(PICTURES, 0), part(64, 1), part(64, 2), None)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small().eval()


@pytest.fixture(scope="module")
def graph(model, data) -> ModelGraph:
    return ModelGraph.trace(model, data.preprocess(data.calibration.images[:1]))


def rung_of(
    model: nn.Module, graph: ModelGraph, data: DataSet, pictures: int = PICTURES, seed: int = 0
) -> StitchedRung:
    calibration = data.preprocess(data.calibration.images)
    energies = input_energies(model, calibration, graph.groups)
    seen = Observations.of(model, graph, calibration)
    return StitchedRung(model, Bank(model, graph, seen, energies, norms_after(model)), data, pictures, seed)


@pytest.fixture(scope="module")
def rung(model, graph, data) -> StitchedRung:
    return rung_of(model, graph, data)


def quantized(graph: ModelGraph, bits: int) -> Plan:
    return make_plan(Policy({name: (Step.of("quantize", bits=bits),) for name in graph.layers}), graph)


def logits_of(model: nn.Module, data: DataSet) -> Tensor:
    with torch.no_grad():
        return model(data.preprocess(data.train.images))


def test_the_empty_plan_is_the_dense_network(rung, model, graph, data):
    found = rung.measure(make_plan(Policy(), graph))
    wrong = logits_of(model, data).argmax(1).numpy() != data.train.labels
    assert found["kl"] == 0
    assert found["calibration_error_pct"] == pytest.approx(100 * wrong.mean())
    assert found["pictures"] == PICTURES


def test_the_divergence_rises_with_harsher_plans(rung, graph):
    found = [rung.measure(quantized(graph, bits)) for bits in (8, 6, 4, 3, 2)]
    divergence = [metrics["kl"] for metrics in found]
    assert divergence == sorted(divergence)
    assert 0 < divergence[0] < 0.1 * divergence[-1]
    sizes = [metrics["estimated_stored_bytes"] for metrics in found]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("bits", [8, 3])
def test_figures_are_those_of_the_network_that_the_plan_makes(rung, model, graph, data, bits):
    plan = quantized(graph, bits)
    compressed = apply_plan(plan, graph, model, data.preprocess(data.calibration.images))
    dense, logits = logits_of(model, data).log_softmax(1), logits_of(compressed.model, data)
    found = rung.measure(plan)
    direct = functional.kl_div(logits.log_softmax(1), dense, log_target=True, reduction="batchmean")
    assert found["kl"] == pytest.approx(float(direct), rel=1e-4)
    wrong = (logits.argmax(1).numpy() != data.train.labels).mean()
    assert found["calibration_error_pct"] == pytest.approx(100 * wrong)


def test_a_hopeless_plan_is_given_up_after_the_first_batch(rung, graph):
    plan = quantized(graph, 2)
    whole = rung.measure(plan)
    stopped = rung.measure(plan, hopeless_kl=whole["kl"] / 4)
    assert stopped["pictures"] == BATCH
    assert stopped["kl"] > whole["kl"] / 4
    assert stopped["estimated_stored_bytes"] == whole["estimated_stored_bytes"]
    assert rung.measure(plan, hopeless_kl=4 * whole["kl"]) == whole


def test_giving_up_goes_by_the_mean_of_all_pictures_so_far(rung, graph):
    plan = quantized(graph, 2)
    means = [rung.measure(plan, hopeless_kl=0.0)["kl"], rung.measure(plan)["kl"]]
    limit = 1.0001 * max(means)
    found = rung.measure(plan, hopeless_kl=limit)
    assert found["pictures"] == PICTURES or found["kl"] > limit


def test_figures_do_not_depend_on_what_was_measured_before(rung, model, graph, data):
    plans = [quantized(graph, bits) for bits in (4, 2, 8)]
    plans.append(make_plan(Policy({"conv1": (Step.of("prune_channels", sparsity=0.5, multiple=4),)}), graph))
    found = [rung.measure(plan) for plan in plans]
    rung.measure(plans[1], hopeless_kl=0.0)
    assert [rung.measure(plan) for plan in reversed(plans)] == found[::-1]
    fresh = rung_of(copy.deepcopy(model), graph, data)
    assert [fresh.measure(plan) for plan in plans] == found


def test_figures_are_the_same_after_what_was_kept_is_forgotten(rung, graph):
    plans = [quantized(graph, bits) for bits in (4, 2, 8)]
    found = [rung.measure(plan) for plan in plans]
    for plan, figures in zip(plans, found):
        rung.forget()
        assert rung.measure(plan) == figures
    assert [rung.measure(plan) for plan in plans] == found


def test_the_seed_chooses_the_pictures(model, graph, data):
    plan = quantized(graph, 3)
    one, same, other = (rung_of(model, graph, data, 50, seed).measure(plan) for seed in (0, 0, 1))
    assert one == same
    assert one["pictures"] == 50
    assert one["kl"] != other["kl"]


def test_a_candidate_that_overflows_is_far_off_and_not_an_error(rung, graph):
    stitch = rung.bank.stitch(quantized(graph, 8))
    broken = copy.deepcopy(stitch.modules["fc"])
    with torch.no_grad():
        broken.weight[0] = torch.nan
    found = rung.measure_stitch(replace(stitch, modules={**stitch.modules, "fc": broken}))
    assert found["kl"] == LARGEST_KL
