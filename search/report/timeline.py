"""The figures of the search's history: hypervolume, best so far, where the time went. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from .data import Record, ReportData, done, error_of
from .facts import seconds_by_kind
from .progress import best_so_far, cost_limits, hypervolume_curves
from .rungs import RUNG_NAMES
from .style import FINAL, KIND_COLOURS, LEGEND, LINES, blank, log_ticks, origin_colours, short


def hypervolume_figure(data: ReportData) -> go.Figure | None:
    """Hypervolume of the screened candidates against the evaluation number: of all, and of each origin alone."""
    curves = hypervolume_curves(data)
    if not curves:
        return None
    colours = origin_colours(data)
    figure = blank(height=330)
    last = max(int(numbers[-1]) for numbers, _ in curves.values())
    for name, (numbers, volume) in curves.items():
        style = (
            {"color": FINAL, "width": 2.5} if name == "all" else {"color": colours[name], "width": 1.5, "dash": "dot"}
        )
        # Only where it rises: a page with thousands of evaluations stays small.
        rises = np.flatnonzero(np.diff(volume, prepend=-1.0) > 0)
        figure.add_trace(
            go.Scatter(
                x=[*numbers[rises].tolist(), last],
                y=[short(v) for v in (*volume[rises], volume[-1])],
                name=escape("all together" if name == "all" else f"{name} alone"),
                mode="lines",
                line={**style, "shape": "hv"},
                hovertemplate="evaluation %{x}: %{y:.4f}",
            )
        )
    figure.update_layout(showlegend=True, legend=LEGEND)
    figure.update_xaxes(title={"text": "evaluation number"}, automargin=True)
    figure.update_yaxes(title={"text": "hypervolume"}, rangemode="tozero", automargin=True)
    return figure


def best_figure(data: ReportData) -> go.Figure | None:
    """Each screened candidate's error, and the lowest so far among those that keep a budget."""
    rows = [row for row in done(data, "screen") if error_of(row) is not None]
    if not rows:
        return None
    figure = blank(height=330)
    for name, colour in origin_colours(data).items():
        points = [row for row in rows if str(row["origin"]) == name]
        if points:
            figure.add_trace(
                go.Scatter(
                    x=[row["number"] for row in points],
                    y=[short(error_of(row) or 0.0) for row in points],
                    customdata=[f"h:{row['number']}" for row in points],
                    name=escape(name),
                    mode="markers",
                    hoverinfo="text",
                    marker={"size": 5, "color": colour, "opacity": 0.4},
                )
            )
    for trace in _best_lines(data, rows):
        figure.add_trace(trace)
    figure.update_layout(showlegend=True, legend=LEGEND)
    figure.update_xaxes(title={"text": "evaluation number"}, automargin=True)
    errors = [error_of(row) or 0.0 for row in rows]
    window = (min(errors) / 1.2, max(errors) * 1.2)
    scale = {"type": "log", **log_ticks("error_pct", window)} if window[0] > 0 else {}
    title = f"{'disagreement' if data.quality == 'agreement' else 'error'}, screened (%)"
    figure.update_yaxes(title={"text": title}, automargin=True, **scale)
    return figure


def _best_lines(data: ReportData, rows: Sequence[Record]) -> list[go.Scatter]:
    limits = cost_limits(data)
    groups = [(f"lowest that keeps {limit['budget']}", [limit]) for limit in limits]
    groups = (
        groups
        if len(limits) == 1
        else [*groups, ("lowest that keeps all of these" if limits else "lowest so far", limits)]
    )
    traces = []
    for i, (name, members) in enumerate(groups):
        numbers, errors = best_so_far(rows, members)
        if not len(numbers):
            continue
        final = i == len(groups) - 1
        colour, dash = (FINAL, "solid") if final else LINES[i % len(LINES)]
        traces.append(
            go.Scatter(
                x=[*numbers.tolist(), rows[-1]["number"]],
                y=[short(error) for error in (*errors, errors[-1])],
                name=escape(name),
                mode="lines",
                line={"color": colour, "width": 2.5 if final else 1.5, "dash": dash, "shape": "hv"},
                hovertemplate="from evaluation %{x}: %{y:.2f} %",
            )
        )
    return traces


def seconds_figure(data: ReportData) -> go.Figure | None:
    """Where the workers' time went: seconds by kind of work, a bar for each rung."""
    seconds = seconds_by_kind(data)
    kinds = list(dict.fromkeys(kind for parts in seconds.values() for kind in parts))
    if not kinds:
        return None
    names = [escape(RUNG_NAMES.get(fidelity, fidelity)) for fidelity in seconds]
    figure = blank(height=130 + 46 * len(names))
    for i, kind in enumerate(kinds):
        figure.add_trace(
            go.Bar(
                x=[short(parts.get(kind, 0.0)) for parts in seconds.values()],
                y=names,
                name=escape(kind),
                orientation="h",
                marker={"color": KIND_COLOURS[i % len(KIND_COLOURS)]},
                hovertemplate="%{y}: %{x:.1f} s",
            )
        )
    figure.update_layout(barmode="stack", showlegend=True, legend={**LEGEND, "traceorder": "normal"}, bargap=0.35)
    figure.update_xaxes(title={"text": "worker-seconds"}, automargin=True)
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure
