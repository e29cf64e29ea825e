"""What a report says in words and tables, computed from its data. Pure."""

from __future__ import annotations

import math
import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ...evaluators.base import METRICS
from ..standing import KEPT
from .data import Record, ReportData, done, error_of, interval, keeps, misses, number, origins, standing_of
from .progress import cost_limits, hypervolume_curves
from .text import NOT_MEASURED, metric_title, share_text, times_text, value_text, whole_test_text

EXPORTS = (("onnx", "model.onnx"), ("press", "model.press"), ("bundle", "bundle"))
LONGEST_REASON = 300
COLUMNS = (*METRICS, "validation_error_pct")
WHOLE_TEST = "whole_test_error_pct"


@dataclass(frozen=True)
class Cell:
    """A figure in a table: text, a second line, and what it is sorted by (``None`` goes last)."""

    text: str
    note: str = ""
    value: float | None = None


def columns(data: ReportData) -> tuple[str, ...]:
    """Return the metrics of the table; the error on the whole test split where candidates were compared on a part of it."""
    return (*COLUMNS, WHOLE_TEST) if WHOLE_TEST in data.baseline else COLUMNS


def cell(data: ReportData, metrics: Record, metric: str) -> Cell:
    """A figure with its interval or what it is relative to the dense network."""
    value, dense = number(metrics, metric), number(data.baseline, metric)
    text = value_text(metric, value)
    if value is None:
        return Cell(text)
    unknown = number(metrics, "unknown_operations")
    if unknown and metric in ("macs", "energy_uj_estimate"):
        return Cell(f"at least {text}", _not_known(round(unknown), data.unknown_operations), value)
    return Cell(text, _note(metric, value, dense, interval(metrics, metric)), value)


def _not_known(count: int, of_dense: Sequence[str]) -> str:
    """The operations whose cost is not known: by name where they are as many as the dense network has, else their number."""
    told = ", ".join(of_dense) if count == len(of_dense) else f"{count} operation{'s' * (count > 1)}"
    return f"cost not known: {told}"


def _note(metric: str, value: float, dense: float | None, bounds: tuple[float, float] | None) -> str:
    parts = []
    if bounds is not None:
        parts.append(f"95 %: {bounds[0]:.2f} to {bounds[1]:.2f}")
    if metric == "latency_ratio":
        parts.append(times_text(value, "faster", "slower"))
    elif metric != "latency_ms" and not metric.endswith("_pct") and dense:
        parts.append(times_text(value / dense, "less", "more"))
    return "; ".join(parts)


def tiles(data: ReportData, entry: Record) -> list[tuple[str, Cell]]:
    """The figures to lead with: error, size, speed, and the budgets kept (or, without budgets, multiply-accumulates)."""
    metrics = entry["metrics"]
    stored, dense = number(metrics, "stored_bytes"), number(data.baseline, "stored_bytes")
    smaller = times_text(stored / dense if stored is not None and dense else None, "smaller", "larger")
    sizes = f"{value_text('stored_bytes', stored)}; dense {value_text('stored_bytes', dense)}"
    ratio, bounds = number(metrics, "latency_ratio"), interval(metrics, "latency_ratio")
    spread = f" (95 %: {bounds[0]:.2f} to {bounds[1]:.2f})" if bounds else ""
    speed = "" if ratio is None else f"{value_text('latency_ratio', ratio)} of the dense network's latency{spread}"
    if data.limits:
        kept = sum(keeps([limit], metrics) for limit in data.limits)
        last = (
            "budgets kept",
            Cell(f"{kept} of {len(data.limits)}", ", ".join(str(lim["budget"]) for lim in data.limits)),
        )
    else:
        last = ("multiply-accumulates", cell(data, metrics, "macs"))
    return [
        (f"{metric_title('error_pct', data.quality)}, test", _error_tile(data, metrics)),
        ("stored size", Cell(smaller, sizes)),
        ("latency", Cell(times_text(ratio, "faster", "slower"), speed)),
        last,
    ]


