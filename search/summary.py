"""From what a run recorded to its report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from ..evaluators.exact_integers import ADVICE
from ..evaluators.kernels import has_8_bit_inputs
from ..policies.architectures.shapes import network_of
from ..policies.coding.press import breakdown
from ..policies.errors import FormatError
from ..policies.files import write_text
from ..policies.graph import ModelGraph
from ..policies.policy import Policy
from .config import Config
from .front import FrontData
from .intervals import with_intervals
from .ledger import Evaluation, Ledger
from .report import ReportData, render
from .report.data import MEASURED
from .rundir import RunDirectory, read_json
from .splits import notes_of, read_splits


def note_layers(ledger: Ledger, graph: ModelGraph) -> None:
    """Record the network's layers, so that a report needs the ledger only."""
    layers = [
        {
            "name": info.name,
            "kind": info.kind,
            "weights": info.weights,
            "shape": list(info.weight_shape),
            "dropped_with": [b.root for b in graph.branches if info.name in b.layers and info.name != b.root],
        }
        for info in graph.layers.values()
    ]
    ledger.set_meta("layers", json.dumps(layers))


def note_unknown(ledger: Ledger, operations: Sequence[str]) -> None:
    """Record the dense network's operations whose cost is not known; evaluations hold their number alone."""
    ledger.set_meta("unknown_operations", json.dumps(operations))


def note_classes(ledger: Ledger, num_classes: int, in_channels: int) -> None:
    """Record what networks of searched shapes read and give, for the same reason."""
    ledger.set_meta("classes", json.dumps([num_classes, in_channels]))


def write_report(run: RunDirectory, config: Config, ledger: Ledger, directory: str | None = None) -> None:
    """Write ``report.html`` from the ledger and, where the run is finished, its front.

    Parameters
    ----------
    directory
        The run directory as commands in the report name it.
    """
    write_text(run.report, render(report_data(run, config, ledger, directory or str(run.path))))


def report_data(run: RunDirectory, config: Config, ledger: Ledger, directory: str) -> ReportData:
    """Everything the report shows."""
    found = FrontData.read(run.front) if run.front.is_file() else None
    rows = ledger.rows()
    dense = next((row for row in rows if row.origin == "dense" and row.state == "done"), None)
    baseline = with_intervals(dense.values) if dense is not None else {}
    knee = found.knee if found is not None else None
    front = [] if found is None else [{**m.as_dict(), "knee": knee is not None and m.id == knee.id} for m in found]
    splits = read_splits(ledger)
    feasible = {entry["id"]: entry["feasible"] for entry in front}
    layers = json.loads(ledger.meta("layers") or "[]")
    environment = read_json(run.environment) if run.environment.is_file() else {}
    return ReportData(
        run=run.path.resolve().name,
        directory=directory,
        config=config.model_dump(mode="json"),
        environment=environment,
        baseline=baseline,
        quality=config.quality,
        limits=_limits(config, baseline),
        front=[with_gone_layers(entry, layers) for entry in front],
        history=[with_gone_layers(entry, layers) for entry in _history(rows, feasible)],
        layers=layers,
        methods=methods(config, splits) | _eight_bit(front, environment),
        seconds_total=_seconds(rows),
        left_dense=json.loads(ledger.meta("left_dense") or "{}"),
        unreachable=ledger.meta("unreachable") or "",
        unknown_operations=json.loads(ledger.meta("unknown_operations") or "[]"),
        shaped_layers={e["id"]: shown for e in front if (shown := _shaped(ledger, e["policy"]))},
        notes=notes_of(splits, baseline),
        stored_parts=_stored_parts(run, [entry["id"] for entry in front]),
    )


