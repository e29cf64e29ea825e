"""A whole run whose networks are trained as trials of Ray Tune."""

from __future__ import annotations

import math
import pickle
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import pytest
import torch
from paretopress.evaluators import cores
from paretopress.evaluators.pool import Job
from paretopress.evaluators.provenance import Provenance, read_provenance
from paretopress.evaluators.training.task import TrainingTask
from paretopress.policies.errors import CandidateError
from paretopress.search import api, driver
from paretopress.search.config import make_config
from paretopress.search.progress import Silence
from paretopress.search.rundir import RunDirectory
from paretopress.search.trainings import train_network
from paretopress.tests.search.runs import front_of, rows, small
from torch import nn

pytestmark = pytest.mark.usefixtures("one_core")

QUICK: dict[str, Any] = {
    "model": {"name": "family:digits_cnn", "train": {"epochs": 2, "batch_size": 16, "lr": 0.02}},
    "data": {"name": "digits", "validation": 100, "calibration": 64, "limit": 400},
    "budgets": {"error": "+50.0"},
    "space": {"precision": ["float32", "w8a8"], "sparsity": [0.0, 0.5]},
    "search": {"sampler": "random", "evaluations": 3, "batch": 3, "finalists": 1, "objectives": ["error", "stored"]},
    "recovery": {"epochs": 2, "batch_size": 32, "tryout": 0.0},
}


def found(out: Path, pool: dict[str, Any]) -> tuple[Any, Any, bytes]:
    """The front, what was recorded of the recoveries, the dense network: nothing in them depends on the clock."""
    api.run_search(make_config(small(**QUICK, pool=pool)), out, Silence())
    members = front_of(out)["front"]
    figures = [(m["id"], m["feasible"], m["metrics"]["error_pct"], m["metrics"]["stored_bytes"]) for m in members]
    recovered = {r.key.policy_hash: (r.state, r.artefacts, r.values["error_pct"]) for r in rows(out, "recover")}
    return figures, recovered, (out / "dense.safetensors").read_bytes()


def test_a_stage_that_ends_leaves_what_other_stages_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recovery that was killed must find its states after the learning that the resumed run begins with."""
    run = RunDirectory(tmp_path)
    for stage in ("learn", "recover"):
        (run.trials / stage / "trial").mkdir(parents=True)
    session = SimpleNamespace(config=make_config(small(**QUICK)), run=run, prepared=MagicMock(), ledger=MagicMock())
    monkeypatch.setattr(driver, "TunePool", MagicMock())
    monkeypatch.setattr(driver, "Banking", MagicMock())
    with driver.training(cast(Any, session), "learn") as dispatcher:
        epochs = session.config.space.learned.epochs
        assert dispatcher.as_long_as["learn"] == ("", epochs), "a training takes longer the more epochs it has"
    assert not (run.trials / "learn").exists() and (run.trials / "recover" / "trial").is_dir()


@pytest.mark.parametrize("fails", [False, True])
def test_the_driver_trains_with_every_core_and_gives_the_workers_threads_back(
    tmp_path: Path, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cores, "available_cores", lambda: 3)
    seen, before = [], torch.get_num_threads()

    def carry_out(*_: Any) -> None:
        seen.append(torch.get_num_threads())
        if fails:
            raise CandidateError("it diverged")

    task, run = TrainingTask(nn.Linear(1, 1), carry_out, 1), RunDirectory(tmp_path)
    with pytest.raises(CandidateError) if fails else nullcontext():
        train_network(task, tmp_path / "w.safetensors", tmp_path / "state", make_config(small()).pool, run, print)
    assert seen == [3] and torch.get_num_threads() == before


def test_weights_trained_as_a_trial_say_the_same_of_their_training(tmp_path: Path) -> None:
    metadata = Provenance({"seed": 1}, ("a" * 64,), ("b" * 64,)).metadata()
    task = pickle.loads(pickle.dumps(TrainingTask(nn.Linear(1, 1), _nothing, 1, metadata)))
    (tmp_path / "w.safetensors").write_bytes(task()(Job("dense", "{}", "dense", math.inf))["weights"])
    train_network(
        task, tmp_path / "v.safetensors", tmp_path / "state", make_config(small()).pool, RunDirectory(tmp_path), print
    )
    files = [(tmp_path / f"{name}.safetensors") for name in "wv"]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert read_provenance(files[0]) == Provenance({"seed": 1}, ("a" * 64,), ("b" * 64,))


def _nothing(*_: Any) -> None:
    """Train nothing."""


def test_trainings_as_trials_give_the_front_that_the_pool_gives(foreign_ray: None, tmp_path: Path) -> None:
    by_pool = found(tmp_path / "pool", {"kind": "in-process"})
    by_trials = found(tmp_path / "tune", {"kind": "ray", "train": "tune"})
    assert by_trials == by_pool
    assert [state for state, *_ in by_pool[1].values()] == ["done"]
    assert not (tmp_path / "tune" / "trials").exists(), "what trials kept is removed when all is recorded"
