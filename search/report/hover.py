"""What is shown beside a point under the pointer. Pure."""

from __future__ import annotations

from ..standing import KEPT
from .data import Record, ReportData, error_of, interval, number, of_files, standing_of
from .text import RUNGS, metric_title, policy_lines, times_text, value_text

FINAL_LINES, HISTORY_LINES = 14, 4


def hover_texts(data: ReportData) -> dict[str, str]:
    """Lines of plain text, the first a title, by the ``customdata`` key of a point.

    Figures refer to them by key, so that a policy stands in the page once and not once a figure; the page escapes them.
    """
    names = [str(layer["name"]) for layer in data.layers]
    texts = {"dense": ["dense network", *_figures(data, data.baseline, number(data.baseline, "error_pct"))]}
    for entry in data.front:
        role = " · knee" if entry.get("knee") else ""
        role += f" · {label}" if (label := standing_of(data, entry).label) != KEPT else ""
        lines = _figures(data, entry["metrics"], number(entry["metrics"], "error_pct"))
        policy = policy_lines(entry["policy"], names, FINAL_LINES)
        texts[f"f:{entry['id']}"] = [f"{entry['id']}{role}", RUNGS["test"], *lines, "", *policy]
    for row in of_files(data):
        if row["state"] == "done":
            texts[f"h:{row['number']}"] = _history(data, row, names)
    return {key: "\n".join(lines) for key, lines in texts.items()}


def _history(data: ReportData, row: Record, names: list[str]) -> list[str]:
    rung = RUNGS.get(str(row["fidelity"]), str(row["fidelity"]))
    lines = _figures(data, row["metrics"], error_of(row))
    policy = policy_lines(row.get("policy") or {}, names, HISTORY_LINES)
    return [f"{row['id']} · {row['origin']} · evaluation {row['number']}", rung, *lines, *policy]


def _figures(data: ReportData, metrics: Record, error: float | None) -> list[str]:
    bounds = interval(metrics, "error_pct")
    spread = f" (95 %: {bounds[0]:.2f} to {bounds[1]:.2f})" if bounds else ""
    out = [f"{metric_title('error_pct', data.quality)} {value_text('error_pct', error)}{spread}"]
    is_dense = metrics is data.baseline
    stored, dense = number(metrics, "stored_bytes"), number(data.baseline, "stored_bytes")
    if stored is not None:
        smaller = f" ({times_text(stored / dense, 'smaller', 'larger')})" if dense and not is_dense else ""
        out.append(f"stored {value_text('stored_bytes', stored)}{smaller}")
    ratio = number(metrics, "latency_ratio")
    if ratio is not None and not is_dense:
        out.append(f"latency {value_text('latency_ratio', ratio)} of dense ({times_text(ratio, 'faster', 'slower')})")
    return out
