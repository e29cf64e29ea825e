"""The page of early exits: error against average cost, and how many pictures leave where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from .page import _script_json, _template
from .style import DENSE, FINAL, KNEE, blank, short
from .text import metric_title, value_text, whole_test_text

COSTS = {
    "expected_latency_ratio": "expected latency against the dense network",
    "expected_macs": "expected multiply-accumulates",
}


def render_exits(run: str, found: Mapping[str, Any], quality: str, notes: Sequence[str] = ()) -> str:
    """Return the page as self-contained HTML; it loads nothing.

    Parameters
    ----------
    notes
        What has to be known of the pictures, a sentence each.
    """
    figures = {cost: _figure(found, cost, title, quality) for cost, title in COSTS.items()}
    payload = {"figures": {name: figure.to_plotly_json() for name, figure in figures.items()}, "hover": {}}
    return (
        _template()
        .environment.get_template("exits.html.jinja")
        .render(
            run=run,
            notes=notes,
            after=found["after"],
            rows=[_row(found, member) for member in found["members"]],
            dense=[
                _error(found["baseline"]),
                "1.000x",
                f"{found['baseline']['macs'] / 1e6:.2f} M",
                *("" for _ in found["after"]),
                "100.0 %",
            ],
            figures=list(COSTS.items()),
            payload=_script_json(payload),
            plotly_js=Markup(get_plotlyjs()),
        )
    )


def _row(found: Mapping[str, Any], member: Mapping[str, Any]) -> dict[str, Any]:
    metrics = member["metrics"]
    limits = ", ".join(f"{name} ≥ {limit:.3f}" for name, limit in member["policy"]["exits"].items())
    shares = [f"{100 * metrics[f'share_{number}']:.1f} %" for number in range(len(found["after"]) + 1)]
    cells = [
        _error(metrics),
        f"{metrics['expected_latency_ratio']:.3f}x",
        f"{metrics['expected_macs'] / 1e6:.2f} M",
        *shares,
    ]
    return {"id": member["id"], "limits": limits, "cells": cells}


def _error(metrics: Mapping[str, Any]) -> str:
    whole = whole_test_text(metrics)
    return value_text("error_pct", metrics["error_pct"]) + (f" ({whole})" if whole else "")


def _figure(found: Mapping[str, Any], cost: str, title: str, quality: str) -> go.Figure:
    figure = blank(400)
    curve, members = found["curve"], [member["metrics"] for member in found["members"]]
    dense = {"expected_latency_ratio": 1.0, "expected_macs": found["baseline"]["macs"]}[cost]
    lines = [
        ("thresholds on validation pictures", curve, {"mode": "lines", "line": {"color": FINAL, "width": 1.5}}),
        ("exported files on test pictures", members, {"mode": "markers", "marker": {"color": KNEE, "size": 9}}),
    ]
    for name, points, look in lines:
        x, y = ([short(point[key]) for point in points] for key in (cost, "error_pct"))
        figure.add_trace(go.Scatter(x=x, y=y, name=name, **look))
    marker = {"color": DENSE, "size": 11, "symbol": "diamond"}
    error = short(found["baseline"]["error_pct"])
    figure.add_trace(go.Scatter(x=[dense], y=[error], name="dense network", mode="markers", marker=marker))
    figure.update_layout(
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        xaxis={"title": title, "rangemode": "tozero"},
        yaxis={"title": f"{metric_title('error_pct', quality)} in %"},
        margin={"l": 60, "r": 14, "t": 12, "b": 50},
    )
    return figure
