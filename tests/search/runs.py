"""Small runs on scikit-learn's digits that several test files use."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import yaml
from paretopress.search.ledger import Evaluation, Ledger

SMALL: dict[str, Any] = {
    "model": {"name": "family:digits_cnn", "train": {"epochs": 4, "batch_size": 64, "lr": 0.05}},
    "data": {"name": "digits", "validation": 0.15, "calibration": 64},
    "budgets": {"error": "+5.0", "stored": "100kB", "latency": "1.5x"},
    "space": {"precision": ["float32", "w8a8", "k16"], "sparsity": [0.0, 0.5], "channels": [1.0, 0.5]},
    "search": {"evaluations": 10, "batch": 4, "finalists": 2},
    "recovery": {"epochs": 1, "batch_size": 64},
    "latency": {"screen_seconds": 0.05, "pairs": 100},
    "pool": {"kind": "in-process"},
}


def small(**changes: Any) -> dict[str, Any]:
    """The small run's configuration; ``section__key=value`` changes a value, ``section=value`` a whole section."""
    config = copy.deepcopy(SMALL)
    for name, value in changes.items():
        section, _, key = name.partition("__")
        if key:
            config[section] = {**config.get(section, {}), key: value}
        else:
            config[section] = value
    return config


def with_weights(weights: Path, **changes: Any) -> dict[str, Any]:
    """The small run's configuration with trained weights in place of the recipe."""
    return small(**{"model": {"name": "family:digits_cnn", "weights": str(weights)}, **changes})


def few_variants(weights: Path, **changes: Any) -> dict[str, Any]:
    """A configuration whose bank is built in seconds: four variants of each of four layers."""
    quick = {
        "space": {"precision": ["float32", "w8a8"], "sparsity": [0.0, 0.5]},
        "recovery__epochs": 0,
        "search__evaluations": 6,
    }
    return with_weights(weights, **{**quick, **changes})


def write_config(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def rows(run: Path, fidelity: str | None = None) -> list[Evaluation]:
    with Ledger.read(run) as ledger:
        return ledger.rows(fidelity)


def meta(run: Path, name: str) -> str | None:
    with Ledger.read(run) as ledger:
        return ledger.meta(name)


def front_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "front.json").read_text(encoding="utf-8"))
    return content
