"""Whole runs on scikit-learn's digits, in this process."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import paretopress as pp
import pytest
import torch
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.models import build_model, load_weights
from paretopress.evaluators.runtime import logits, session
from paretopress.policies.coding.press import decode
from paretopress.policies.errors import (
    CandidateError,
    DataError,
    InputError,
    ModelError,
    RunDirectoryError,
    SearchError,
    WorkError,
)
from paretopress.search import api, finals, prepare
from paretopress.search import session as run_session
from paretopress.search.config import make_config
from paretopress.search.ledger import Evaluation
from paretopress.search.progress import Progress, Silence
from paretopress.search.rundir import sha256
from paretopress.search.verifying import Check, verify_bundle
from paretopress.tests.search.runs import front_of, rows, small, with_weights
from sklearn.datasets import load_digits
from torch import nn

pytestmark = pytest.mark.usefixtures("one_core")

METRICS = {
    "error_pct",
    "error_ci95",
    "stored_bytes",
    "onnx_bytes",
    "latency_ratio",
    "latency_ms",
    "macs",
    "params",
    "peak_memory_bytes",
    "energy_uj_estimate",
}
Finished = tuple[Path, dict[str, Any]]


def start(out: Path, config: dict[str, Any], listener: Silence | None = None) -> pp.Front:
    return api.run_search(make_config(config), out, listener or Silence())


def by_policy(found: list[Evaluation]) -> dict[str, Evaluation]:
    return {row.key.policy_hash: row for row in found}


def onnx_logits(path: Path, x: torch.Tensor) -> np.ndarray:
    return logits(session(path.read_bytes()), x.numpy(), 100)


# What a run leaves


def test_the_run_directory_holds_all_that_was_promised(finished: Finished) -> None:
    run, _ = finished
    found = front_of(run)
    for name in ("config.yaml", "ledger.sqlite", "report.html", "environment.json"):
        assert (run / name).stat().st_size > 0
    for member in found["front"]:
        policy = pp.Policy.from_text((run / "policies" / f"{member['id']}.yaml").read_text())
        assert policy == pp.Policy.from_dict(member["policy"]) and policy.id == member["id"]
    assert len(list((run / "policies").iterdir())) == len(found["front"])
    assert not list(run.rglob("*.tmp")), "nothing half-written is left"
    report = (run / "report.html").read_text()
    assert all(member["id"] in report for member in found["front"])


def test_the_front_is_of_the_schema_that_was_promised(finished: Finished) -> None:
    found = front_of(finished[0])
    assert set(found) >= {"baseline", "budgets", "front"}
    assert set(found["baseline"]) >= METRICS - {"error_ci95"} and found["baseline"]["latency_ratio"] == 1.0
    assert found["budgets"]["stored_bytes"] == 100_000 and found["budgets"]["latency_ratio"] == 1.5
    assert found["budgets"]["error_pct"] == pytest.approx(found["baseline"]["error_pct"] + 5)
    assert found["front"]
    for member in found["front"]:
        assert set(member) >= {"id", "policy", "feasible", "rung", "metrics"} and member["rung"] == "final"
        metrics = member["metrics"]
        assert set(metrics) >= METRICS
        low, high = metrics["error_ci95"]
        assert low <= metrics["error_pct"] <= high
        for name in ("stored_bytes", "onnx_bytes", "macs", "params", "peak_memory_bytes"):
            assert isinstance(metrics[name], int)
        over = {name for name, bound in found["budgets"].items() if metrics[name] > bound}
        assert member["feasible"] == (not over) and set(member["misses"]) == over


def test_sizes_are_those_of_files_that_lie_there(finished: Finished) -> None:
    run, _ = finished
    for member in front_of(run)["front"]:
        files = run / "artefacts" / member["id"]
        assert (files / "model.press").stat().st_size == member["metrics"]["stored_bytes"]
        assert (files / "model.onnx").stat().st_size == member["metrics"]["onnx_bytes"]
        header = decode((files / "model.press").read_bytes()).metadata
        assert header["policy"] == member["policy"], "the stored form says what was done"


def test_no_candidate_failed(finished: Finished) -> None:
    assert {row.state for row in rows(finished[0])} == {"done"}
    assert len({row.key.policy_hash for row in rows(finished[0], "screen")}) >= 6


def test_the_ledger_proves_one_reading_of_the_test_split_for_each_final_candidate(finished: Finished) -> None:
    run, _ = finished
    tested, recovered = rows(run, "test"), rows(run, "recover")
    assert [row.attempt for row in tested] == [1] * len(tested)
    assert len({row.key.policy_hash for row in tested}) == len(tested)
    finalists = by_policy([row for row in tested if row.origin == "finalist"])
    assert set(finalists) == set(by_policy(recovered)) and len(finalists) == 2
    assert len(tested) == 3, "the finalists and the dense network"
    for row in recovered:
        assert finalists[row.key.policy_hash].artefacts == row.artefacts, "what was tested is what was recovered"
        for name, digest in row.artefacts.items():
            assert sha256((run / "artefacts" / row.key.policy_hash[:12] / name).read_bytes()) == digest
    assert not any("test" in name for row in rows(run, "screen") for name in row.values)


def test_the_study_lies_where_a_dashboard_opens_it(finished: Finished) -> None:
    backend = optuna.storages.journal.JournalFileBackend(str(finished[0] / "optuna-journal.log"))
    study = optuna.load_study(study_name="paretopress", storage=optuna.storages.JournalStorage(backend))
    complete = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.COMPLETE]
    pruned = [trial for trial in study.trials if trial.state == optuna.trial.TrialState.PRUNED]
    assert len(complete) == 10 and study.metric_names == ["error_pct", "stored_bytes", "latency_ratio"]
    assert set(complete[0].constraints) == {"stored_bytes", "latency_ratio", "screen_error"}
    assert len(pruned) >= 10, "the lowest rung tries more candidates than are screened"
    assert all("paretopress:kl" in trial.system_attrs for trial in complete)


def test_progress_tells_evaluations_front_best_and_time_left(tmp_path: Path, weights: Path) -> None:
    class Ear(Silence):
        heard: list[Progress] = []  # noqa: RUF012

        def progress(self, progress: Progress) -> None:
            self.heard.append(progress)

    start(tmp_path / "run", with_weights(weights, search__evaluations=4, recovery__epochs=0), Ear())
    for phase, total in (("screen", 4), ("recover", 2), ("test", 2)):
        mine = [progress for progress in Ear.heard if progress.phase == phase]
        assert mine[-1].done == mine[-1].total == total
        assert [progress.done for progress in mine] == sorted(progress.done for progress in mine)
    assert Ear.heard[0].phase == "bank"
    first, *_, last = (progress for progress in Ear.heard if progress.phase == "screen")
    assert first.seconds_left is not None and first.seconds_left > 0 and last.seconds_left == 0
    assert last.front_size >= 1 and set(last.best) == {"error_pct", "stored_bytes", "latency_ratio"}


# What leaves a run


@pytest.fixture(scope="module")
def bundle(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pp.open_front(finished[0]).pick("knee").export(tmp_path_factory.mktemp("out") / "bundle")


def wrong(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if check.agrees is not True}


def test_every_member_exports_to_every_target(finished: Finished, tmp_path: Path) -> None:
    for candidate in pp.open_front(finished[0]):
        onnx = candidate.export(tmp_path / f"{candidate.member.id}.onnx")
        press = candidate.export(tmp_path / f"{candidate.member.id}.bin", "press")
        folder = candidate.export(tmp_path / candidate.member.id)
        assert onnx.read_bytes() == (folder / "model.onnx").read_bytes()
        assert press.read_bytes() == (folder / "model.press").read_bytes()
        assert pp.Policy.from_text((folder / "policy.yaml").read_text()) == candidate.policy
        card = json.loads((folder / "card.json").read_text())
        assert card["metrics"] == candidate.metrics and card["id"] == candidate.member.id


def test_a_bundle_is_never_written_over_something(finished: Finished, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    best = pp.open_front(finished[0]).pick("knee")
    for place in (tmp_path / "mine", tmp_path):
        with pytest.raises(InputError, match="exists; a bundle is a directory of its own, choose another"):
            best.export(place, "bundle")
    with pytest.raises(InputError, match=r"expected --to onnx, press, bundle, safetensors; got '\.pt'"):
        best.export(tmp_path / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_untouched_bundle_agrees(bundle: Path) -> None:
    checks = verify_bundle(bundle)
    assert not wrong(checks)
    assert {"error_pct", "stored_bytes", "onnx_bytes", "latency_ratio", "macs", "sha256 model.onnx"} <= {
        check.name for check in checks
    }


@pytest.mark.parametrize("name", ["model.onnx", "model.press", "reference.onnx"])
@pytest.mark.parametrize("position", [0.02, 0.5, 0.999])
def test_a_bundle_disagrees_once_a_byte_is_changed(bundle: Path, tmp_path: Path, name: str, position: float) -> None:
    copied = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    content = bytearray((copied / name).read_bytes())
    content[int(position * len(content))] ^= 0x55
    (copied / name).write_bytes(content)
    assert f"sha256 {name}" in wrong(verify_bundle(copied))


@pytest.mark.parametrize(
    ("figure", "change"),
    [
        ("error_pct", lambda value: value - 1.0),
        ("stored_bytes", lambda value: value - 1),
        ("onnx_bytes", lambda value: value + 1),
        ("latency_ratio", lambda value: value * 0.1),
        ("macs", lambda value: value // 2),
        ("params", lambda value: value - 1),
        ("peak_memory_bytes", lambda value: value + 4),
    ],
)
def test_a_bundle_disagrees_once_a_figure_is_changed(
    bundle: Path, tmp_path: Path, figure: str, change: Callable[[Any], Any]
) -> None:
    copied = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    card = json.loads((copied / "card.json").read_text())
    card["metrics"][figure] = change(card["metrics"][figure])
    (copied / "card.json").write_text(json.dumps(card))
    assert wrong(verify_bundle(copied)) == {figure}


def test_a_bundle_disagrees_once_its_policy_is_exchanged(bundle: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (copied / "policy.yaml").write_text("version: 1\nlayers: {}\n")
    assert "policy" in wrong(verify_bundle(copied))


@pytest.mark.parametrize("card", ["", "[]", '{"metrics": {}}', '{"metrics": {}, "sha256": {"../../etc/passwd": "x"}}'])
def test_a_damaged_card_is_refused(bundle: Path, tmp_path: Path, card: str) -> None:
    copied = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (copied / "card.json").write_text(card)
    with pytest.raises(InputError, match=r"card\.json is damaged .*; export the bundle again"):
        verify_bundle(copied)


def test_a_directory_that_is_no_bundle_says_what_it_lacks(bundle: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (copied / "reference.onnx").unlink()
    with pytest.raises(InputError, match=r"is no bundle: it lacks reference\.onnx; make one by"):
        verify_bundle(copied)


@pytest.mark.parametrize("damage", [lambda content: content[:-7], lambda content: content[:-1] + b"?"])
def test_a_file_that_is_not_the_measured_one_is_not_exported(
    finished: Finished, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    run = Path(shutil.copytree(finished[0], tmp_path / "run"))
    best = pp.open_front(run).pick("knee")
    file = run / "artefacts" / best.member.id / "model.onnx"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(WorkError, match="is damaged: it is not the file that was measured"):
        best.export(tmp_path / "model.onnx")
    file.unlink()
    with pytest.raises(WorkError, match=r"is missing; 'paretopress resume .*' makes it again"):
        best.export(tmp_path / "bundle")
    assert not (tmp_path / "model.onnx").exists() and not (tmp_path / "bundle").exists()


# From Python


@pytest.fixture(scope="module")
def network(weights: Path) -> nn.Module:
    model = build_model("family:digits_cnn", num_classes=10, in_channels=1)
    load_weights(model, weights)
    return model


@pytest.fixture(scope="module")
def pictures() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Digits as (N, 8, 8) arrays of bytes."""
    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)
    return {"train": (images[:1400], digits.target[:1400]), "test": (images[1400:], digits.target[1400:])}


