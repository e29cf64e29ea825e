"""A whole run whose networks are trained as trials of Ray Tune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from paretopress.search import api
from paretopress.search.config import make_config
from paretopress.search.progress import Silence
from paretopress.tests.search.runs import front_of, rows, small

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


def test_trainings_as_trials_give_the_front_that_the_pool_gives(foreign_ray: None, tmp_path: Path) -> None:
    by_pool = found(tmp_path / "pool", {"kind": "in-process"})
    by_trials = found(tmp_path / "tune", {"kind": "ray", "train": "tune"})
    assert by_trials == by_pool
    assert [state for state, *_ in by_pool[1].values()] == ["done"]
    assert not (tmp_path / "tune" / "trials").exists(), "what trials kept is removed when all is recorded"
