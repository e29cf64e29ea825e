"""The command that gives a network early exits."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paretopress.evaluators import sources
from paretopress.evaluators.data import DataSet, Pictures
from paretopress.evaluators.exits import run_exits
from paretopress.evaluators.runtime import session
from paretopress.policies.errors import CandidateError, RunDirectoryError
from paretopress.search import early_exits, prepare
from paretopress.search.api import resume
from paretopress.search.cli import run
from paretopress.search.prepare import read_data
from paretopress.search.rundir import find_run
from paretopress.tests.search.runs import rows, with_weights, write_config

SETTINGS = {"count": 2, "epochs": 1, "batch_size": 64, "members": 3}


def exits(weights: Path, directory: Path, **changes: Any) -> tuple[int, dict[str, Any], str]:
    config = with_weights(weights, exits={**SETTINGS, **changes})
    path = write_config(directory / "exits.yaml", config)
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        code = run(["exits", str(path), "--out", str(directory / "run"), "--json"])
    return code, json.loads(stdout.getvalue() or "{}"), stderr.getvalue()


@pytest.fixture(scope="module")
def found(one_core: None, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    directory = tmp_path_factory.mktemp("exits")
    code, summary, errors = exits(trained, directory)
    assert code == 0, errors
    return directory / "run", summary


def test_less_latency_is_paid_for_with_error_along_the_curve(found) -> None:
    _, summary = found
    latency = [point["expected_latency_ratio"] for point in summary["curve"]]
    error = [point["error_pct"] for point in summary["curve"]]
    assert latency == sorted(latency)
    assert error == sorted(error, reverse=True)
    assert 1 <= len(summary["members"]) <= 3


def test_the_figures_are_those_of_the_exported_file(found) -> None:
    path, summary = found
    run_directory, config = find_run(path)
    data = read_data(config, lambda _: None)
    assert data.test is not None
    member = summary["members"][-1]
    file = run_directory.artefact(member["id"], "model.onnx").read_bytes()
    logits, taken = run_exits(session(file), data.preprocess(data.test.images).numpy())
    assert member["metrics"]["error_pct"] == pytest.approx(100 * np.mean(logits.argmax(1) != data.test.labels))
    assert member["metrics"]["share_0"] == pytest.approx(np.mean(taken == 0))


def test_the_test_pictures_are_read_once_for_each_file(found) -> None:
    path, summary = found
    recorded = rows(path, "exits")
    assert {row.key.policy_hash[:12] for row in recorded} == {member["id"] for member in summary["members"]}
    assert all(row.state == "done" and row.attempt == 1 for row in recorded)


def test_doing_it_again_measures_nothing_again(found) -> None:
    path, summary = found
    before = {row.key.policy_hash: row.values for row in rows(path, "exits")}
    code = run(["exits", str(path.parent / "exits.yaml"), "--out", str(path)])
    assert code == 0
    assert {row.key.policy_hash: row.values for row in rows(path, "exits")} == before
    assert json.loads((path / "exits.json").read_text()) == {k: v for k, v in summary.items() if k != "exits"}


def test_exits_follow_from_the_seed_alone(found, trained: Path, tmp_path: Path) -> None:
    """Not from what the process has drawn before, nor from how their places were found."""
    path, summary = found
    torch.rand(7)
    code, _, errors = exits(trained, tmp_path, after=summary["after"], count=len(summary["after"]))
    assert code == 0, errors
    assert (tmp_path / "run" / "exits.safetensors").read_bytes() == (path / "exits.safetensors").read_bytes()


def test_a_test_that_failed_is_made_again(trained: Path, tmp_path: Path, one_core: None, monkeypatch) -> None:
    def broken(*_: Any) -> None:
        raise CandidateError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(early_exits, "run_exits", broken)
        code, _, errors = exits(trained, tmp_path)
        assert code and "no memory" in errors
    code, summary, errors = exits(trained, tmp_path)
    assert code == 0, errors
    assert all("error_pct" in member["metrics"] for member in summary["members"])


def test_agreement_is_learned_from_the_dense_networks_answers(
    trained: Path, tmp_path: Path, one_core: None, monkeypatch
) -> None:
    """Labels may mean nothing to the network: exits that learned from shuffled ones are as good."""
    plain = sources.load_data

    def shuffled(*args: Any, **options: Any) -> DataSet:
        data = plain(*args, **options)
        labels = np.random.default_rng(0).permutation(data.train.labels)
        return replace(data, train=Pictures(data.train.images, labels))

    def first_exit(directory: Path) -> float:
        directory.mkdir()
        config = with_weights(trained, exits=SETTINGS, quality="agreement")
        path = write_config(directory / "exits.yaml", config)
        assert run(["exits", str(path), "--out", str(directory / "run")]) == 0
        return float(json.loads((directory / "run" / "exits.json").read_text())["curve"][0]["error_pct"])

    right = first_exit(tmp_path / "right")
    monkeypatch.setattr(prepare, "load_data", shuffled)
    assert first_exit(tmp_path / "shuffled") == right


def test_a_directory_of_exits_alone_is_resumed_as_such(found, capsys: pytest.CaptureFixture[str]) -> None:
    path, summary = found
    assert run(["resume", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == summary
    assert not rows(path, "screen")
    with pytest.raises(RunDirectoryError, match="holds what 'exits' made and no search"):
        resume(path)


def test_fewer_exits_than_were_asked_for_are_told_of(found, trained: Path) -> None:
    path, summary = found
    code, again, errors = exits(trained, path.parent)
    assert code == 0 and again == summary and len(summary["after"]) == 1
    assert "exits.count: 1 of 2 exits can be placed, at modules of different cost before 90% of" in " ".join(
        errors.split()
    )


def test_the_page_names_every_member_and_loads_nothing(found) -> None:
    path, summary = found
    page = (path / "exits.html").read_text()
    assert all(member["id"] in page for member in summary["members"])
    assert "https://" not in page.split("<script>")[0]


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (["conv1", "conv1"], "exits.after: one exit stands behind a module; conv1 is named more than once"),
        ([""], "exits.after: expected names of modules, got an empty one"),
        (["conv1", "fc2"], "exits.after: nothing is saved behind fc2, where the whole network has been run; expected"),
    ],
)
def test_exits_that_save_nothing_are_refused(
    after: list[str], message: str, trained: Path, tmp_path: Path, one_core: None
) -> None:
    code, _, errors = exits(trained, tmp_path, after=after)
    assert code == 2
    assert message in " ".join(errors.split())


def test_a_module_that_cannot_have_an_exit_is_refused(trained: Path, tmp_path: Path, one_core: None) -> None:
    code, _, errors = exits(trained, tmp_path, after=["nowhere"])
    assert code == 2
    assert "exits.after: expected modules that are called once" in " ".join(errors.split())