SECTIONS: dict[str, Any] = {
    **{name: small()[name] for name in ("latency", "pool")},
    "recovery": {"epochs": 1, "batch_size": 64},
    "space": {"precision": ["float32", "k16"], "channels": [1.0, 0.5]},
    "search": {"finalists": 2, "batch": 4},
}


@pytest.fixture(scope="module")
def searched(
    network: nn.Module, pictures: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory, one_core: None
) -> pp.Front:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    out = tmp_path_factory.mktemp("python") / "run"
    front = pp.search(network, pictures, budgets={"stored": "0.9x"}, evaluations=6, out=out, **SECTIONS)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items()), "it stays as it was"
    return front


def test_objects_from_python_leave_the_same_run_directory(searched: pp.Front, finished: Finished) -> None:
    mine, theirs = searched.run.path, finished[0]
    found = front_of(mine)
    assert set(found) == set(front_of(theirs)) and len(searched) == len(found["front"]) > 0
    # SQLite may keep files of its own beside the ledger for those that read it.
    names = [{path.name for path in run.iterdir() if "sqlite-" not in path.name} for run in (mine, theirs)]
    assert names[0] == names[1] - {"dense.safetensors"}
    assert [candidate.metrics for candidate in searched] == [member["metrics"] for member in found["front"]]
    assert searched.baseline == found["baseline"] and searched[0].policy.id == found["front"][0]["id"]
    assert len(rows(mine, "screen")) <= 6
    assert found["budgets"] == {"stored_bytes": 0.9 * found["baseline"]["stored_bytes"]}


