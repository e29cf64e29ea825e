"""A thin deep student on MNIST, without a teacher, with soft targets and with hints first (FitNets, 1412.6550, table 4).

Run by ``make bench-fitnets``. The student has 30,690 parameters in nine convolutions and a linear layer, the teacher (LeNet-5)
431,080 in two of each; the paper's have 30,000 and 361,000. Each network is trained in ``runs/fitnets`` and reads the test
split once; what is there already is not trained again, and what was stopped goes on. The first seed's networks come first.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paretopress.evaluators.accuracy import error_pct
from paretopress.evaluators.data import DataSet, Pictures, SplitSizes
from paretopress.evaluators.models import build_model, load_weights, save_weights
from paretopress.evaluators.sources import load_data
from paretopress.evaluators.training.augment import Augment
from paretopress.evaluators.training.distillation import SoftTargets
from paretopress.evaluators.training.hints import Hint, Hints
from paretopress.evaluators.training.loop import Recipe, train
from paretopress.evaluators.training.teaching import teach
from torch import nn

RUNS = Path(__file__).parents[2] / "runs" / "fitnets"
AUGMENT = Augment(shift=2, rotate=10, scale=0.1)
TEACHER_RECIPE = Recipe(epochs=20, lr=0.05, augment=AUGMENT)
STUDENT = {"side": 28, "resolution": 16, "downsampling": 8, "width": 0.125, "blocks": 3}
SOFT = SoftTargets(temperature=4.0, teacher_weight=0.7)
HINTS = Hints(Hint("layers.4", "conv2", share=1 / 3), SOFT)
METHODS = {"labels": None, "soft": SOFT, "hints": HINTS}
WORDS = {"labels": "labels alone", "soft": "soft targets", "hints": "a hint, then soft targets"}
PUBLISHED_PCT = {"labels": 1.9, "soft": 0.65, "hints": 0.51}
PUBLISHED_TEACHER_PCT = 0.55
BATCH = 500


def recipe(epochs: int) -> Recipe:
    """The student's; the rate of AdamW does not depend on the unit of a loss, which differs from method to method."""
    return Recipe(epochs=epochs, optimizer="adamw", lr=5e-3, augment=AUGMENT)


def teacher_of(data: DataSet) -> tuple[nn.Module, dict[str, Any]]:
    """LeNet-5, trained if it is not there, and its row."""
    model = build_model("family:lenet5", num_classes=10, in_channels=1, seed=0).eval()
    weights, record = RUNS / "teacher.safetensors", RUNS / "teacher.json"
    if weights.is_file():
        load_weights(model, weights)
    else:
        checkpoint = RUNS / "teacher.training.safetensors"
        train(model, data, TEACHER_RECIPE, seed=0, checkpoint=checkpoint, on_epoch=told("teacher"))
        save_weights(model, weights)
        checkpoint.unlink()
    if not record.is_file():
        record.write_text(json.dumps(measured(model, data)))
    return model, json.loads(record.read_text())


def student_row(method: str, seed: int, epochs: int, data: DataSet, teacher: nn.Module) -> dict[str, Any]:
    """Of a student that is trained now, or was before."""
    name = f"{method}-{seed}-{epochs}-{len(data.train)}"
    record, checkpoint = RUNS / f"{name}.json", RUNS / f"{name}.training.safetensors"
    if not record.is_file():
        start = time.process_time()
        model = build_model("family:plain", num_classes=10, in_channels=1, seed=seed, **STUDENT)
        given = {"seed": seed, "checkpoint": checkpoint, "on_epoch": told(name)}
        teaching = METHODS[method]
        if teaching is None:
            train(model, data, recipe(epochs), **given)
        else:
            teach(model, teacher, teaching, data, recipe(epochs), **given)
        trained = {"method": method, "seed": seed, "epochs": epochs, "pictures": len(data.train)}
        row = trained | {"cpu_seconds": time.process_time() - start}
        record.write_text(json.dumps(row | measured(model, data)))
        checkpoint.unlink()
    return json.loads(record.read_text())


def measured(model: nn.Module, data: DataSet) -> dict[str, Any]:
    """Parameters and errors; the one reading of the test split that a network gets."""
    assert data.test is not None
    return {
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "validation_error_pct": _error(model, data, data.validation),
        "test_error_pct": _error(model, data, data.test),
    }


def _error(model: nn.Module, data: DataSet, split: Pictures) -> float:
    with torch.no_grad():
        parts = [model(x).numpy() for x, _ in data.batches(split, BATCH)]
    return error_pct(np.concatenate(parts), split.labels)


def told(name: str) -> Callable[[int, float], None]:
    """Tells of each epoch."""
    return lambda epoch, loss: print(f"{name}: epoch {epoch}, loss {loss:.4f}", file=sys.stderr, flush=True)


def table(rows: list[dict[str, Any]], teacher: dict[str, Any]) -> str:
    """Markdown."""
    return "\n".join(_lines(rows, teacher))


def _lines(rows: list[dict[str, Any]], teacher: dict[str, Any]) -> Iterator[str]:
    yield "| network | parameters | learns from | epochs of pictures | test error of each seed | mean | published |"
    yield "|---|---|---|---|---|---|---|"
    yield (
        f"| teacher, LeNet-5 | {teacher['params']:,} | labels alone | {TEACHER_RECIPE.epochs} of 55,000 |"
        f" {teacher['test_error_pct']:.2f} % | {teacher['test_error_pct']:.2f} % | {PUBLISHED_TEACHER_PCT:.2f} % |"
    )
    for method, words in WORDS.items():
        found = [row for row in rows if row["method"] == method]
        if found:
            errors = [row["test_error_pct"] for row in found]
            each = ", ".join(f"{error:.2f}" for error in errors)
            yield (
                f"| student | {found[0]['params']:,} | {words} | {found[0]['epochs']} of {found[0]['pictures']:,} | {each} % |"
                f" {np.mean(errors):.2f} % | {PUBLISHED_PCT[method]:g} % |"
            )


def main() -> None:
    """Train what is missing, and print the table of what there is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6, help="of each student")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--pictures", type=int, default=55_000, help="that students are trained on; the teacher has all"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    RUNS.mkdir(parents=True, exist_ok=True)
    data = load_data("mnist", sizes=SplitSizes(5000, 256), seed=0)
    teacher, teacher_row = teacher_of(data)
    data = replace(data, train=data.train.take(slice(0, given.pictures)))
    rows = []
    for seed in range(given.seeds):
        for method in METHODS:
            rows.append(student_row(method, seed, given.epochs, data, teacher))
            print(table(rows, teacher_row), flush=True)


if __name__ == "__main__":
    main()
