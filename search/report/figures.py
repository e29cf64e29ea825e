"""The figures, as plotly figures without a template: the page sets colours of text and grid for light and dark. Pure.

Texts that come from data are escaped, since plotly reads a subset of HTML. Hover texts are looked up by the page from
``customdata`` keys (see ``hover``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from .data import Record, ReportData, axes, done, error_of, interval, number
from .style import DENSE, FINAL, KNEE, LIMIT, QUIET, SHADE, blank, log_ticks, origin_colours, short
from .text import RUNGS, metric_title

CSS_MARKS = {"circle": "●", "circle-open": "○", "star": "★", "diamond": "◆", "x-thin-open": "×"}


@dataclass(frozen=True)
class Series:
    """Points of one kind, drawn alike in every projection."""

    key: str
    name: str
    colour: str
    symbol: str
    size: float
    opacity: float
    points: tuple[tuple[str, Record], ...]
    final: bool = False
    shown: bool = True

    @property
    def mark(self) -> str:
        """A character for the legend."""
        return CSS_MARKS[self.symbol]


def front_series(data: ReportData) -> list[Series]:
    """What the projections show, from back to front; selection figures and final ones never share a series."""
    out = []
    screened = done(data, "screen")
    for name, colour in origin_colours(data).items():
        points = tuple(_history_point(row) for row in screened if str(row["origin"]) == name)
        opacity = 0.45 if len(screened) < 400 else 0.22
        out.append(Series(f"screen:{name}", f"{name}: {RUNGS['screen']}", colour, "circle", 5, opacity, points))
    recovered = tuple(_history_point(row) for row in done(data, "recover"))
    out.append(Series("recover", RUNGS["recover"], QUIET, "x-thin-open", 7, 0.8, recovered, shown=False))
    on_front = {str(entry["id"]) for entry in data.front}
    rest = tuple(_history_point(row) for row in done(data, "test") if str(row["id"]) not in on_front)
    out.append(
        Series("dominated", f"{RUNGS['test']}, not on the front", FINAL, "circle-open", 7, 0.55, rest, final=True)
    )
    return [series for series in (*out, *_final_series(data)) if series.points]


def _final_series(data: ReportData) -> list[Series]:
    entries = [(f"f:{entry['id']}", entry) for entry in data.front]
    missed = tuple((k, e["metrics"]) for k, e in entries if not e["feasible"] and not e.get("knee"))
    kept = tuple((k, e["metrics"]) for k, e in entries if e["feasible"] and not e.get("knee"))
    knee = tuple((k, e["metrics"]) for k, e in entries if e.get("knee"))
    within = ", keeps the budgets" if data.limits else ""
    dense = {"latency_ratio": 1.0, **data.baseline}
    return [
        Series("missed", f"front, {RUNGS['test']}, misses a budget", FINAL, "circle-open", 10, 1.0, missed, final=True),
        Series("kept", f"front, {RUNGS['test']}{within}", FINAL, "circle", 10, 1.0, kept, final=True),
        Series("knee", f"knee of the front, {RUNGS['test']}", KNEE, "star", 16, 1.0, knee, final=True),
        Series("dense", "dense network", DENSE, "diamond", 12, 1.0, (("dense", dense),), final=True),
    ]


def _history_point(row: Record) -> tuple[str, Record]:
    metrics = dict(row["metrics"])
    error = error_of(row)
    return (f"h:{row['number']}", metrics if error is None else {**metrics, "error_pct": error})


def front_figures(data: ReportData) -> list[tuple[str, str, go.Figure]]:
    """Each pair of axes: a title, what is left out of sight (or nothing), and the figure."""
    series = front_series(data)
    quality, size, speed = axes(data)
    out = []
    words = {quality: "disagreement" if data.quality == "agreement" else "error", "latency_ratio": "latency"}
    for y, x in ((quality, size), (quality, speed), (size, speed)):
        window = {axis: _window(data, series, axis) for axis in (x, y)}
        figure = blank(height=400)
        for one in series:
            figure.add_trace(_scatter(one, x, y))
        _draw_limits(figure, data, series, x, y, window)
        for name, axis in (("x", x), ("y", y)):
            figure.update_layout({f"{name}axis": _axis(axis, data.quality, window[axis])})
        title = " against ".join(words.get(axis, metric_title(axis, data.quality)) for axis in (y, x))
        out.append((title[0].upper() + title[1:], _left_out(series, x, y, window), figure))
    return out


def _scatter(series: Series, x: str, y: str) -> go.Scatter:
    points = [(key, m) for key, m in series.points if number(m, x) is not None and number(m, y) is not None]
    bars = {f"error_{name}": _error_bars(points, axis) for name, axis in (("x", x), ("y", y))} if series.final else {}
    line = {"width": 1.6 if "open" in series.symbol else 0.0, "color": series.colour}
    return go.Scatter(
        x=[short(number(m, x) or 0.0) for _, m in points],
        y=[short(number(m, y) or 0.0) for _, m in points],
        customdata=[key for key, _ in points],
        name=escape(series.name),
        meta=series.key,
        visible=series.shown,
        mode="markers",
        hoverinfo="text",
        marker={
            "symbol": series.symbol,
            "size": series.size,
            "color": series.colour,
            "opacity": series.opacity,
            "line": line,
        },
        **{name: bar for name, bar in bars.items() if bar},
    )


def _error_bars(points: Sequence[tuple[str, Record]], metric: str) -> dict[str, Any] | None:
    bounds = [(number(m, metric) or 0.0, interval(m, metric)) for _, m in points]
    if all(found is None for _, found in bounds):
        return None
    above = [max(0.0, found[1] - value) if found else 0.0 for value, found in bounds]
    below = [max(0.0, value - found[0]) if found else 0.0 for value, found in bounds]
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "thickness": 1.2, "width": 3}


def _values(series: Sequence[Series], metric: str) -> np.ndarray:
    found = [number(metrics, metric) for one in series for _, metrics in one.points]
    return np.array([value for value in found if value is not None], float)


def _is_log(metric: str) -> bool:
    return metric.endswith("_bytes") or metric in ("params", "macs")


def _window(data: ReportData, series: Sequence[Series], metric: str) -> tuple[float, float]:
    """What an axis shows at first: the final measurements, the budgets and, where near enough, what was screened."""
    finals = [one for one in series if one.final]
    bounds = [limit["bound"] for limit in data.limits if limit["metric"] == metric]
    ends = [end for one in finals for _, m in one.points for end in interval(m, metric) or ()]
    focus = np.concatenate([_values(finals, metric), np.array([*bounds, *ends], float)])
    rest = _values([one for one in series if not one.final], metric)
    if metric == "error_pct" and len(focus) and len(rest):
        # Screened errors may lie ten points above the finals and would flatten them.
        rest = rest[rest <= 1.4 * focus.max()]
    shown = np.concatenate([focus, rest])
    if not len(shown):
        return (1.0, 10.0) if _is_log(metric) else (0.0, 1.0)
    low, high = float(shown.min()), float(shown.max())
    if _is_log(metric):
        low, high = max(low, 1e-9), max(high, 1e-9)
        margin = max(0.06 * math.log10(high / low), 0.06)
        return low / 10**margin, high * 10**margin
    margin = max(0.07 * (high - low), 0.03 * abs(high), 1e-6)
    return max(0.0, low - margin) if low > margin else -0.4 * margin, high + margin


def _left_out(series: Sequence[Series], x: str, y: str, window: Mapping[str, tuple[float, float]]) -> str:
    """Said under a figure: points beyond its first view, and points that lack a figure."""
    beyond = lacking = 0
    for one in series:
        for _, metrics in one.points if one.shown else ():
            values = {axis: number(metrics, axis) for axis in (x, y)}
            lacking += None in values.values()
            inside = [v is None or window[a][0] <= v <= window[a][1] for a, v in values.items()]
            beyond += None not in values.values() and not all(inside)
    parts = [f"{beyond} of the points lie beyond this view (double-click shows all)"] if beyond else []
    parts += [f"{lacking} points lack one of the two figures and are not drawn"] if lacking else []
    return "; ".join(parts)


def _draw_limits(
    figure: go.Figure,
    data: ReportData,
    series: Sequence[Series],
    x: str,
    y: str,
    window: Mapping[str, tuple[float, float]],
) -> None:
    """A line at each bound, its infeasible side shaded, the budget's own words beside it."""
    for limit in data.limits:
        metric, bound = limit["metric"], float(limit["bound"])
        if metric not in (x, y):
            continue
        axis, other = ("x", "y") if metric == x else ("y", "x")
        far = max(window[metric][1], float(_values(series, metric).max(initial=bound)), bound)
        span = {f"{other}ref": "paper", f"{other}0": 0, f"{other}1": 1, f"{axis}ref": axis, "layer": "below"}
        figure.add_shape(
            type="rect", fillcolor=SHADE, line={"width": 0}, **span, **{f"{axis}0": bound, f"{axis}1": far}
        )
        figure.add_shape(
            type="line",
            line={"color": LIMIT, "width": 1.5, "dash": "dash"},
            **span,
            **{f"{axis}0": bound, f"{axis}1": bound},
        )
        place = math.log10(bound) if _is_log(metric) else bound
        label = {f"{axis}ref": axis, axis: place, f"{other}ref": "paper", other: 1.0}
        figure.add_annotation(
            text=escape(str(limit["budget"])),
            showarrow=False,
            font={"size": 11, "color": LIMIT},
            textangle=0 if axis == "y" else -90,
            **label,
            xanchor="right",
            yanchor="bottom" if axis == "y" else "top",
        )


def _axis(metric: str, quality: str, window: tuple[float, float]) -> dict[str, Any]:
    title = metric_title(metric, quality) + {"latency_ms": ", ms", "energy_uj_estimate": ", µJ"}.get(metric, "")
    title += " (%)" if metric == "error_pct" else ""
    axis: dict[str, Any] = {"title": {"text": title, "standoff": 8}, "range": list(window), "automargin": True}
    if metric == "latency_ratio":
        axis["ticksuffix"] = "×"
    if _is_log(metric):
        axis |= {"type": "log", "range": [math.log10(end) for end in window], **log_ticks(metric, window)}
    return axis