def test_a_member_is_a_plain_network_that_predicts_as_its_onnx_file(
    searched: pp.Front, pictures: Mapping[str, tuple[np.ndarray, np.ndarray]], tmp_path: Path
) -> None:
    images, labels = pictures["test"]
    data = searched.given.data
    assert data is not None
    for candidate in searched:
        net = candidate.model()
        assert type(net).__module__.endswith("digits_cnn") and not net.training
        with torch.no_grad():
            mine = net(data.preprocess(images[:, None])).numpy()
        theirs = onnx_logits(
            candidate.export(tmp_path / f"{candidate.member.id}.onnx"), data.preprocess(images[:, None])
        )
        np.testing.assert_allclose(mine, theirs, atol=1e-3)
        # Of a network that is handed over, a part of the test pictures serves to compare candidates.
        assert 100 * np.mean(theirs.argmax(1) != labels) == pytest.approx(candidate.metrics["whole_test_error_pct"])


def test_members_of_a_configuration_are_networks_too(finished: Finished, tmp_path: Path) -> None:
    front = pp.open_front(finished[0])
    data = prepare.read_data(front.config, lambda _: None)
    assert data.test is not None
    x = data.preprocess(data.test.images)
    for candidate in front:
        with torch.no_grad():
            mine = candidate.model()(x).numpy()
        theirs = onnx_logits(candidate.export(tmp_path / f"{candidate.member.id}.onnx"), x)
        assert np.mean(mine.argmax(1) == theirs.argmax(1)) >= 0.95


