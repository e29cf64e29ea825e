"""Microseconds of each node of ResNet-20 in ONNX Runtime: float32, 8 bit, and 8 bit at half the channels; JSON on stdout.

Run by ``make bench-kernels``. The profiler adds about 3 us to each node; the figures are for comparing nodes, not sums.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from paretopress.evaluators.latency import LatencyProbe
from paretopress.evaluators.models import build_model
from paretopress.evaluators.runtime import session_options
from paretopress.policies.apply import apply_plan
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step

RUNS = 300
EIGHT_BIT = Step.of("quantize", bits=8, activations="int8")
SEVEN_BIT = Step.of("quantize", bits=7, activations="int8")
HALF = Step.of("prune_channels", sparsity=0.5)


def policies(graph: ModelGraph) -> Mapping[str, Policy]:
    """The networks that are compared."""
    roots = {group.root for group in graph.groups if group.refusal is None}
    return {
        "float32": Policy(),
        "int8": Policy(dict.fromkeys(graph.layers, (EIGHT_BIT,))),
        "int7": Policy(dict.fromkeys(graph.layers, (SEVEN_BIT,))),
        "int7_half_channels": Policy({n: (SEVEN_BIT, HALF) if n in roots else (SEVEN_BIT,) for n in graph.layers}),
        "int8_half_channels": Policy({n: (EIGHT_BIT, HALF) if n in roots else (EIGHT_BIT,) for n in graph.layers}),
    }


def node_us(onnx: bytes, x: np.ndarray) -> dict[str, float]:
    """The 20th percentile of each node's time over many runs at one thread."""
    options = session_options()
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as directory:
        options.profile_file_prefix = str(Path(directory) / "profile")
        session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        for _ in range(RUNS):
            session.run(None, {"input": x})
        events = json.loads(Path(session.end_profiling()).read_text())
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"])
    return {name: float(np.percentile(values, 20)) for name, values in times.items()}


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    model = build_model("family:resnet20", seed=0).eval()
    x = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    graph = ModelGraph.trace(model, x[:1])
    probe = LatencyProbe(export_onnx(model, x[:1], calibration=None), x[:1].numpy(), 1)
    table = {}
    for name, policy in policies(graph).items():
        compressed = apply_plan(make_plan(policy, graph), graph, model, x)
        onnx = export_onnx(compressed.model, x[:1], calibration=x)
        latency = probe.measure(onnx, pairs=150, seed=0)
        table[name] = {
            "latency_ratio": latency.ratio,
            "latency_ratio_ci95": latency.interval,
            "node_us": node_us(onnx, x[:1].numpy()),
        }
    print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
