"""A recovery that was killed goes on where it was and ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.controls import control
from paretopress.evaluators.data import SplitSizes
from paretopress.evaluators.learning import learn_architecture
from paretopress.evaluators.models import build_model
from paretopress.evaluators.pool import Job
from paretopress.evaluators.sources import load_data
from paretopress.evaluators.stopwatch import Stopwatch
from paretopress.evaluators.training.checkpoints import UNKEPT, Checkpoints, OnEpoch
from paretopress.evaluators.training.learned import Learning
from paretopress.evaluators.training.loop import Recipe, train
from paretopress.evaluators.training.penalties.architecture import Architecture
from paretopress.evaluators.training.task import TrainingTask
from paretopress.evaluators.untrained import Untrained
from paretopress.evaluators.workbench import Workbench
from paretopress.evaluators.worker import CandidateFactory
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.tests.evaluators.digits_bench import MIXED, make_bench, untimed
from ray import cloudpickle

torch.set_num_threads(1)

POLICIES = {
    "pruned step by step": MIXED,
    "trained at once": Policy({"conv2": (Step.of("quantize", bits=4),), "fc1": (Step.of("share", clusters=16),)}),
    "binary weights": Policy({"conv2": (Step.of("binarize"),), "fc1": (Step.of("svd", rank=12),)}),
    "soft sharing": Policy({"conv2": (Step.of("share_soft", clusters=7, zero=0.5, strength=1e-4),)}),
}


class StoppedError(Exception):
    """Stands for a process that ends in the middle of a recovery."""


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return make_bench()


def stopped_after(folder: Path, epochs: int) -> Checkpoints:
    def heard(epoch: int, _: Mapping[str, float]) -> None:
        if epoch == epochs:
            raise StoppedError

    return Checkpoints(folder, heard)


@pytest.mark.parametrize("epochs", [1, 3], ids=["from scratch", "in fine-tuning"])
def test_a_control_gone_on_with_equals_an_uninterrupted_one_to_the_byte(
    bench: Workbench, tmp_path: Path, epochs: int
) -> None:
    untrained = Untrained(Recipe(epochs=2, batch_size=64, lr=0.05), "family:digits_cnn", 10, 1, {}, 7)
    evaluator = CandidateEvaluator(replace(bench, untrained=untrained))
    policy = make_plan(MIXED, bench.graph).policy
    payload = {"press": evaluator.build(policy, Stopwatch()).press, "epochs": 2, "seed": 3}
    whole = control(evaluator, "control:random", policy, payload)
    with pytest.raises(StoppedError):
        control(evaluator, "control:random", policy, payload, stopped_after(tmp_path, epochs))
    heard: list[int] = []
    left = control(
        evaluator, "control:random", policy, payload, Checkpoints(tmp_path, lambda epoch, _: heard.append(epoch))
    )
    assert left["artefacts"] == whole["artefacts"]
    assert heard == list(range(epochs + 1, 2 + bench.settings.recovery.epochs + 1))


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_recovery_gone_on_with_equals_an_uninterrupted_one_to_the_byte(
    bench: Workbench, tmp_path: Path, policy: Policy
) -> None:
    whole = CandidateEvaluator(bench).recover(policy, seed=3)
    for epochs in (1, 3):
        with pytest.raises(StoppedError):
            CandidateEvaluator(bench).recover(policy, 3, stopped_after(tmp_path, epochs))
    epochs_left = []
    end = Checkpoints(tmp_path, lambda epoch, _: epochs_left.append(epoch))
    again = CandidateEvaluator(bench).recover(policy, 3, end)
    assert epochs_left == [4]
    assert again["artefacts"] == whole["artefacts"]
    assert untimed(again["metrics"]) == untimed(whole["metrics"])


def test_an_architecture_whose_learning_was_killed_is_the_one_that_it_would_have_learned(
    bench: Workbench, tmp_path: Path
) -> None:
    recipe = Recipe(epochs=3, batch_size=32, optimizer="adamw", lr=2e-3)
    learning = Learning("fc", Architecture(neurons=1e-3, layers=0.0), recipe)
    whole = learn_architecture(bench, learning, 3)
    with pytest.raises(StoppedError):
        learn_architecture(bench, learning, 3, 0, stopped_after(tmp_path, 2))
    again = learn_architecture(bench, learning, 3, 0, Checkpoints(tmp_path))
    assert (again["artefacts"], again["metrics"]) == (whole["artefacts"], whole["metrics"])


def test_a_task_is_one_training_that_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    def of_task(checkpoints: Checkpoints) -> bytes:
        # As it is sent to another process: the network and its training stay one.
        task = cloudpickle.loads(cloudpickle.dumps(digits_task()))
        return bytes(task().with_checkpoints(checkpoints)(Job("dense", "{}", "dense", 60.0))["weights"])

    whole = of_task(UNKEPT)
    with pytest.raises(StoppedError):
        of_task(stopped_after(tmp_path, 1))
    assert of_task(Checkpoints(tmp_path)) == whole


def digits_task() -> TrainingTask:
    data = load_data("digits", sizes=SplitSizes(100, 64, 100), seed=0, limit=300)
    model = build_model("family:digits_cnn", num_classes=10, seed=0)

    def carry_out(checkpoint: Path | None, on_epoch: OnEpoch) -> None:
        train(model, data, Recipe(epochs=2, batch_size=32), seed=0, checkpoint=checkpoint, on_epoch=on_epoch)

    return TrainingTask(model, carry_out, 2)


def test_trying_the_network_after_each_epoch_changes_nothing(bench: Workbench, tmp_path: Path) -> None:
    whole = CandidateEvaluator(bench).recover(MIXED, seed=3)
    told = []
    tried = Checkpoints(tmp_path, lambda epoch, figures: told.append((epoch, figures["error_pct"])), validates=True)
    assert CandidateEvaluator(bench).recover(MIXED, 3, tried)["artefacts"] == whole["artefacts"]
    assert [epoch for epoch, _ in told] == [1, 2, 3, 4]
    assert all(0 <= error < 90 for _, error in told)


def test_a_recovery_without_training_keeps_nothing(bench: Workbench, tmp_path: Path) -> None:
    settings = replace(bench.settings, recovery=replace(bench.settings.recovery, epochs=0))
    CandidateEvaluator(replace(bench, settings=settings)).recover(MIXED, 3, Checkpoints(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_worker_keeps_the_states_of_the_job_that_it_is_given_a_folder_for(bench: Workbench, tmp_path: Path) -> None:
    worker = CandidateFactory(bench)()
    job = Job("a", MIXED.to_json(), "recover", 60.0, {"seed": 3})
    with pytest.raises(StoppedError):
        worker.with_checkpoints(stopped_after(tmp_path, 3))(job)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["training-0.safetensors", "training-1.safetensors"]
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    worker(job)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept
