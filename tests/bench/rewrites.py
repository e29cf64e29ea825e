"""What rewrites of one or two layers cost a trained network before and after a short recovery, as lines of JSON.

nice -n 19 python -m paretopress.tests.bench.rewrites lenet5 --weights FILE --out runs/rewrites.jsonl

A line says the test error in per cent with the layers fitted to their weights alone, to their outputs, and after the recovery
with the dense network as the teacher, and the parameters and multiply-accumulates of the whole network beside the dense one's.
Lines that the file has are not measured again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paretopress.evaluators.accuracy import error_pct
from paretopress.evaluators.data import DataSet
from paretopress.evaluators.macs import profile
from paretopress.evaluators.models import build_model, load_weights
from paretopress.evaluators.sources import load_data
from paretopress.evaluators.training.augment import Augment
from paretopress.evaluators.training.distillation import distillation
from paretopress.evaluators.training.loop import Recipe, train
from paretopress.policies.apply import apply_plan
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy
from paretopress.spaces.steps import rewrite_steps
from torch import nn

CALIBRATION = 256
RESNET = ("layer3.1.conv1", "layer3.2.conv1")


@dataclass(frozen=True)
class Setting:
    """A network, its data, which rewrites of which layers, and the recovery with its number of training pictures."""

    data: str
    rewrites: dict[str, dict[str, str]]
    recipe: Recipe
    pictures: int


SETTINGS = {
    "lenet5": Setting(
        "mnist",
        {
            **{f"conv2 {word}": {"conv2": word} for word in ("separable", "stacked", "asymmetric", "flattened")},
            "fc1 pooled": {"fc1": "pooled"},
            "conv2 stacked, fc1 pooled": {"conv2": "stacked", "fc1": "pooled"},
        },
        Recipe(epochs=2, lr=0.01, augment=Augment(shift=2)),
        60_000,
    ),
    "resnet20": Setting(
        "cifar10",
        {
            f"{' and '.join(RESNET)} {word}": dict.fromkeys(RESNET, word)
            for word in ("separable", "asymmetric", "flattened")
        },
        Recipe(epochs=2, lr=0.01, augment=Augment(shift=4, flip=True)),
        5_000,
    ),
}


def main() -> None:
    """Measure what the file has not."""
    parser = argparse.ArgumentParser(prog="paretopress.tests.bench.rewrites", description=__doc__)
    parser.add_argument("network", choices=list(SETTINGS))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/rewrites.jsonl"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    setting, data = SETTINGS[given.network], load_data(SETTINGS[given.network].data)
    model = build_model(f"family:{given.network}")
    load_weights(model, given.weights)
    lines = given.out.read_text().splitlines() if given.out.is_file() else []
    known = {(line["network"], line["rewrite"]) for line in map(json.loads, lines)}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for name, layers in setting.rewrites.items():
        if (given.network, name) in known:
            continue
        found = {"network": given.network, "rewrite": name, **measured(model.eval(), data, setting, layers)}
        with given.out.open("a") as file:
            file.write(json.dumps(found) + "\n")


def measured(model: nn.Module, data: DataSet, setting: Setting, layers: dict[str, str]) -> dict[str, Any]:
    """The figures of one line."""
    pictures = data.preprocess(data.train.images[:CALIBRATION])
    graph = ModelGraph.trace(model, pictures[:1])
    pairs = {name: rewrite_steps(graph.layers[name], word) for name, word in layers.items()}
    errors = {"dense": _error(model, data)}
    for place, fit in enumerate(("weights", "outputs")):
        policy = Policy({name: (pair[place],) for name, pair in pairs.items() if pair is not None})
        compressed = apply_plan(make_plan(policy, graph), graph, model, pictures)
        errors[fit] = _error(compressed.model, data)
    before, after = profile(model, pictures[:1]), profile(compressed.plain(), pictures[:1])
    few = DataSet(**{**vars(data), "train": data.train.take(slice(0, setting.pictures))})
    train(compressed.model.requires_grad_(True), few, setting.recipe, seed=0, loss=distillation(model, 4.0, 0.7))
    errors["recovered"] = _error(compressed.model, data)
    ratios = {"params": after.params / before.params, "macs": after.macs / before.macs}
    return {f"error_pct_{kind}": round(error, 2) for kind, error in errors.items()} | {
        f"{kind}_ratio": round(ratio, 4) for kind, ratio in ratios.items()
    }


def _error(model: nn.Module, data: DataSet) -> float:
    assert data.test is not None
    with torch.no_grad():
        found = [model.eval()(x).numpy() for x, _ in data.batches(data.test, 250)]
    return error_pct(np.concatenate(found), data.test.labels)


if __name__ == "__main__":
    main()
