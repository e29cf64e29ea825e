"""One candidate on scikit-learn's digits: what is measured is what the files hold."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from paretopress.evaluators.accuracy import file_error, file_logits
from paretopress.evaluators.base import METRICS
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.counts import dense_counts
from paretopress.evaluators.data import SplitSizes
from paretopress.evaluators.pool import Job
from paretopress.evaluators.sources import load_data
from paretopress.evaluators.stopwatch import Stopwatch
from paretopress.evaluators.training.checkpoints import UNKEPT
from paretopress.evaluators.training.loop import Recipe, train
from paretopress.evaluators.workbench import Settings, Workbench
from paretopress.evaluators.worker import CandidateFactory
from paretopress.policies.apply import restore
from paretopress.policies.architectures import DigitsCNN
from paretopress.policies.batch_norms import reestimate_statistics
from paretopress.policies.coding.press import decode
from paretopress.policies.compact import read_brief
from paretopress.policies.errors import PolicyError
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step

torch.set_num_threads(1)

SETTINGS = Settings(screen_pictures=100, screen_seconds=0.02, recovery=Recipe(epochs=1, batch_size=64, lr=0.01))
POLICY = Policy(
    {
        "conv1": (Step.of("quantize", bits=8, activations="int8"),),
        "conv2": (
            Step.of("prune_channels", sparsity=0.5, multiple=8),
            Step.of("quantize", bits=8, activations="int8"),
        ),
        "fc1": (Step.of("prune_magnitude", sparsity=0.8), Step.of("share", clusters=8)),
        "fc2": (Step.of("svd", rank=6),),
    }
)
POLICIES = {
    "dense": Policy(),
    "pruned": Policy({"fc1": (Step.of("prune_magnitude", sparsity=0.9),)}),
    "mixed": POLICY,
    "harsh": Policy(
        {
            name: (Step.of("prune_magnitude", sparsity=0.85), Step.of("quantize", bits=2))
            for name in ("conv1", "conv2", "fc1", "fc2")
        }
    ),
}
TIMED = ("latency_ms", "latency_ratio", "latency_ratio_ci95_low", "latency_ratio_ci95_high")


@pytest.fixture(scope="module")
def bench() -> Workbench:
    data = load_data("digits", sizes=SplitSizes(0.15, 64, 0.2), seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DigitsCNN()
    train(model, data, Recipe(epochs=3, batch_size=64, lr=0.05), seed=0)
    example = data.preprocess(data.calibration.images[:1])
    reference = export_onnx(model, example, calibration=None)
    return Workbench(model, ModelGraph.trace(model, example), data.without_test(), reference, SETTINGS)


def counted(metrics: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the clock."""
    return {name: value for name, value in metrics.items() if name not in TIMED}


def with_recipe(bench: Workbench, **changes: Any) -> CandidateEvaluator:
    recipe = replace(SETTINGS.recovery, **changes)
    return CandidateEvaluator(replace(bench, settings=replace(SETTINGS, recovery=recipe)))


@pytest.mark.parametrize("name", POLICIES)
def test_a_screening_gives_every_metric(bench, name):
    result = CandidateEvaluator(bench).screen(POLICIES[name])
    metrics = result["metrics"]
    assert set(METRICS) <= set(metrics)
    assert all(np.isfinite(value) and value >= 0 for value in metrics.values())
    assert metrics["error_ci95_low"] <= metrics["error_pct"] <= metrics["error_ci95_high"]
    assert metrics["latency_ratio"] > 0
    assert metrics["unknown_operations"] == 0
    assert set(result["seconds"]) == {"build", "export", "encode", "forward", "count", "probe"}
    assert result["artefacts"] == {}
    json.dumps(metrics)