def test_a_run_of_objects_is_taken_up_with_the_same_objects_only(
    searched: pp.Front, network: nn.Module, pictures: Mapping[str, Any]
) -> None:
    run = searched.run.path
    before = front_of(run), rows(run), (run / "reference.onnx").read_bytes()
    with pytest.raises(RunDirectoryError, match="started from Python with objects; give them again"):
        pp.resume(run)
    with pytest.raises(RunDirectoryError, match="use the front that search"):
        pp.open_front(run).pick("knee").model()
    other = build_model("family:digits_cnn", num_classes=10, in_channels=1, seed=9)
    with pytest.raises(RunDirectoryError, match="a run on another network or other data"):
        pp.resume(run, model=other, data=pictures)
    fewer = {**pictures, "train": tuple(part[:1000] for part in pictures["train"])}
    with pytest.raises(RunDirectoryError, match="a run on another network or other data"):
        pp.resume(run, model=network, data=fewer)
    assert (front_of(run), rows(run), (run / "reference.onnx").read_bytes()) == before
    again = pp.resume(run, model=network, data=pictures)
    assert again.found == searched.found and rows(run) == before[1]


def test_a_configuration_file_says_everything(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(small()))
    with pytest.raises(InputError, match="a configuration file says everything; leave out data, budgets and sections"):
        pp.search(path, budgets={"stored": "1kB"})