def _error_tile(data: ReportData, metrics: Record) -> Cell:
    error, dense = number(metrics, "error_pct"), number(data.baseline, "error_pct")
    if error is None:
        return Cell(NOT_MEASURED)
    bounds, whole = interval(metrics, "error_pct"), whole_test_text(metrics)
    notes = [f"95 %: {bounds[0]:.2f} to {bounds[1]:.2f} %"] if bounds else []
    if data.quality == "error":
        notes.append(
            f"dense {value_text('error_pct', dense)}" + (f" ({error - dense:+.2f})" if dense is not None else "")
        )
    notes += [whole] if whole else []
    return Cell(value_text("error_pct", error), "; ".join(notes))


def headline(data: ReportData, entry: Record | None) -> str:
    """What came out, in one sentence."""
    failed = sum(row["state"] == "failed" for row in data.history)
    if entry is None:
        tried = f"{len(data.history)} evaluations are recorded, {failed} of them failed{_most_often(data)}"
        return f"No policy reached the final test: {tried if data.history else 'no evaluation is recorded'}."
    metrics = entry["metrics"]
    stored, dense = number(metrics, "stored_bytes"), number(data.baseline, "stored_bytes")
    parts = []
    if stored is not None:
        beside = f" ({times_text(stored / dense, 'smaller', 'larger')})" if dense else ""
        parts.append(f"is stored in {value_text('stored_bytes', stored)}{beside}")
    ratio = number(metrics, "latency_ratio")
    if ratio is not None:
        speed = times_text(ratio, "faster than the dense network", "slower than the dense network")
        parts.append("runs as fast as the dense network" if speed == "as dense" else f"runs {speed}")
    error, dense = number(metrics, "error_pct"), number(data.baseline, "error_pct")
    if error is not None and data.quality == "agreement":
        parts.append(f"disagrees with the dense network on {value_text('error_pct', error)} of the test pictures")
    elif error is not None:
        beside = f" against the dense network's {value_text('error_pct', dense)}" if dense is not None else ""
        parts.append(f"errs on {value_text('error_pct', error)} of the test pictures{beside}")
    role = "The knee of the front" if entry.get("knee") else "The policy in front"
    return f"{role}, {entry['id']}, {_sentence(parts) or 'has no measured figures'}."


def _most_often(data: ReportData) -> str:
    """The most frequent reason of failures, for the end of a clause; all of them have a table of their own."""
    reasons = Counter(f"{r.get('error_class')}: {r.get('error')}" for r in data.history if r["state"] == "failed")
    return "".join(f", {count} with: {reason[:LONGEST_REASON]}" for reason, count in reasons.most_common(1))


def standing_text(data: ReportData, entry: Record) -> str:
    """Return where an entry of the front stands with its budgets, in a clause."""
    if not data.limits:
        return KEPT
    return standing_of(data, entry).describe(lambda metric: metric_title(metric, data.quality))


def _sentence(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)


def banner(data: ReportData) -> str:
    """Said where no policy keeps the budgets: the nearest one, and by how much it misses; and where none is certain to."""
    if not data.limits:
        return ""
    if any(entry["feasible"] for entry in data.front):
        if any(standing_of(data, entry).is_certain for entry in data.front):
            return ""
        return "No policy is certain to keep every budget on other pictures; those that keep them here are marked."
    if not data.front:
        return "No policy reached the final test, so none is known to keep the budgets."
    nearest = min(data.front, key=lambda entry: max(misses(data, entry).values(), default=math.inf))
    missed = _sentence([_missed(data, nearest, name, share) for name, share in misses(data, nearest).items()])
    what = f"misses {missed}" if missed else "is recorded as missing one, with no figure of by how much"
    return f"No policy keeps every budget. The nearest, {nearest['id']}, {what}."


def _missed(data: ReportData, entry: Record, metric: str, share: float) -> str:
    limit = next((limit for limit in data.limits if limit["metric"] == metric), None)
    if limit is None:
        return f"the {metric_title(metric, data.quality)} budget by {share_text(share)}"
    if math.isinf(share):
        return f"the budget {limit['budget']} ({NOT_MEASURED})"
    value = value_text(metric, number(entry["metrics"], metric))
    return f"the budget {limit['budget']} by {share_text(share)} ({value} against at most {value_text(metric, limit['bound'])})"