def test_the_dense_network_is_its_own_reference(bench):
    metrics = CandidateEvaluator(bench).screen(Policy())["metrics"]
    example = bench.data.preprocess(bench.data.calibration.images[:1])
    known = dense_counts(bench.model, example, len(bench.reference))
    same = ("macs", "params", "peak_memory_bytes")
    assert {name: metrics[name] for name in same} == {name: known[name] for name in same}
    assert metrics["macs"] == 1_264_256
    screened = bench.data.validation.take(slice(0, 100))
    assert metrics["error_pct"] == file_error(bench.reference, bench.data, screened, 1)


def test_a_compact_file_holds_the_network_that_was_exported(bench):
    """In fewer bytes: names, settled statistics and the scales before batch norms are left out."""
    policy = Policy(dict.fromkeys(bench.graph.layers, (Step.of("quantize", bits=4),)))
    compact = replace(bench, settings=replace(SETTINGS, compact=True, vector_bits=4))
    whole, small = (CandidateEvaluator(b).recover(policy, seed=0) for b in (bench, compact))
    assert small["metrics"]["stored_bytes"] < whole["metrics"]["stored_bytes"] - 200
    assert small["metrics"]["recovered"] == 1
    file = decode(small["artefacts"]["model.press"])
    plan = make_plan(policy, bench.graph)
    assert read_brief(file.metadata["policy"], list(bench.graph.layers)) == plan.policy
    network = restore(plan, bench.graph, copy.deepcopy(bench.model), file.tensors)
    x = bench.data.preprocess(bench.data.validation.images)
    exported = file_logits(small["artefacts"]["model.onnx"], bench.data, bench.data.validation, 1)
    with torch.no_grad():
        np.testing.assert_allclose(network(x).numpy(), exported, rtol=1e-3, atol=1e-3)
    mantissa, _ = np.frexp(network.bn1.weight.detach().numpy())
    assert (mantissa * 16 == np.rint(mantissa * 16)).all()


def test_metrics_move_as_the_policy_says(bench):
    found = {name: CandidateEvaluator(bench).screen(policy)["metrics"] for name, policy in POLICIES.items()}
    dense, mixed, pruned = found["dense"], found["mixed"], found["pruned"]
    for name in ("stored_bytes", "onnx_bytes", "macs", "params", "peak_memory_bytes", "energy_uj_estimate"):
        assert mixed[name] < dense[name], name
    assert pruned["stored_bytes"] < dense["stored_bytes"] / 2
    assert pruned["macs"] == dense["macs"], "a dense kernel multiplies by the zeros"
    assert pruned["params"] == dense["params"] - round(0.9 * 65_536)


def test_recovered_sizes_and_errors_are_those_of_the_written_files(bench, tmp_path):
    result = CandidateEvaluator(bench).recover(POLICY, seed=1)
    for name, content in result["artefacts"].items():
        (tmp_path / name).write_bytes(content)
    metrics = result["metrics"]
    assert metrics["stored_bytes"] == (tmp_path / "model.press").stat().st_size
    assert metrics["onnx_bytes"] == (tmp_path / "model.onnx").stat().st_size
    onnx = (tmp_path / "model.onnx").read_bytes()
    assert metrics["error_pct"] == file_error(onnx, bench.data, bench.data.validation, 1)


def test_mistakes_are_counted_beside_those_of_the_dense_network_on_the_same_pictures(bench):
    validation = bench.data.validation
    dense_wrong = file_logits(bench.reference, bench.data, validation, 1).argmax(1) != validation.labels
    result = CandidateEvaluator(bench).recover(POLICIES["pruned"], seed=1)
    wrong = file_logits(result["artefacts"]["model.onnx"], bench.data, validation, 1).argmax(1) != validation.labels
    counts = {name: value for name, value in result["metrics"].items() if name.startswith("validation_")}
    assert counts == {
        "validation_pictures": len(validation),
        "validation_wrong": wrong.sum(),
        "validation_dense_wrong": dense_wrong.sum(),
        "validation_newly_wrong": (wrong & ~dense_wrong).sum(),
    }
    assert result["metrics"]["error_pct"] == 100 * counts["validation_wrong"] / counts["validation_pictures"]
    same = with_recipe(bench, epochs=0).recover(Policy(), seed=1)["metrics"]
    assert same["validation_newly_wrong"] == 0 and same["validation_wrong"] == same["validation_dense_wrong"]


