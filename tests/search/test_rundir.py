from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from paretopress.policies.errors import ConfigError, RunDirectoryError
from paretopress.search.config import make_config
from paretopress.search.ledger import Ledger
from paretopress.search.rundir import (
    RunDirectory,
    discard_unused,
    find_run,
    open_run,
    read_json,
    sha256,
    write_environment,
)

CONFIG = make_config({"model": {"name": "family:digits_cnn", "train": {"epochs": 1}}, "budgets": {"error": "+1.0"}})


def test_a_new_run_holds_its_resolved_configuration(tmp_path: Path) -> None:
    run = open_run(tmp_path / "runs" / "new", CONFIG)
    assert yaml.safe_load(run.config.read_text())["search"]["evaluations"] == 100
    assert find_run(run.path) == (run, CONFIG)


def test_an_empty_directory_becomes_a_run(tmp_path: Path) -> None:
    assert open_run(tmp_path, CONFIG).config.is_file()


def test_the_run_of_the_same_configuration_is_taken_up(tmp_path: Path) -> None:
    run = open_run(tmp_path, CONFIG)
    (run.path / "ledger.sqlite").write_text("precious")
    before = run.config.read_bytes()
    assert open_run(tmp_path, make_config(CONFIG.model_dump())) == run
    assert run.config.read_bytes() == before and (run.path / "ledger.sqlite").read_text() == "precious"


def test_a_run_of_another_configuration_is_refused_and_left_alone(tmp_path: Path) -> None:
    run = open_run(tmp_path, CONFIG)
    before = run.config.read_bytes()
    other = make_config(CONFIG.model_dump(), ("seed=3", "budgets.stored=9kB", "model.train.epochs=2"))
    with pytest.raises(RunDirectoryError) as caught:
        open_run(tmp_path, other)
    assert "another configuration; differing: budgets.stored, model.train.epochs, seed. Choose another --out" in str(
        caught.value
    )
    assert run.config.read_bytes() == before


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RunDirectoryError, match="exists and holds no run; expected a new or empty directory"):
        open_run(tmp_path, CONFIG)
    with pytest.raises(RunDirectoryError, match="exists and holds no run"):
        open_run(tmp_path / "thesis.tex", CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"cannot make .*: Not a directory; choose another --out"):
        open_run(tmp_path / "file" / "run", CONFIG)


@pytest.mark.parametrize("text", ["model: [", "", "model: {name: my:net}\nunknown: 3"])
def test_a_damaged_configuration_of_a_run_is_refused(text: str, tmp_path: Path) -> None:
    run = open_run(tmp_path, CONFIG)
    run.config.write_text(text)
    for take_up in (lambda: open_run(tmp_path, CONFIG), lambda: find_run(tmp_path)):
        with pytest.raises(ConfigError):
            take_up()


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_directory_without_a_run_says_what_was_expected(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"is no run directory: expected config\.yaml in it"):
        find_run(tmp_path / name)


def test_a_run_that_could_not_begin_leaves_its_directory_free(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", CONFIG)
    with Ledger(run.path):
        pass
    discard_unused(run)
    assert not run.path.exists()


@pytest.mark.parametrize("name", ["dense.safetensors", "training.safetensors", "front.json", "notes.txt"])
def test_a_run_that_holds_more_is_never_discarded(name: str, tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", CONFIG)
    (run.path / name).write_text("x")
    discard_unused(run)
    assert run.config.is_file() and (run.path / name).is_file()


def test_the_environment_says_versions_machine_threads_and_seeds(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    environment = write_environment(run, threads=1, workers=2, seed=3)
    assert read_json(run.environment) == environment
    assert environment["versions"]["torch"].startswith("2.") and environment["versions"]["paretopress"] == "0.1.0"
    assert (environment["threads_per_worker"], environment["workers"], environment["seed"]) == (1, 2, 3)
    assert environment["cpu"] and environment["cores"] >= 1 and environment["memory_bytes"] > 0
    assert str(Path.home()) not in run.environment.read_text(), "it names no place of this machine"


def test_paths_lie_in_the_run(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.policy("0a1b") == tmp_path / "policies" / "0a1b.yaml"
    assert run.artefact("0a1b", "model.onnx") == tmp_path / "artefacts" / "0a1b" / "model.onnx"
    assert {path.name for path in (run.front, run.report, run.environment)} == {
        "front.json",
        "report.html",
        "environment.json",
    }


def test_damaged_json_says_what_writes_it_again(tmp_path: Path) -> None:
    path = tmp_path / "front.json"
    path.write_text(json.dumps({"a": 1})[:-1])
    with pytest.raises(RunDirectoryError, match="'paretopress resume' writes it again"):
        read_json(path)


def test_sha256_is_that_of_the_standard() -> None:
    assert sha256(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