def budget_rows(data: ReportData, entry: Record | None) -> list[dict[str, str]]:
    """Each budget: its bound, the dense network, the policy in front, how many of the front keep it."""
    rows = []
    for limit in data.limits:
        metric, title = limit["metric"], metric_title(limit["metric"], data.quality)
        metrics = entry["metrics"] if entry else {}
        kept = sum(keeps([limit], other["metrics"]) for other in data.front)
        rows.append(
            {
                "budget": str(limit["budget"]),
                "metric": title,
                "bound": f"≤ {value_text(metric, limit['bound'])}",
                "dense": value_text(metric, 1.0 if metric == "latency_ratio" else number(data.baseline, metric)),
                "reached": value_text(metric, number(metrics, metric)),
                "kept": ("yes" if keeps([limit], metrics) else "no") if entry else "",
                "count": f"{kept} of {len(data.front)}",
            }
        )
    return rows


def table_rows(data: ReportData) -> list[dict[str, object]]:
    """The dense network and the front, a row each, the knee first, then by error."""
    came = origins(data)
    order = sorted(
        data.front, key=lambda e: (not e.get("knee"), not e["feasible"], number(e["metrics"], "error_pct") or 0.0)
    )
    return [
        {
            "id": entry["id"],
            "knee": bool(entry.get("knee")),
            "standing": standing_of(data, entry).label if data.limits else KEPT,
            "standing_text": standing_text(data, entry),
            "origin": came.get(str(entry["id"]), "unknown"),
            "cells": [cell(data, entry["metrics"], metric) for metric in columns(data)],
            "commands": commands(data.directory, str(entry["id"])),
        }
        for entry in order
    ]


def commands(directory: str, policy: str) -> list[str]:
    """How to take a policy away: as ONNX, as the compressed file, as a bundle."""
    start = f"paretopress export {shlex.quote(directory)} --pick {shlex.quote(policy)}"
    return [f"{start} --to {target} --out {out}" for target, out in EXPORTS]


def origin_rows(data: ReportData) -> list[dict[str, str]]:
    """What each origin's screened candidates came to, so that the search can be held against the uniform baselines."""
    curves, limits = hypervolume_curves(data), cost_limits(data)
    groups: dict[str, list[Record]] = defaultdict(list)
    for row in data.history:
        if row["fidelity"] == "screen":
            groups[str(row["origin"])].append(row)
    rows = []
    for name, members in groups.items():
        finished = [row for row in members if row["state"] == "done"]
        errors = [error_of(row) for row in finished if keeps(limits, row["metrics"])]
        best = min((error for error in errors if error is not None), default=None)
        rows.append(
            {
                "origin": name,
                "screened": str(len(finished)),
                "failed": str(sum(row["state"] == "failed" for row in members)),
                "kept": str(len(errors)) if limits else "no such budget",
                "best": value_text("error_pct", best) if best is not None else "none",
                "volume": f"{curves[name][1][-1]:.4f}" if name in curves else NOT_MEASURED,
            }
        )
    return rows


def failures(data: ReportData, limit: int = 40) -> tuple[list[dict[str, object]], int]:
    """Failed evaluations by reason, the commonest first, at most ``limit`` reasons; and how many reasons are left out."""
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for row in data.history:
        if row["state"] == "failed":
            reason = str(row.get("error") or "no reason recorded")[:2000]
            groups[(str(row["fidelity"]), str(row.get("error_class") or "unknown"), reason)].append(row)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    rows: list[dict[str, object]] = [
        {
            "fidelity": key[0],
            "class": key[1],
            "reason": key[2],
            "count": len(members),
            "ids": [str(m["id"]) for m in members[:3]],
        }
        for key, members in ordered[:limit]
    ]
    return rows, max(0, len(ordered) - limit)


def seconds_by_kind(data: ReportData) -> dict[str, dict[str, float]]:
    """Worker-seconds of each fidelity by kind of work."""
    out: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for row in data.history:
        for kind, seconds in (row.get("seconds") or {}).items():
            out[str(row["fidelity"])][str(kind)] += float(seconds)
    return {fidelity: dict(kinds) for fidelity, kinds in out.items()}


def counts(data: ReportData) -> dict[str, int]:
    """How many candidates were stitched, screened, recovered, tested, and how many evaluations failed."""
    named = {"stitched": "stitch", "screened": "screen", "recovered": "recover", "tested": "test"}
    found = {name: len(done(data, fidelity)) for name, fidelity in named.items()}
    return {**found, "failed": sum(row["state"] == "failed" for row in data.history)}
