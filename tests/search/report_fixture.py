"""Made-up but plausible runs to draw reports from."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from paretopress.search.report import ReportData

LENET = (
    ("conv1", "conv2d", (20, 1, 5, 5)),
    ("conv2", "conv2d", (50, 20, 5, 5)),
    ("fc1", "linear", (500, 800)),
    ("fc2", "linear", (10, 500)),
)
DENSE_BYTES, DENSE_ERROR, DENSE_MS = 1_724_320.0, 0.84, 0.412
DENSE_MACS, DENSE_PARAMS, DENSE_MEMORY, DENSE_ENERGY = 2_293_000.0, 431_080.0, 58_240.0, 301.4


def layers(count: int = 4) -> list[dict[str, Any]]:
    """LeNet-5's layers, or ``count`` convolutions of a deeper network."""
    if count == 4:
        shapes: list[tuple[str, str, tuple[int, ...]]] = list(LENET)
    else:
        widths = [16 * 2 ** (3 * i // count) for i in range(count + 1)]
        shapes = [(f"layer{i // 8}.{i % 8}.conv", "conv2d", (widths[i + 1], widths[i], 3, 3)) for i in range(count)]
    return [{"name": n, "kind": k, "weights": _product(s), "shape": list(s)} for n, k, s in shapes]


def policy(rng: random.Random, network: list[dict[str, Any]], strength: float, uniform: bool = False) -> dict[str, Any]:
    """A policy; ``strength`` from 0 (mild) to 1 (harsh)."""
    out: dict[str, Any] = {}
    for i, layer in enumerate(network):
        jitter = 0.0 if uniform else rng.uniform(-0.3, 0.3)
        harsh = min(1.0, max(0.0, strength + jitter))
        steps: list[dict[str, Any]] = [{"prune_magnitude": {"sparsity": round(0.5 + 0.48 * harsh, 3)}}]
        steps.append(
            {"quantize": {"bits": 8, "activations": "int8"}}
            if harsh < 0.6
            else {"share": {"clusters": 2 ** (7 - int(5 * harsh))}}
        )
        if not uniform and layer["kind"] == "linear" and harsh > 0.5:
            steps.append({"svd": {"rank": max(4, int(min(layer["shape"]) * 0.4 * (1 - harsh)) + 4)}})
        if not uniform and layer["kind"] == "conv2d" and layer["shape"][0] >= 32 and i % 2:
            steps.append({"prune_channels": {"sparsity": round(0.6 * harsh, 2), "multiple": 8}})
        elif not uniform and layer["kind"] == "conv2d" and i % 5 == 3:
            steps.append({"tucker2": {"rank_in": max(2, layer["shape"][1] // 2), "rank_out": layer["shape"][0] // 2}})
        if i or not uniform:
            out[layer["name"]] = steps
    return {"version": 1, "layers": out}


def metrics(rng: random.Random, strength: float, penalty: float, share: float = 1.0) -> dict[str, Any]:
    """Figures that a policy of this strength might have; ``penalty`` is added to the error."""
    error = DENSE_ERROR + penalty + 1.8 * strength**5 + rng.uniform(-0.04, 0.08)
    stored = DENSE_BYTES / (9 + 70 * strength * share) * rng.uniform(0.92, 1.1)
    ratio = 0.86 - 0.45 * strength * share + rng.uniform(-0.05, 0.05)
    half = 0.18
    return {
        "error_pct": round(error, 2),
        "error_ci95": [round(error - half, 3), round(error + half + 0.04, 3)],
        "stored_bytes": int(stored),
        "onnx_bytes": int(stored * 5.1),
        "latency_ratio": round(ratio, 4),
        "latency_ratio_ci95": [round(ratio - 0.012, 4), round(ratio + 0.011, 4)],
        "latency_ms": round(ratio * DENSE_MS, 4),
        "macs": int(DENSE_MACS * (1 - 0.5 * strength * share)),
        "params": int(DENSE_PARAMS / (2 + 14 * strength)),
        "peak_memory_bytes": int(DENSE_MEMORY * (1 - 0.3 * strength)),
        "energy_uj_estimate": round(DENSE_ENERGY / (3 + 8 * strength), 2),
        "unknown_operations": 0,
    }


def history(rng: random.Random, network: list[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    """Screened evaluations: uniform baselines first, then a sampler that learns; one in fifteen fails."""
    for i in range(count):
        uniform = i < max(4, count // 6)
        strength = (i % 9) / 8 if uniform else min(1.0, max(0.0, rng.gauss(0.45 + 0.4 * i / count, 0.22)))
        chosen = policy(rng, network, strength, uniform)
        penalty = abs(rng.gauss(0, 6 * strength**2 * (1.2 - 0.9 * i / count))) + (1.2 * strength if uniform else 0.1)
        failed = i % 15 == 11
        yield {
            "number": i,
            "id": identity(chosen, i),
            "origin": "uniform" if uniform else "sampler",
            "fidelity": "screen",
            "state": "failed" if failed else "done",
            "error_class": ("CandidateError" if i % 2 else "Timeout") if failed else None,
            "error": (FAILURES[i % 2]) if failed else None,
            "metrics": {} if failed else metrics(rng, strength, penalty, 0.6 if uniform else 1.0),
            "seconds": {} if failed else {k: rng.uniform(0.5, 1.5) * s for k, s in SECONDS.items() if k != "train"},
            "feasible": not failed and strength > 0.5,
            "policy": chosen,
        }


SECONDS = {"build": 0.08, "export": 0.31, "encode": 0.05, "forward": 0.22, "count": 0.04, "probe": 0.62, "train": 21.0}
FAILURES = (
    "no answer within 60 s; the worker was replaced (tried twice)",
    "ONNX Runtime refused the exported file: Node (Conv_7) has input size 3 not in range [min=4, max=4]",
)
METHODS = {
    "error_pct": "share of 10,000 test pictures with a wrong label, exported ONNX file in ONNX Runtime; 95 % Wilson interval",
    "stored_bytes": "length of the .press file: entropy-coded weights, positions, codebooks and header",
    "onnx_bytes": "length of the exported ONNX file",
    "latency_ratio": "CPU time over that of the dense network, interleaved, one thread, batch 1, median of 100 pairs",
    "latency_ms": "the ratio times the dense network's least CPU time",
    "macs": "multiply-accumulates of one picture, counted operation by operation; unknown ones are named",
    "energy_uj_estimate": "estimated from counted operations and a table at 45 nm (Horowitz 2014); not measured",
}
ENVIRONMENT = {
    "paretopress": "0.1.0",
    "python": "3.11.9",
    "torch": "2.13.0+cpu",
    "onnxruntime": "1.31.1",
    "cpu": "x86-64 with AVX-512 VNNI, 2 cores",
    "threads": {"worker": 1, "latency": 1},
    "seeds": {"run": 0, "data": 0},
}
CONFIG = {
    "model": {"name": "family:lenet5", "train": {"epochs": 10}},
    "data": {"name": "mnist", "validation": 0.1},
    "budgets": {"error": "+0.3", "stored": "44kB", "latency": "0.7x"},
    "search": {
        "sampler": "nsga2",
        "evaluations": 100,
        "objectives": ["error", "stored", "latency"],
        "screen_error": 10.0,
    },
}
BASELINE = {
    "error_pct": DENSE_ERROR,
    "stored_bytes": DENSE_BYTES,
    "onnx_bytes": 1_726_900.0,
    "latency_ms": DENSE_MS,
    "macs": DENSE_MACS,
    "params": DENSE_PARAMS,
    "peak_memory_bytes": DENSE_MEMORY,
    "energy_uj_estimate": DENSE_ENERGY,
}
LIMITS = [
    {"budget": "error: +0.3", "metric": "error_pct", "bound": 1.14},
    {"budget": "stored: 44kB", "metric": "stored_bytes", "bound": 44000.0},
    {"budget": "latency: 0.7x", "metric": "latency_ratio", "bound": 0.7},
]


def identity(chosen: dict[str, Any], salt: int) -> str:
    return hashlib.sha256(f"{salt}{chosen}".encode()).hexdigest()[:12]


def misses(figures: dict[str, Any], limits: Sequence[dict[str, Any]]) -> dict[str, float]:
    shares = {lim["metric"]: figures[lim["metric"]] / lim["bound"] - 1 for lim in limits}
    return {metric: share for metric, share in shares.items() if share > 0}


def make_run(
    count: int = 120, depth: int = 4, finals: int = 8, limits: list[dict[str, Any]] = LIMITS, seed: int = 3
) -> ReportData:
    """A run with its front: ``finals`` of the screened candidates, recovered and tested."""
    rng = random.Random(3)
    network = layers(depth)
    rows = list(history(rng, network, count))
    good = [row for row in rows if row["state"] == "done"][-finals:] if finals else []
    front = []
    for i, row in enumerate(good):
        strength = 0.3 + 0.65 * i / max(1, finals - 1)
        figures = metrics(rng, strength, 0.0)
        chosen = policy(random.Random(i), network, strength)
        row |= {"policy": chosen, "id": identity(chosen, row["number"])}
        recovered = {**figures, "error_pct": round(figures["error_pct"] - 0.05, 2)}
        for fidelity, values in (("recover", recovered), ("test", figures)):
            seconds = dict(SECONDS) if fidelity == "recover" else {"forward": 2.1, "probe": 6.0}
            rows.append({**row, "number": len(rows), "fidelity": fidelity, "metrics": values, "seconds": seconds})
        missed = misses(figures, limits)
        front.append(
            {
                "id": row["id"],
                "policy": chosen,
                "feasible": not missed,
                "rung": "final",
                "knee": False,
                "misses": missed,
                "metrics": {**figures, "validation_error_pct": recovered["error_pct"]},
            }
        )
    kept = [entry for entry in front if entry["feasible"]]
    for entry in kept[len(kept) // 2 :][:1]:
        entry["knee"] = True
    return ReportData(
        run="mnist_lenet5",
        directory="runs/mnist lenet5",
        config=CONFIG,
        environment=ENVIRONMENT,
        baseline=BASELINE,
        quality="error",
        limits=limits,
        front=front,
        history=rows,
        layers=network,
        methods=METHODS,
        seconds_total=743.0,
    )


def with_bank(run: ReportData, kl_follows_error: bool = True) -> ReportData:
    """The run with the rows of a bank and a stitched rung: 4 variants, 3 sets of kernels, every candidate stitched."""
    first = run.history[0]

    def row(i: int, rung: str, name: str, figures: dict[str, float]) -> dict[str, Any]:
        number = len(run.history) + i
        told = {"number": number, "id": name, "origin": "bank", "fidelity": rung, "metrics": figures, "spent_s": 0.5}
        return {**first, **told, "state": "done", "seconds": {"forward": 0.4}}

    estimated = {"kl": 0.1, "estimated_stored_bytes": 123_456.0, "calibration_error_pct": 77.7}
    low = [row(i, "profile", f"profile{i}", estimated) for i in range(4)]
    low += [row(4 + i, "kernels", f"kernels{i}", {"latency_ratio": 0.01, "stored_bytes": 7.0}) for i in range(3)]
    sign = 1 if kl_follows_error else -1
    for tried in (tried for tried in run.history if tried["fidelity"] == "screen" and tried["state"] == "done"):
        damage = {**estimated, "kl": 50 + sign * tried["metrics"]["error_pct"]}
        low.append(row(len(low), "stitch", tried["id"], damage))
    return replace(run, history=[*run.history, *low])


def _product(shape: tuple[int, ...]) -> int:
    out = 1
    for size in shape:
        out *= size
    return out