def test_a_network_without_data_is_refused(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="a network alone is nothing to search on; give data: arrays, a loader, or a name"
    ):
        pp.search(network, budgets={"stored": "0.5x"}, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected an nn\.Module or the path of a configuration, got a dict"):
        pp.search({"a": 1}, out=tmp_path / "run")  # type: ignore[arg-type]


def test_data_without_test_pictures_is_refused(searched: pp.Front, network: nn.Module, tmp_path: Path) -> None:
    assert searched.given.data is not None
    with pytest.raises(DataError, match="has no test split; give test pictures"):
        pp.search(network, searched.given.data.without_test(), out=tmp_path / "run", **SECTIONS)
    assert not (tmp_path / "run").exists(), "a run that could not begin leaves its directory free"


# Budgets, failures, interruptions


def test_an_unreachable_budget_yields_the_nearest_policies_and_their_misses(tmp_path: Path, weights: Path) -> None:
    budgets = {"stored": "100B", "error": "0.001"}
    front = start(tmp_path / "run", with_weights(weights, budgets=budgets, search__evaluations=6, recovery__epochs=0))
    assert len(front) >= 1 and front.pick("knee").member in front.found.members
    for candidate in front:
        assert not candidate.member.feasible
        metrics, misses = candidate.metrics, candidate.member.misses
        assert misses["stored_bytes"] == pytest.approx(metrics["stored_bytes"] / 100 - 1)
        assert misses["error_pct"] == pytest.approx(metrics["error_pct"] / 0.001 - 1)
    screened = [row.values["stored_bytes"] for row in rows(tmp_path / "run", "screen")]
    assert min(candidate.metrics["stored_bytes"] for candidate in front) <= 1.5 * min(screened)


def break_screening(monkeypatch: pytest.MonkeyPatch, breaks: Callable[[pp.Policy], bool]) -> None:
    whole = CandidateEvaluator.screen

    def screen(self: CandidateEvaluator, policy: pp.Policy) -> dict[str, Any]:
        if breaks(policy):
            raise CandidateError("no kernel for this operator")
        return whole(self, policy)

    monkeypatch.setattr(CandidateEvaluator, "screen", screen)


def unlucky(policy: pp.Policy) -> bool:
    """One policy in three, whatever is in it."""
    return int(policy.digest[:8], 16) % 3 == 0


def test_a_candidate_that_fails_is_recorded_with_its_reason_and_the_search_goes_on(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_screening(monkeypatch, unlucky)
    # Proposals of the random sampler follow from the seed alone, those of others from timings too.
    config = with_weights(weights, recovery__epochs=0, search__sampler="random")
    front = start(tmp_path / "run", config)
    screened = rows(tmp_path / "run", "screen")
    failed = [row for row in screened if row.state == "failed"]
    assert failed and all(unlucky(pp.Policy.from_text(row.policy_json)) for row in failed)
    assert {(row.error_class, row.error, row.attempt) for row in failed} == {
        ("CandidateError", "no kernel for this operator", 1)
    }
    assert len(front) >= 1 and not any(unlucky(candidate.policy) for candidate in front)
    assert "no kernel for this operator" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize("spared", ["none", "the dense network"])
def test_where_every_candidate_fails_the_search_stops_and_says_why(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, spared: str
) -> None:
    break_screening(monkeypatch, lambda policy: spared == "none" or bool(policy.layers))
    config = with_weights(weights, search__evaluations=40, search__batch=8)
    with pytest.raises(SearchError, match=r"all \d+ candidates failed, \d+ with: CandidateError: no kernel for this"):
        start(tmp_path / "run", config)
    screened = rows(tmp_path / "run", "screen")
    assert 16 <= len(screened) < 40, "it does not go on to the end without hope"
    assert "no kernel for this operator" in (tmp_path / "run" / "report.html").read_text()
    assert not (tmp_path / "run" / "front.json").exists()


def test_where_all_but_the_dense_network_fail_every_reason_is_told_the_most_frequent_first(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, failures = CandidateEvaluator.screen, iter(range(100))

    def screen(self: CandidateEvaluator, policy: pp.Policy) -> dict[str, Any]:
        if policy.layers:
            raise CandidateError("layer 'conv2' cannot be exported" if next(failures) else "no room on this device")
        return whole(self, policy)

    monkeypatch.setattr(CandidateEvaluator, "screen", screen)
    config = with_weights(weights, search__sampler="random", search__evaluations=6, search__batch=6)
    with pytest.raises(SearchError, match="came out as the dense network") as stopped:
        start(tmp_path / "run", config)
    failed = [row for row in rows(tmp_path / "run", "screen") if row.state == "failed"]
    assert 3 <= len(failed) < 6, "some fail, and the dense network is among the rest"
    told = f"those that failed, {len(failed) - 1} with: CandidateError: layer 'conv2' cannot be exported;"
    assert told in str(stopped.value) and "1 with: CandidateError: no room on this device. Mend that" in str(
        stopped.value
    )
    assert "widen space" not in str(stopped.value)
    report = (tmp_path / "run" / "report.html").read_text()
    assert f"{len(failed) - 1} with: CandidateError: layer &#39;conv2&#39; cannot be exported" in report


def test_where_every_finalist_fails_the_search_stops_and_says_why(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recover(self: CandidateEvaluator, policy: pp.Policy, seed: int, *_: Any) -> dict[str, Any]:
        raise CandidateError("the loss is not finite")

    monkeypatch.setattr(CandidateEvaluator, "recover", recover)
    with pytest.raises(SearchError, match="all 2 finalists failed, 2 with: CandidateError: the loss is not finite"):
        start(tmp_path / "run", with_weights(weights, search__evaluations=6))
    assert not (tmp_path / "run" / "front.json").exists()


def forbid_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> Any:
        raise AssertionError("a finished evaluation was carried out again")

    for name in ("screen", "recover"):
        monkeypatch.setattr(CandidateEvaluator, name, never)
    for module, name in ((run_session, "measure_baseline"), (finals, "file_error"), (finals, "LatencyProbe")):
        monkeypatch.setattr(module, name, never)


def test_resuming_a_finished_run_measures_nothing_again(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(finished[0], tmp_path / "run"))
    before, front = rows(run), (run / "front.json").read_bytes()
    forbid_work(monkeypatch)
    pp.resume(run)
    assert rows(run) == before and (run / "front.json").read_bytes() == front


class Interrupt(Silence):
    """Presses ctrl-C after so many evaluations of a phase."""

    def __init__(self, phase: str, after: int) -> None:
        self._phase, self._after = phase, after

    def progress(self, progress: Progress) -> None:
        if progress.phase == self._phase and progress.done >= self._after:
            raise KeyboardInterrupt


def test_a_run_that_was_interrupted_three_times_asks_and_finds_what_a_whole_one_does(
    tmp_path: Path, weights: Path
) -> None:
    config = with_weights(weights, search__objectives=["error", "stored"], budgets={}, search__evaluations=12)
    whole = start(tmp_path / "whole", config)
    for phase, after in (("screen", 3), ("screen", 6), ("recover", 1)):
        with pytest.raises(KeyboardInterrupt):
            start(tmp_path / "broken", config, Interrupt(phase, after))
        kept = by_policy([row for row in rows(tmp_path / "broken", "screen") if row.state == "done"])
        assert len(kept) >= min(after, 5)
    resumed = pp.resume(tmp_path / "broken")

    def outcome(front: pp.Front) -> list[tuple[str, float, int, int]]:
        names = ("error_pct", "stored_bytes", "onnx_bytes")
        return [(c.member.id, *(c.metrics[name] for name in names)) for c in front]

    assert outcome(resumed) == outcome(whole), "the same policies, error and bytes"
    first, second = (by_policy(rows(tmp_path / name, "screen")) for name in ("whole", "broken"))
    assert list(first) == list(second), "the same questions in the same order"
    for policy_hash, row in kept.items():
        assert second[policy_hash] == row, "what was recorded stands"
    assert all(row.attempt == 1 for row in rows(tmp_path / "broken", "test"))


def test_a_file_that_is_lost_or_damaged_is_made_again(finished: Finished, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished[0], tmp_path / "run"))
    lost, damaged = sorted((run / "artefacts").iterdir())
    (lost / "model.press").unlink()
    (damaged / "model.onnx").write_bytes((damaged / "model.onnx").read_bytes()[:-100])
    pp.resume(run)
    recovered = by_policy(rows(run, "recover"))
    assert [row.attempt for row in recovered.values()] == [2, 2]
    for row in (row for row in rows(run, "test") if row.origin == "finalist"):
        assert row.artefacts == recovered[row.key.policy_hash].artefacts, "the figures are those of the new file"
        for name, digest in row.artefacts.items():
            assert sha256((run / "artefacts" / row.key.policy_hash[:12] / name).read_bytes()) == digest


def test_a_full_disk_stops_the_run_and_loses_nothing(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_weights(weights, search__evaluations=6, recovery__epochs=0)
    with monkeypatch.context() as patch:
        real = os.replace

        def full(source: Path, target: Path) -> Path:
            if "artefacts" in str(target):
                raise OSError(errno.ENOSPC, "No space left on device")
            real(source, target)
            return target

        patch.setattr(Path, "replace", full)
        with pytest.raises(WorkError, match=r"cannot write .*: No space left on device; free some space"):
            start(tmp_path / "run", config)
    before = rows(tmp_path / "run", "screen")
    assert len(before) >= 5 and {row.state for row in before} == {"done"}
    assert len(start(tmp_path / "run", config)) >= 1
    assert rows(tmp_path / "run", "screen") == before


def test_a_run_directory_of_another_configuration_is_refused(finished: Finished, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished[0], tmp_path / "run"))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(
        RunDirectoryError, match=r"another configuration; differing: recovery\.epochs, search\.evaluations"
    ):
        start(run, small(search__evaluations=11, recovery__epochs=2))
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_that_another_driver_works_on_is_refused(finished: Finished, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished[0], tmp_path / "run"))
    with api.Ledger(run), pytest.raises(RunDirectoryError, match="another driver is working on"):
        pp.resume(run)


def test_agreement_is_measured_against_the_dense_network(tmp_path: Path, weights: Path) -> None:
    config = with_weights(weights, quality="agreement", budgets={}, search__evaluations=4, recovery__epochs=0)
    front = start(tmp_path / "run", config)
    assert front.baseline["error_pct"] == front.baseline["validation_error_pct"] == 0.0
    assert all(candidate.metrics["error_pct"] <= 20 for candidate in front)
    assert start(tmp_path / "run", config).found == front.found
    folder = front.pick("knee").export(tmp_path / "bundle")
    assert not wrong([check for check in verify_bundle(folder) if check.name != "latency_ratio"])
