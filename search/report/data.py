"""What a report is made from, and what is read off it: the policy in front, its misses, where a candidate came from. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

from ..standing import Standing

Record = Mapping[str, Any]

MEASURED = ("screen", "tune", "recover", "test")
"""Rungs whose figures are those of an exported file; what lies below them is estimated, or of a part of the network."""

SIZE_METRICS = ("stored_bytes", "onnx_bytes", "params")
SPEED_METRICS = ("latency_ratio", "latency_ms", "macs", "energy_uj_estimate")


@dataclass(frozen=True)
class ReportData:
    """All that a report shows; nothing in it is computed from anything else.

    Parameters
    ----------
    run
        Title of the run.
    directory
        Run directory as the user typed it, for commands.
    config
        The resolved configuration, plain data.
    environment
        Versions, processor, threads, seeds.
    baseline
        Metrics of the dense network, by the names in ``METRICS``.
    quality
        What ``error_pct`` means: wrong labels, or (``agreement``) disagreement with the dense network.
    limits
        ``{"budget": "stored: 44kB", "metric": "stored_bytes", "bound": 44000.0}``, one a budget.
    front
        The entries of ``front.json``: measured on the test pictures.
    history
        Recorded evaluations in order, those of the ``MEASURED`` fidelities first: ``test`` was measured on the test
        pictures, the others on validation pictures. ``spent_s`` is the time of each in seconds.
    layers
        ``{"name", "kind", "weights", "shape"}`` of the dense network's layers, in order.
    methods
        How each metric was measured, in a sentence.
    seconds_total
        Wall-clock time of the run in seconds.
    left_dense
        Units that could not be compressed in any way that was asked for, with the reason.
    unreachable
        What the bank said about budgets that none of its policies keeps; empty otherwise.
    stored_parts
        Bytes of the stored file by what they hold, for each entry of the front by its id whose file is there.
    unknown_operations
        Operations of the dense network whose cost is not known.
    shaped_layers
        The same as ``layers`` for each entry of the front by its id whose policy sets the network's shape.
    notes
        What has to be known of the pictures that candidates were compared and tested on.
    """

    run: str
    directory: str
    config: Record
    environment: Record
    baseline: Record
    quality: Literal["error", "agreement"]
    limits: Sequence[Record]
    front: Sequence[Record]
    history: Sequence[Record]
    layers: Sequence[Record]
    methods: Mapping[str, str]
    seconds_total: float
    left_dense: Mapping[str, str] = field(default_factory=dict)
    unreachable: str = ""
    stored_parts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    unknown_operations: Sequence[str] = ()
    shaped_layers: Mapping[str, Sequence[Record]] = field(default_factory=dict)
    notes: Sequence[str] = ()


def number(metrics: Record | None, name: str) -> float | None:
    """A measured figure, or ``None`` where there is none."""
    value = (metrics or {}).get(name)
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        return None
    return float(value)


def interval(metrics: Record, name: str) -> tuple[float, float] | None:
    """The 95 % interval of a figure, or ``None``."""
    bounds = metrics.get(name.removesuffix("_pct") + "_ci95")
    return None if not bounds else (float(bounds[0]), float(bounds[1]))


def error_of(row: Record) -> float | None:
    """Error in per cent of an evaluation: on validation pictures below the fidelity ``test``."""
    error = number(row["metrics"], "error_pct")
    return number(row["metrics"], "validation_error_pct") if error is None and row["fidelity"] != "test" else error


def done(data: ReportData, fidelity: str) -> list[Record]:
    """Finished evaluations of one fidelity, in order."""
    return [row for row in data.history if row["fidelity"] == fidelity and row["state"] == "done"]


def of_files(data: ReportData) -> list[Record]:
    """Evaluations that measured an exported file, in order."""
    return [row for row in data.history if row["fidelity"] in MEASURED]


def axes(data: ReportData) -> tuple[str, str, str]:
    """Metrics of the three axes: quality, size and speed; a budget's own metric is preferred, then what was measured."""
    return ("error_pct", _preferred(data, SIZE_METRICS), _preferred(data, SPEED_METRICS))


def misses(data: ReportData, entry: Record) -> dict[str, float]:
    """How far above each missed bound an entry lies, as a share of it; infinite where it was not measured."""
    given = {name: float(share) for name, share in (entry.get("misses") or {}).items() if share > 0}
    if given or entry.get("feasible"):
        return given
    found: dict[str, float] = {}
    for limit in data.limits:
        value = number(entry["metrics"], limit["metric"])
        miss = math.inf if value is None else (value - limit["bound"]) / max(abs(limit["bound"]), 1e-12)
        if miss > 0:
            found[limit["metric"]] = miss
    return found


def standing_of(data: ReportData, entry: Record) -> Standing:
    """Return where an entry of the front stands with its budgets."""
    return Standing(misses(data, entry), entry.get("validation_misses") or {}, entry.get("bound_excess") or 0.0)


def chosen(data: ReportData) -> Record | None:
    """The entry a report leads with: the knee, else one that keeps the budgets, else the nearest to them."""

    def distance(entry: Record) -> tuple[bool, bool, float]:
        return (not entry.get("knee"), not entry["feasible"], max(misses(data, entry).values(), default=0.0))

    return min(data.front, key=distance, default=None)


def origins(data: ReportData) -> dict[str, str]:
    """Where each policy was first tried from, by its id."""
    found: dict[str, str] = {}
    for row in of_files(data):
        found.setdefault(str(row["id"]), str(row["origin"]))
    return found


def keeps(limits: Sequence[Record], metrics: Record) -> bool:
    """Whether figures keep the limits; a figure that was not measured keeps none."""
    values = [(number(metrics, limit["metric"]), limit["bound"]) for limit in limits]
    return all(value is not None and value <= bound for value, bound in values)


def _preferred(data: ReportData, names: Sequence[str]) -> str:
    limited = {limit["metric"] for limit in data.limits}
    measured = [row["metrics"] for row in (*data.front, *of_files(data))]
    # Within a quantity a limit decides the unit: a bound in milliseconds is drawn on an axis in milliseconds.
    order = sorted(names[:2], key=lambda name: (name not in limited, names.index(name))) + list(names[2:])
    return next((name for name in order if any(number(m, name) is not None for m in measured)), order[0])
