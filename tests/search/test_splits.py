from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paretopress import search
from paretopress.evaluators.models import build_model, load_weights
from paretopress.evaluators.provenance import digest_pictures, read_provenance
from paretopress.policies.errors import ConfigError, DataError
from paretopress.search.api import open_front, resume, run_search
from paretopress.search.config import Config, make_config
from paretopress.search.prepare import Given, Prepared, dense_network, prepare, read_data
from paretopress.search.rundir import RunDirectory
from paretopress.search.splits import drift_note
from paretopress.search.verifying import verify_bundle
from paretopress.tests.search.runs import meta, rows, with_weights
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits


class Recorder:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def progress(self, progress: object) -> None:
        pass


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's digits with a test split of their own: 1,200 to train on, 597 to test."""
    digits = load_digits()
    order = np.random.default_rng(5).permutation(len(digits.target))
    images, labels = np.round(digits.images * 255 / 16).astype(np.uint8)[order, None], digits.target[order]
    path = tmp_path_factory.mktemp("archive") / "digits.npz"
    parts = {"x_train": images[:1200], "y_train": labels[:1200], "x_test": images[1200:], "y_test": labels[1200:]}
    np.savez(path, **parts, x_further=images[1200:1300], y_further=labels[1200:1300])
    return path


@pytest.fixture(scope="module")
def ours(one_core: None, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that a run trained on the split of seed 0."""
    config = configured(archive)
    plain = {**config, "model": {"name": "family:digits_cnn", "train": {"epochs": 4, "batch_size": 64, "lr": 0.05}}}
    run = RunDirectory(tmp_path_factory.mktemp("ours"))
    read = make_config(plain)
    dense_network(read, read_data(read, lambda _: None), run, lambda _: None)
    return run.weights


@pytest.fixture(scope="module")
def foreign(ours: Path) -> Path:
    """The same weights in a file that says nothing of its training."""
    path = ours.with_name("foreign.safetensors")
    save_file(load_file(ours), path)
    return path


def configured(archive: Path, weights: Path | str = "w.safetensors", **changes: Any) -> dict[str, Any]:
    return with_weights(Path(weights), **{"data__name": f"npz:{archive}", **changes})


def prepared(plain: dict[str, Any], run: Path, **given: Any) -> tuple[Prepared, list[str]]:
    said: list[str] = []
    return prepare(make_config(plain), RunDirectory(run), said.append, **given), said


def test_weights_of_ours_are_compared_on_the_training_pictures_that_they_left_out(
    archive: Path, ours: Path, tmp_path: Path
) -> None:
    found, said = prepared(configured(archive, ours), tmp_path)
    assert (found.data.validation_from, len(found.data.validation), len(found.data.test or ())) == (
        "training",
        180,
        597,
    )
    assert found.splits.is_known and not said
    assert found.data.digest() == read_data(make_config(configured(archive, ours)), lambda _: None).digest()
    explicit, _ = prepared(configured(archive, ours, data__validation_from="training"), tmp_path)
    assert explicit.context_hash == found.context_hash, "what is recorded on this split goes on holding"


def test_the_same_weights_from_elsewhere_are_compared_on_test_pictures(
    archive: Path, foreign: Path, tmp_path: Path
) -> None:
    found, said = prepared(configured(archive, foreign), tmp_path)
    assert (found.data.validation_from, len(found.data.validation), len(found.data.test or ())) == ("testing", 179, 418)
    assert len(found.data.train) == 1200 and len(found.data.calibration) == 64
    (line,) = said
    assert "179 of the 597 test pictures" in line and "the other 418" in line and "\n" not in line


def test_another_seed_makes_weights_of_ours_a_strangers(archive: Path, ours: Path, tmp_path: Path) -> None:
    found, said = prepared(configured(archive, ours, seed=1), tmp_path)
    assert found.data.validation_from == "testing" and not found.splits.is_known and len(said) == 1
    size, _ = prepared(configured(archive, ours, data__validation=0.1), tmp_path)
    assert size.data.validation_from == "testing", "a validation split of another size is another split"


def test_each_way_to_choose_is_carried_out_and_training_says_what_it_means(
    archive: Path, foreign: Path, tmp_path: Path
) -> None:
    found, said = prepared(configured(archive, foreign, data__validation_from="training"), tmp_path)
    assert (found.data.validation_from, len(found.data.test or ())) == ("training", 597)
    (line,) = said
    assert line.startswith("data.validation_from: training: the network may have learned") and "\n" not in line
    found, _ = prepared(configured(archive, foreign, data__validation_from="testing"), tmp_path)
    assert found.data.validation_from == "testing"
    found, said = prepared(configured(archive, foreign, data__validation_from="further"), tmp_path)
    assert (found.data.validation_from, len(found.data.validation), len(found.data.train)) == ("own", 100, 1200)
    assert not said


@pytest.mark.parametrize("wrong", ["test", "train", "../x", "a/b", "", "a b"])
def test_words_that_are_no_split_are_refused(archive: Path, wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.validation_from: expected training, testing or"):
        make_config(configured(archive, data__validation_from=wrong))


def test_a_split_that_the_data_lacks_is_refused_with_those_that_it_has(
    archive: Path, foreign: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="no split 'dev' beside train, test"):
        prepared(configured(archive, foreign, data__validation_from="dev"), tmp_path)
    plain = with_weights(foreign, data__validation_from="dev")
    with pytest.raises(DataError, match="data set 'digits' has no split 'dev' beside train"):
        prepared(plain, tmp_path)


def test_agreement_and_networks_that_the_run_trains_keep_their_split(
    archive: Path, foreign: Path, tmp_path: Path
) -> None:
    agreeing, said = prepared(configured(archive, foreign, quality="agreement"), tmp_path / "a")
    assert agreeing.data.validation_from == "training" and len(said) == 1, "that pictures are labelled is said"
    plain = configured(archive, foreign)
    plain["model"] = {"name": "family:digits_cnn", "train": {"epochs": 1, "batch_size": 64}}
    (tmp_path / "t").mkdir()
    trained, said = prepared(plain, tmp_path / "t")
    assert trained.splits.is_known and trained.data.validation_from == "training"
    assert not any("may have learned" in line for line in said)
    provenance = read_provenance(tmp_path / "t" / "dense.safetensors")
    assert provenance is not None and trained.data.test is not None
    assert provenance.seen == (digest_pictures(trained.data.train),)
    assert provenance.left_out(trained.data.validation) and provenance.left_out(trained.data.test)
    assert provenance.recipe["train"]["epochs"] == 1 and provenance.recipe["seed"] == 0


def test_where_test_pictures_were_cut_from_training_pictures_nothing_can_be_had_and_one_line_says_so(
    foreign: Path, tmp_path: Path
) -> None:
    found, said = prepared(with_weights(foreign), tmp_path)
    assert (found.data.validation_from, found.data.test_from) == ("training", "training")
    (line,) = said
    assert "'digits' has no test split of its own" in line and "give a test split" in line and "\n" not in line


def test_a_network_that_is_handed_over_comes_from_elsewhere(archive: Path, ours: Path, tmp_path: Path) -> None:
    model = build_model("family:digits_cnn", num_classes=10, in_channels=1)
    load_weights(model, ours)
    found, _ = prepared(configured(archive, ours), tmp_path, given=Given(model))
    assert found.data.validation_from == "testing"


@pytest.fixture(scope="module")
def stranger_run(archive: Path, foreign: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished search of the network from elsewhere, and what it said."""
    out, recorder = tmp_path_factory.mktemp("stranger") / "run", Recorder()
    run_search(quick(archive, foreign), out, recorder)
    return out, recorder.lines


def quick(archive: Path, weights: Path, **changes: Any) -> Config:
    space = {"precision": ["float32", "w8a8"], "sparsity": [0.0, 0.5]}
    few = {"evaluations": 4, "batch": 4, "finalists": 2, "sampler": "random"}
    return make_config(configured(archive, weights, space=space, search=few, budgets={"error": "+5.0"}, **changes))


def test_the_run_holds_the_digests_of_both_splits_and_they_share_no_picture(
    archive: Path, stranger_run: tuple[Path, list[str]]
) -> None:
    record = json.loads(meta(stranger_run[0], "splits") or "{}")
    with np.load(archive) as file:
        images = file["x_test"]
    assert record["validation"]["from"] == "testing" and not record["is_known"]
    assert record["validation"]["pictures"] + record["test"]["pictures"] == len(images) == 597
    assert len({record[name]["digest"] for name in ("train", "validation", "test")}) == 3


def test_the_error_on_the_whole_test_split_stands_beside_that_of_the_last_reading(
    archive: Path, foreign: Path, stranger_run: tuple[Path, list[str]]
) -> None:
    front = open_front(stranger_run[0])
    with np.load(archive) as file:
        images, labels = file["x_test"], file["y_test"]
    data = read_data(make_config(configured(archive, foreign)), lambda _: None)
    model = build_model("family:digits_cnn", num_classes=10, in_channels=1).eval()
    load_weights(model, foreign)
    with torch.no_grad():
        wrong = model(data.preprocess(images)).argmax(1).numpy() != labels
    assert front.baseline["whole_test_error_pct"] == pytest.approx(100 * wrong.mean(), abs=100 / len(labels) + 1e-6)
    for figures in (front.baseline, *(member.metrics for member in front)):
        assert (figures["whole_test_pictures"], figures["whole_test_compared_pictures"]) == (597, 179)
        whole = (179 * figures["validation_error_pct"] + 418 * figures["error_pct"]) / 597
        assert figures["whole_test_error_pct"] == pytest.approx(whole)
    bound = front.found.budgets["error_pct"]
    assert bound == pytest.approx(front.baseline["error_pct"] + 5.0), "of the pictures that no choice has seen"


def test_the_last_pictures_are_read_once_for_each_final_candidate(stranger_run: tuple[Path, list[str]]) -> None:
    tested = rows(stranger_run[0], "test")
    hashes = [row.key.policy_hash for row in tested]
    assert len(hashes) == len(set(hashes)) and all(row.attempt == 1 for row in tested)


def test_the_report_and_the_terminal_say_on_what_candidates_were_compared(stranger_run: tuple[Path, list[str]]) -> None:
    page = (stranger_run[0] / "report.html").read_text(encoding="utf-8")
    assert "candidates are compared on 179 of the 597 test pictures" in page
    assert "error, whole test split" in page
    assert "the 418 of 597 test pictures on which no candidates were compared" in page
    assert any("179 of the 597 test pictures" in line for line in stranger_run[1])
    assert not any("more than chance" in line for line in stranger_run[1])


def test_a_bundle_is_verified_on_the_same_pictures_without_the_weights(
    stranger_run: tuple[Path, list[str]], tmp_path: Path
) -> None:
    open_front(stranger_run[0]).pick("knee").export(tmp_path / "bundle")
    checks = {check.name: check for check in verify_bundle(tmp_path / "bundle")}
    for name in ("error_pct", "whole_test_error_pct", "validation pictures", "test pictures"):
        assert checks[name].agrees, name
    assert "418 test pictures" in checks["error_pct"].measured
    card = json.loads((tmp_path / "bundle" / "card.json").read_text())
    card["splits"]["test"]["digest"] = "0" * 64
    (tmp_path / "bundle" / "card.json").write_text(json.dumps(card))
    assert [c.agrees for c in verify_bundle(tmp_path / "bundle") if c.name == "test pictures"] == [False]


def test_a_run_goes_on_with_its_split_whatever_its_weights_say_by_then(
    archive: Path, ours: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(ours.read_bytes())
    front = run_search(quick(archive, weights), tmp_path / "run", Recorder())
    before = (tmp_path / "run" / "front.json").read_bytes()
    save_file(load_file(weights), weights)
    assert read_provenance(weights) is None
    assert len(resume(tmp_path / "run")) == len(front)
    assert (tmp_path / "run" / "front.json").read_bytes() == before
    with closing(sqlite3.connect(tmp_path / "run" / "ledger.sqlite")) as ledger, ledger:
        assert ledger.execute("DELETE FROM meta WHERE name = 'splits'").rowcount == 1
    assert len(resume(tmp_path / "run")) == len(front), "as do runs that began before splits were recorded"
    assert json.loads(meta(tmp_path / "run", "splits") or "{}")["validation"]["from"] == "training"
    assert "whole_test_error_pct" not in front.baseline


def test_a_network_that_learned_its_validation_pictures_by_heart_is_told_apart(one_core: None, tmp_path: Path) -> None:
    """Whatever the reason: here labels are random, and the network remembers those it was shown."""
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(400, 1, 8, 8)).astype(np.float32), rng.integers(0, 4, 400)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(256, 4))
    remember(model.eval(), images[:200], labels[:200])
    data = {"train": (images[:200], labels[:200]), "test": (images[200:], labels[200:])}
    settings: dict[str, Any] = {
        "space": {"precision": ["w8", "k16"]},
        "recovery": {"epochs": 0},
        "pool": {"kind": "in-process"},
        "latency": {"screen_seconds": 0.05, "pairs": 50},
        "search": {"sampler": "random", "evaluations": 2, "finalists": 1, "screen_error": 90.0},
    }
    recorder, honest = Recorder(), Recorder()
    front = search(model, data, out=tmp_path / "run", listener=recorder, validation_from="training", **settings)
    assert front.baseline["validation_error_pct"] < 10 < 50 < front.baseline["error_pct"]
    assert sum("more than chance (99.9 %)" in line for line in recorder.lines) == 1
    assert "more than chance (99.9 %)" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    search(model, data, out=tmp_path / "honest", listener=honest, **settings)
    assert not any("more than chance" in line for line in honest.lines)


def remember(model: torch.nn.Module, images: np.ndarray, labels: np.ndarray) -> None:
    """Solve the last layer so that it gives these labels."""
    with torch.no_grad():
        features = model[:3](torch.from_numpy(images))  # type: ignore[index]
        wanted = torch.nn.functional.one_hot(torch.from_numpy(labels), 4).float()
        ones = torch.ones(len(features), 1)
        solved = torch.linalg.lstsq(torch.cat([features, ones], 1), wanted, driver="gelsd").solution
        model[3].weight.copy_(solved[:-1].T)  # type: ignore[index]
        model[3].bias.copy_(solved[-1])  # type: ignore[index]


def test_chance_is_no_drift() -> None:
    record = {"validation": {"pictures": 5_000}, "test": {"pictures": 10_000}}
    assert drift_note({"validation_error_pct": 10.02, "error_pct": 11.4}, record) == ""
    assert "7.90 % of the 5,000" in drift_note({"validation_error_pct": 7.9, "error_pct": 11.8}, record)
    assert drift_note({}, record) == "" and drift_note({"validation_error_pct": 7.9, "error_pct": 11.8}, {}) == ""
