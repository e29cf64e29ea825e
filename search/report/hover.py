"""What is shown beside a point under the pointer. Pure."""

from __future__ import annotations

from html import escape

from .data import Record, ReportData, error_of, interval, number
from .text import RUNGS, metric_title, policy_lines, times_text, value_text

FINAL_LINES, HISTORY_LINES = 14, 4


def hover_texts(data: ReportData) -> dict[str, str]:
    """Text in plotly's subset of HTML by the ``customdata`` key of a point; everything from data is escaped.

    Figures refer to it by key, so that a policy stands in the page once and not once a figure.
    """
    names = [str(layer["name"]) for layer in data.layers]
    texts = {"dense": _join([("dense network", True), *_figures(data, data.baseline, number(data.baseline, "error_pct"))])}
    for entry in data.front:
        role = " · knee" if entry.get("knee") else "" if entry["feasible"] else " · misses a budget"
        lines = _figures(data, entry["metrics"], number(entry["metrics"], "error_pct"))
        policy = policy_lines(entry["policy"], names, FINAL_LINES)
        texts[f"f:{entry['id']}"] = _join([(f"{entry['id']}{role}", True), (RUNGS["test"], False), *lines, ("", False), *_plain(policy)])
    for row in data.history:
        if row["state"] == "done":
            texts[f"h:{row['number']}"] = _history(data, row, names)
    return texts


def _history(data: ReportData, row: Record, names: list[str]) -> str:
    rung = RUNGS.get(str(row["fidelity"]), str(row["fidelity"]))
    lines = _figures(data, row["metrics"], error_of(row))
    policy = policy_lines(row.get("policy") or {}, names, HISTORY_LINES)
    return _join([(f"#{row['number']} · {row['id']} · {row['origin']}", True), (rung, False), *lines, *_plain(policy)])


def _figures(data: ReportData, metrics: Record, error: float | None) -> list[tuple[str, bool]]:
    bounds = interval(metrics, "error_pct")
    spread = f" (95 %: {bounds[0]:.2f} to {bounds[1]:.2f})" if bounds else ""
    out = [f"{metric_title('error_pct', data.quality)} {value_text('error_pct', error)}{spread}"]
    stored, dense = number(metrics, "stored_bytes"), number(data.baseline, "stored_bytes")
    if stored is not None:
        smaller = f" ({times_text(stored / dense, 'smaller', 'larger')})" if dense and metrics is not data.baseline else ""
        out.append(f"stored {value_text('stored_bytes', stored)}{smaller}")
    ratio = number(metrics, "latency_ratio")
    if ratio is not None and metrics is not data.baseline:
        out.append(f"latency {value_text('latency_ratio', ratio)} of dense ({times_text(ratio, 'faster', 'slower')})")
    return _plain(out)


def _plain(lines: list[str]) -> list[tuple[str, bool]]:
    return [(line, False) for line in lines]


def _join(lines: list[tuple[str, bool]]) -> str:
    return "<br>".join(f"<b>{escape(line)}</b>" if bold else escape(line) for line, bold in lines)