def _shaped(ledger: Ledger, policy: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The layers of the shape that a policy sets; none where it sets none."""
    classes = ledger.meta("classes")
    if not policy.get("shape") or classes is None:
        return []
    with torch.device("meta"):
        network = network_of(policy["shape"], *json.loads(classes))
    return [
        {
            "name": name,
            "kind": "linear" if isinstance(module, nn.Linear) else "conv2d",
            "weights": module.weight.numel(),
            "shape": list(module.weight.shape),
        }
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]


def _stored_parts(run: RunDirectory, ids: Sequence[str]) -> dict[str, dict[str, int]]:
    """What the bytes of the stored files hold; a file that is missing or damaged is left out."""
    found = {}
    for identity in ids:
        path = run.artefact(identity, "model.press")
        with suppress(OSError, FormatError):
            found[identity] = breakdown(path.read_bytes())
    return found


def methods(config: Config, splits: Mapping[str, Any] | None = None) -> dict[str, str]:
    """How each metric was measured, in a sentence.

    Parameters
    ----------
    splits
        The run's record of them, as far as it has one.
    """
    wrong = "wrong labels" if config.quality == "error" else "disagreement with the dense network's predictions"
    threads = config.latency.threads
    return {
        "error_pct": f"Share of {wrong} of the exported ONNX file in ONNX Runtime on {_last_pictures(splits or {})}, read once"
        " for each final candidate; 95 % Wilson interval. Screening uses validation pictures, before recovery. Whether a"
        " member keeps a budget on it is decided on validation pictures, by the upper bound at"
        f" {config.search.confidence:.0%}: of the difference from the dense network on the same pictures where the budget is"
        " relative (Tango 1998), of the share of errors where it is absolute (Wilson), both corrected for continuity.",
        "stored_bytes": "Length of the .press file, header, codebooks and indices counted.",
        "onnx_bytes": "Length of the exported ONNX file.",
        "latency_ratio": f"ONNX Runtime, batch 1, {threads} thread(s), against the dense network's file, runs interleaved"
        f" on one machine; {config.latency.pairs} pairs for final candidates with nothing else running; 95 % bootstrap"
        " interval.",
        "latency_ms": "The ratio times the dense network's own time in the same session.",
        "macs": "Multiply-accumulates of one picture, counted operation by operation on the compressed network.",
        "params": "Parameters that are not zero.",
        "peak_memory_bytes": "Largest sum of activations alive at one time at batch 1 in float32, in PyTorch's order of"
        " operations.",
        "energy_uj_estimate": "Estimate from a table of operation energies at 45 nm: operations, weights once from DRAM,"
        " activations in SRAM.",
    }


def _last_pictures(splits: Mapping[str, Any]) -> str:
    """Say on which pictures final candidates are read."""
    if not splits or splits["validation"]["from"] != "testing":
        return "the whole test split"
    compared, last = (splits[name]["pictures"] for name in ("validation", "test"))
    return f"the {last:,} of {compared + last:,} test pictures on which no candidates were compared"


def _eight_bit(front: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> dict[str, str]:
    """Which session option the front's files with 8-bit layers need, and which they were measured with."""
    ids = [entry["id"] for entry in front if has_8_bit_inputs(Policy.from_dict(entry["policy"]))]
    if not ids:
        return {}
    measured = environment.get("session_options", "an option that was not recorded")
    return {
        "session option of files with 8-bit layers": f"{', '.join(ids)}: {ADVICE} Here they were measured with {measured}."
    }


def _limits(config: Config, baseline: Mapping[str, Any]) -> list[dict[str, Any]]:
    if not baseline:
        return []
    limits = []
    for budget in config.limits():
        limit = budget.resolve(baseline)
        limits.append(
            {"budget": f"{budget.name}: {config.budgets[budget.name]}", "metric": limit.metric, "bound": limit.bound}
        )
    return limits


def _history(rows: Sequence[Evaluation], feasible: Mapping[str, bool]) -> list[dict[str, Any]]:
    sizes = {row.key.policy_hash: row.values for row in rows if row.key.fidelity == "recover"}
    # What is below the rungs that measure files comes last, so that candidates are numbered by them alone.
    asked = sorted((row for row in rows if row.origin != "dense"), key=lambda row: row.key.fidelity not in MEASURED)
    return [_entry(number, row, sizes.get(row.key.policy_hash, {}), feasible) for number, row in enumerate(asked)]


def _entry(number: int, row: Evaluation, counted: Mapping[str, float], feasible: Mapping[str, bool]) -> dict[str, Any]:
    identity = row.key.policy_hash[:12]
    # A file is counted once, when it is exported; testing it adds error and latency.
    values = {**counted, **row.values} if row.key.fidelity == "test" and row.values else row.values
    return {
        "number": number,
        "id": identity,
        "origin": row.origin,
        "fidelity": row.key.fidelity,
        "state": row.state,
        "error_class": row.error_class,
        "error": row.error,
        "metrics": with_intervals(values),
        "seconds": {kind: spent for kind, spent in row.seconds.items() if kind != "total"},
        "spent_s": row.seconds.get("total", 0.0),
        "feasible": feasible.get(identity),
        "policy": json.loads(row.policy_json),
        **({"learning": dict(row.trial)} if "learning" in row.trial else {}),
    }


def with_gone_layers(entry: dict[str, Any], layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The entry, its policy naming every layer of a dropped block: alone, it names the first."""
    given = entry["policy"].get("layers") or {}
    dropped = {name for name, steps in given.items() if any("drop_branch" in step for step in steps)}
    names = [str(layer["name"]) for layer in layers if dropped.intersection(layer.get("dropped_with", ()))]
    gone: dict[str, Any] = {name: [{"drop_branch": {}}] for name in names}
    return {**entry, "policy": {**entry["policy"], "layers": {**given, **gone}}} if gone else entry


def _seconds(rows: list[Evaluation]) -> float:
    finished = [row.finished_s for row in rows if row.finished_s is not None]
    return max(finished) - min(row.created_s for row in rows) if finished else 0.0
