from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml
from paretopress.policies.errors import ConfigError, RunDirectoryError
from paretopress.policies.policy import Policy
from paretopress.search.config import Config, make_config
from paretopress.search.ledger import EvaluationKey, Ledger
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


def changed(*changes: str) -> Config:
    return make_config(CONFIG.model_dump(), changes)


def measure(run: RunDirectory, origin: str = "sampler") -> None:
    """Record an evaluation."""
    key = EvaluationKey(Policy().digest, "screen", "0" * 64, 0, "0.1.0")
    with Ledger(run.path) as ledger:
        ledger.register(key, Policy().to_json(), origin)
        ledger.complete(ledger.lease(key, time.time()), {"error_pct": 1.0}, {}, {}, "here", {})


def test_a_run_of_another_configuration_is_refused_and_left_alone(tmp_path: Path) -> None:
    run = open_run(tmp_path, CONFIG)
    measure(run)
    before = run.config.read_bytes()
    with pytest.raises(RunDirectoryError) as caught:
        open_run(tmp_path, changed("seed=3", "budgets.stored=9kB", "model.train.epochs=2", "pool.workers=1"))
    assert "another configuration; differing: budgets.stored, model.train.epochs, seed. Choose another --out" in str(
        caught.value
    )
    assert run.config.read_bytes() == before


def test_a_run_goes_on_with_another_pool(tmp_path: Path) -> None:
    run = open_run(tmp_path, CONFIG)
    measure(run)
    open_run(tmp_path, changed("pool.kind=ray", "pool.workers=1"))
    found = find_run(tmp_path)[1].pool
    assert (found.kind, found.workers) == ("ray", 1)
    with Ledger.read(tmp_path) as ledger:
        assert ledger.rows(state="done")


def begun(path: Path) -> RunDirectory:
    """A run that trained its network, wrote what comes before the search, and measured the dense network alone."""
    run = open_run(path, CONFIG)
    measure(run, "dense")
    for name in ("environment.json", "reference.onnx", "report.html", "dense.safetensors", "training.safetensors"):
        (path / name).write_text(name)
    (path / "trials" / "dense").mkdir(parents=True)
    return run


def test_a_run_that_measured_nothing_goes_on_with_another_configuration_and_its_trained_weights(tmp_path: Path) -> None:
    run, said = begun(tmp_path), []
    open_run(tmp_path, changed("exits.lr=0.01", "search.evaluations=7"), said.append)
    assert find_run(tmp_path)[1].search.evaluations == 7
    assert run.weights.read_text() == "dense.safetensors" and (run.trials / "dense").is_dir()
    assert said == [
        f"{tmp_path} holds a run that measured nothing; it goes on with another exits.lr, search.evaluations"
    ]
    with Ledger(tmp_path) as ledger:
        assert not ledger.rows() and ledger.meta("context") is None


def test_trained_weights_of_another_recipe_are_kept_aside_and_unfinished_ones_removed(tmp_path: Path) -> None:
    run, said = begun(tmp_path), []
    open_run(tmp_path, changed("model.train.epochs=2"), said.append)
    assert not run.weights.exists() and (tmp_path / "dense-1.safetensors").read_text() == "dense.safetensors"
    assert not (tmp_path / "training.safetensors").exists() and not (run.trials / "dense").exists()
    assert said[1:] == [f"{run.weights} is of another recipe; it is kept as dense-1.safetensors"]
    run.weights.write_text("second")
    open_run(tmp_path, changed("model.train.epochs=3"))
    assert sorted(path.name for path in tmp_path.glob("dense*")) == ["dense-1.safetensors", "dense-2.safetensors"]


def test_a_run_that_another_driver_works_on_is_not_taken_over(tmp_path: Path) -> None:
    run = begun(tmp_path)
    before = run.config.read_bytes()
    with Ledger(tmp_path), pytest.raises(RunDirectoryError, match="another driver is working on"):
        open_run(tmp_path, changed("seed=3"))
    assert run.config.read_bytes() == before and run.weights.is_file()


def test_a_finished_run_that_lost_its_ledger_is_not_taken_over(tmp_path: Path) -> None:
    run = open_run(tmp_path, CONFIG)
    run.front.write_text("{}")
    with pytest.raises(RunDirectoryError, match="holds a run of another configuration"):
        open_run(tmp_path, changed("seed=3"))


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
        with pytest.raises(ConfigError) as caught:
            take_up()
        assert str(run.config) in str(caught.value)


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
    assert "session.x64quantprecision" in environment["session_options"], "which its latencies were measured with"
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
