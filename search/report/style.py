"""What the figures share: colours that read on light and on dark, a blank figure, short numbers. Pure."""

from __future__ import annotations

import math
from typing import Any

import plotly.graph_objects as go

from .data import ReportData
from .text import value_text

KNEE, FINAL, DENSE, LIMIT, QUIET = "#e8790c", "#2f7fe0", "#808a94", "#d6404a", "#7a7f87"
SHADE = "rgba(214,64,74,0.09)"
ORIGIN_COLOURS = ("#8a63d2", "#12967f", "#b5851b", "#c2569b", "#5b8c2a", QUIET)
KIND_COLOURS = (FINAL, "#12967f", KNEE, "#8a63d2", "#c2569b", "#b5851b", "#5b8c2a", DENSE)
LINES = ((LIMIT, "dash"), ("#b5851b", "dot"), ("#5b8c2a", "dashdot"), ("#c2569b", "longdash"))
LEGEND = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom", "font": {"size": 11}}


def origin_colours(data: ReportData) -> dict[str, str]:
    """A colour for each origin of a screened candidate, in order of appearance."""
    names = dict.fromkeys(str(row["origin"]) for row in data.history if row["fidelity"] == "screen")
    return {name: ORIGIN_COLOURS[min(i, len(ORIGIN_COLOURS) - 1)] for i, name in enumerate(names)}


def blank(height: int) -> go.Figure:
    """A figure without a template: the page sets the colours of text and grid."""
    layout = {
        "template": go.layout.Template(),
        "height": height,
        "margin": {"l": 8, "r": 14, "t": 12, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "showlegend": False,
        "hovermode": "closest",
        "font": {"size": 12},
    }
    return go.Figure(layout=layout)


def short(value: float) -> float:
    """Six digits: more than a screen shows, and the page stays small."""
    return float(f"{value:.6g}")


def log_ticks(metric: str, window: tuple[float, float]) -> dict[str, Any]:
    """Ticks of a logarithmic axis with units: 1, 2 and 5 of each decade, or less where that would be crowded."""
    decades = math.log10(window[1] / window[0])
    steps = (1, 2, 5) if decades < 1.6 else (1, 3) if decades < 3.5 else (1,)
    # Ticks beyond the first view serve whoever zooms out.
    first, last = math.floor(math.log10(window[0])) - 2, math.ceil(math.log10(window[1])) + 2
    values = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    if decades < 0.5:
        return {"nticks": 6, "tickformat": "~s", "ticksuffix": "B" if metric.endswith("_bytes") else ""}
    labels = [_tick(metric, value) for value in values]
    return {"tickmode": "array", "tickvals": values, "ticktext": labels}


def _tick(metric: str, value: float) -> str:
    return f"{value:g}" if metric.endswith("_pct") else value_text(metric, value).replace(".00", "").replace(".0", "")
