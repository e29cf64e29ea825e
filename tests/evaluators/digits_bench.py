"""A trained network on scikit-learn's digits and all that a worker needs beside it."""

from __future__ import annotations

from typing import Any

import torch
from paretopress.evaluators.data import SplitSizes
from paretopress.evaluators.sources import load_data
from paretopress.evaluators.training.loop import Recipe, train
from paretopress.evaluators.workbench import Settings, Workbench
from paretopress.policies.architectures import DigitsCNN
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.graph import ModelGraph
from paretopress.policies.policy import Policy, Step

TIMED = ("latency_ms", "latency_ratio", "latency_ratio_ci95_low", "latency_ratio_ci95_high")
MIXED = Policy(
    {
        "conv1": (Step.of("quantize", bits=8, activations="int8"),),
        "conv2": (Step.of("prune_magnitude", sparsity=0.5), Step.of("quantize", bits=4)),
        "fc1": (Step.of("prune_magnitude", sparsity=0.8), Step.of("share", clusters=8)),
        "fc2": (Step.of("svd", rank=6),),
    }
)


def make_bench(epochs: int = 4, **settings: Any) -> Workbench:
    """With a recovery of so many epochs, half of them for pruning."""
    data = load_data("digits", sizes=SplitSizes(100, 64, 100), seed=0, limit=400)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DigitsCNN()
    train(model, data, Recipe(epochs=3, batch_size=16, lr=0.02), seed=0)
    example = data.preprocess(data.calibration.images[:1])
    recovery = Recipe(epochs=epochs, batch_size=32, optimizer="adamw", lr=2e-3)
    given = {"screen_pictures": 100, "screen_seconds": 0.02, "prune_share": 0.5, **settings}
    reference = export_onnx(model, example, calibration=None)
    graph = ModelGraph.trace(model, example)
    return Workbench(model, graph, data.without_test(), reference, Settings(recovery=recovery, **given))


def untimed(metrics: dict[str, Any]) -> dict[str, Any]:
    """What does not depend on the clock."""
    return {name: value for name, value in metrics.items() if name not in TIMED}
