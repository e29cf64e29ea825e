"""A whole run whose finalists are recovered as trials of Ray Tune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from paretopress.search import api
from paretopress.search.config import make_config
from paretopress.search.progress import Silence
from paretopress.tests.search.runs import front_of, rows, with_weights

pytestmark = pytest.mark.usefixtures("one_core")

QUICK: dict[str, Any] = {
    "budgets": {"error": "+30.0"},
    "space": {"precision": ["float32", "w8a8"], "sparsity": [0.0, 0.5]},
    "search": {"sampler": "random", "evaluations": 4, "batch": 4, "finalists": 2, "objectives": ["error", "stored"]},
    "recovery": {"epochs": 2, "batch_size": 64, "tryout": 0.0},
}


def found(out: Path, weights: Path, pool: dict[str, Any]) -> tuple[Any, Any]:
    """The front, and what was recorded of the recoveries; nothing in either depends on the clock."""
    api.run_search(make_config(with_weights(weights, **QUICK, pool=pool)), out, Silence())
    members = [
        (m["id"], m["feasible"], m["metrics"]["error_pct"], m["metrics"]["stored_bytes"])
        for m in front_of(out)["front"]
    ]
    recovered = {
        row.key.policy_hash: (row.state, row.artefacts, row.values["error_pct"]) for row in rows(out, "recover")
    }
    return members, recovered


def test_trainings_as_trials_give_the_front_that_the_pool_gives(trained: Path, tmp_path: Path) -> None:
    by_pool = found(tmp_path / "pool", trained, {"kind": "in-process"})
    by_trials = found(tmp_path / "tune", trained, {"kind": "ray", "train": "tune"})
    assert by_trials == by_pool
    assert len(by_pool[1]) == 2 and {state for state, *_ in by_pool[1].values()} == {"done"}
    assert not (tmp_path / "tune" / "trials").exists(), "what trials kept is removed when all is recorded"