def test_a_screening_counts_mistakes_only_where_finalists_are_chosen_by_it(bench):
    assert "validation_wrong" not in CandidateEvaluator(bench).screen(Policy())["metrics"]
    metrics = with_recipe(bench, epochs=0).screen(Policy())["metrics"]
    assert metrics["validation_pictures"] == 100 and metrics["validation_newly_wrong"] == 0


def test_the_stored_form_is_the_network_of_the_exported_one(bench):
    files = CandidateEvaluator(bench).recover(POLICIES["pruned"], seed=1)["artefacts"]
    press = decode(files["model.press"])
    plan = make_plan(Policy.from_dict(press.metadata["policy"]), bench.graph)
    restored = restore(plan, bench.graph, DigitsCNN(), press.tensors)
    validation = bench.data.validation
    with torch.no_grad():
        direct = restored(bench.data.preprocess(validation.images)).numpy()
    assert np.allclose(direct, file_logits(files["model.onnx"], bench.data, validation, 1), atol=1e-4)


def test_the_same_policy_gives_the_same_files_and_figures_whatever_the_worker_did_before(bench):
    used, fresh = CandidateEvaluator(bench), CandidateEvaluator(copy.deepcopy(bench))
    first = used.build(POLICY, Stopwatch())
    screened, recovered = used.screen(POLICY)["metrics"], used.recover(POLICY, seed=5)
    for evaluator in (used, fresh):
        again = evaluator.build(POLICY, Stopwatch())
        assert (again.press, again.onnx) == (first.press, first.onnx)
        assert counted(evaluator.screen(POLICY)["metrics"]) == counted(screened)
        result = evaluator.recover(POLICY, seed=5)
        assert result["artefacts"] == recovered["artefacts"]
        assert counted(result["metrics"]) == counted(recovered["metrics"])


def test_the_dense_network_is_left_as_it_was(bench):
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    random_state = torch.get_rng_state()
    CandidateEvaluator(bench).screen(POLICY)
    assert torch.equal(torch.get_rng_state(), random_state)
    CandidateEvaluator(bench).recover(POLICY, seed=0)
    assert all(torch.equal(value, bench.model.state_dict()[name]) for name, value in before.items())
    assert not bench.model.training


@pytest.mark.parametrize("lr", [0.01, 0.3])
@pytest.mark.parametrize("name", ["mixed", "harsh"])
def test_recovery_is_never_worse_than_none(bench, name, lr):
    without = with_recipe(bench, epochs=0).recover(POLICIES[name], seed=2)
    tuned = with_recipe(bench, lr=lr).recover(POLICIES[name], seed=2)
    assert tuned["metrics"]["error_pct"] <= without["metrics"]["error_pct"]
    assert "train" in tuned["seconds"]
    assert "train" not in without["seconds"]


def test_recovery_wins_back_what_two_bits_lost(bench):
    without = with_recipe(bench, epochs=0).recover(POLICIES["harsh"], seed=2)
    tuned = with_recipe(bench, epochs=2).recover(POLICIES["harsh"], seed=2)
    assert tuned["metrics"]["error_pct"] < without["metrics"]["error_pct"]
    assert tuned["artefacts"]["model.press"] != without["artefacts"]["model.press"]


def test_a_network_that_comes_frozen_is_recovered_like_any_other(bench):
    frozen = replace(bench, model=copy.deepcopy(bench.model).requires_grad_(False))
    one, other = (CandidateEvaluator(b).recover(POLICY, seed=4) for b in (bench, frozen))
    assert one["artefacts"] == other["artefacts"]


def test_a_policy_that_does_not_fit_is_refused(bench):
    with pytest.raises(PolicyError, match="layer 'conv9' is unknown"):
        CandidateEvaluator(bench).screen(Policy({"conv9": (Step.of("quantize", bits=8),)}))


