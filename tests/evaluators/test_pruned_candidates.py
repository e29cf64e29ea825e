"""Candidates whose weights go while they train, with penalties and dead channels: what ships is what was measured."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.data import DataSet, Pictures
from paretopress.evaluators.training.loop import Recipe
from paretopress.evaluators.training.penalties import make_penalty
from paretopress.evaluators.workbench import Settings, Workbench
from paretopress.policies.apply import restore
from paretopress.policies.architectures import LeNet300100
from paretopress.policies.coding.press import decode
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.forms import weighted_modules
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step

torch.set_num_threads(1)

RECIPE = Recipe(epochs=8, batch_size=16, optimizer="adamw", lr=0.01, penalties=(make_penalty("neurons_in", 1e-3),))
DEAD = Step.of("drop_dead")


def bench_of(schedule: str) -> Workbench:
    random = np.random.default_rng(0)
    labels = np.arange(64) % 10
    images = random.normal(size=(64, 1, 28, 28)).astype(np.float32)
    images[np.arange(64), 0, labels, labels] += 9
    pictures = Pictures(images, labels)
    data = DataSet("noise", 10, pictures, pictures, pictures, None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LeNet300100().eval()
    example = data.preprocess(images[:1])
    settings = Settings(screen_seconds=0.02, recovery=RECIPE, prune_share=0.5, prune_schedule=schedule)
    reference = export_onnx(model, example, calibration=None)
    return Workbench(model, ModelGraph.trace(model, example), data, reference, settings)


@pytest.mark.parametrize("schedule", ["gradual", "iterative", "surgery"])
def test_a_recovered_candidate_loses_its_dead_neurons_and_its_file_gives_the_same_network(schedule):
    bench = bench_of(schedule)
    prune = Step.of("prune_magnitude", sparsity=0.995)
    policy = Policy({"fc1": (prune, DEAD), "fc2": (Step.of("prune_magnitude", sparsity=0.98), DEAD)})
    before = copy.deepcopy(bench.model.state_dict())
    found = CandidateEvaluator(bench).recover(policy, 0)
    assert found["metrics"]["recovered"] == 1
    assert found["metrics"]["macs"] < 0.9 * 266_200
    press = decode(found["artefacts"]["model.press"])
    model = restore(make_plan(policy, bench.graph), bench.graph, LeNet300100(), press.tensors)
    assert len(model.fc1.weight) < 300
    assert sum(layer.weight.numel() for _, layer in weighted_modules(model)) == found["metrics"]["macs"]
    assert all(torch.equal(value, before[name]) for name, value in bench.model.state_dict().items())