def test_where_recovery_diverges_the_candidate_is_kept_as_it_was(bench):
    without = with_recipe(bench, epochs=0).recover(POLICY, seed=0)
    diverged = with_recipe(bench, lr=1e20).recover(POLICY, seed=0)
    assert diverged["artefacts"] == without["artefacts"]
    assert (diverged["metrics"]["recovered"], diverged["metrics"]["recovery_failed"]) == (0.0, 1.0)
    assert "recovery_failed" not in without["metrics"]
    assert diverged["metrics"]["error_pct"] == without["metrics"]["error_pct"]


def test_halved_batches_give_the_same_screening(bench):
    evaluator = CandidateEvaluator(bench)
    assert evaluator.with_halved_batches(0) is evaluator
    halved = evaluator.with_halved_batches(3).screen(POLICY)["metrics"]
    assert halved["error_pct"] == pytest.approx(evaluator.screen(POLICY)["metrics"]["error_pct"], abs=1.0)
    assert evaluator.with_halved_batches(9).bench.settings.recovery.batch_size == 2


def test_a_worker_does_the_job_at_the_rung_it_names(bench):
    worker = pickle.loads(pickle.dumps(CandidateFactory(bench)))()
    job = Job("a", POLICY.to_json(), "screen", 60.0)
    assert counted(worker(job)["metrics"]) == counted(CandidateEvaluator(bench).screen(POLICY)["metrics"])
    result = worker(replace(job, fidelity="recover", payload={"seed": 5}))
    assert set(result["artefacts"]) == {"model.onnx", "model.press"}


def test_stored_bytes_are_those_of_the_coder_that_was_asked_for(bench):
    policy = Policy({"conv2": (Step.of("prune_magnitude", sparsity=0.8), Step.of("share", clusters=16))})
    huffman = CandidateEvaluator(replace(bench, settings=replace(bench.settings, coder="huffman")))
    files = [evaluator.build(policy, Stopwatch()).press for evaluator in (CandidateEvaluator(bench), huffman)]
    assert len(files[0]) < len(files[1])
    assert huffman.screen(policy)["metrics"]["stored_bytes"] == len(files[1])
    one, other = (decode(data).tensors["conv2.weight"].decode() for data in files)
    assert one.tobytes() == other.tobytes()


def test_soft_sharing_trains_in_recovery_and_ships_what_it_was_drawn_to(bench):
    policy = Policy({"conv2": (Step.of("share_soft", clusters=7, zero=0.5, strength=1e-4),)})
    evaluator = CandidateEvaluator(bench)
    start = evaluator.build(policy, Stopwatch())
    tuned = evaluator._tuned(policy, 1, Stopwatch(), bench.settings.recovery, bench.data, UNKEPT)
    stored = [decode(candidate.press).tensors["conv2.weight"] for candidate in (start, tuned)]
    assert not np.array_equal(stored[0].codebook, stored[1].codebook)
    assert len(np.unique(stored[1].decode())) <= 8
    shipped = tuned.compressed.model.get_submodule("conv2").weight.detach().numpy()
    assert stored[1].decode().tobytes() == shipped.tobytes()


def test_batch_norms_behind_coarse_weights_are_those_of_the_weights_that_training_ended_with(bench):
    names, recipe = ("conv2", "fc1"), replace(SETTINGS.recovery, epochs=2)
    means = {}
    for bits in (2, 8):
        plan = make_plan(Policy({name: (Step.of("quantize", bits=bits),) for name in names}), bench.graph)
        evaluator = CandidateEvaluator(bench)
        model = evaluator.fine_tuning.carry_out(plan, 0, recipe, bench.data, UNKEPT).model
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        kept = [norm.running_mean.clone() for norm in norms]
        reestimate_statistics(model, bench.data.preprocess(bench.data.train.images))
        means[bits] = max(float((norm.running_mean - mean).abs().max()) for norm, mean in zip(norms, kept))
    assert means[2] < 1e-5 < 1e-3 < means[8]
