"""Sensitivity curves: harm against what is taken from a layer, all layers in one picture (Han et al. 2015, figure 6). Pure.

A trace that belongs to one unit carries ``meta`` ``u0``, ``u1``, ... (its place in the network), and so does its label as
``name``: the page picks units out by it. Hover texts are looked up by ``customdata``, ``v:<index of the variant>``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from .sensitivity_data import Profile, Unit, curve, figure_of, harshness, knobs, precision, units
from .sensitivity_scale import FEW_UNITS, Window, colours, window
from .sensitivity_text import QUANTITIES, brief, option_text
from .style import blank, short

MOST_LABELS, LABEL, HEIGHT = 6, 14, 400
AXES = {
    "sparsity": "weights set to zero",
    "precision": "precision",
    "rank": "weights that the factors keep",
    "channels": "channels kept",
}


def curve_figures(profile: Profile) -> dict[str, dict[str, go.Figure]]:
    """Quantity -> knob -> a curve for each unit (Han et al. 2015, figure 6); what nobody measured is absent."""
    out: dict[str, dict[str, go.Figure]] = {}
    # Of a block, which is there or not, and of rewrites, which are of different kinds, there is no curve.
    gradual = [knob for knob in knobs(profile) if knob not in ("blocks", "rewrite")]
    for quantity in QUANTITIES:
        drawn = {knob: [curve(profile, unit, knob) for unit in units(profile)] for knob in gradual}
        found = [figure_of(profile, i, quantity) for lines in drawn.values() for line in lines for i in line]
        # One window for all knobs, so that they can be held against each other.
        view = window(value for value in found if value is not None)
        if view is not None:
            made = {knob: _curves(profile, knob, quantity, lines, view) for knob, lines in drawn.items()}
            out[quantity] = {knob: figure for knob, figure in made.items() if figure is not None}
    return out


def _curves(
    profile: Profile, knob: str, quantity: str, lines: Sequence[Sequence[int]], view: Window
) -> go.Figure | None:
    figure, everyone = blank(HEIGHT), units(profile)
    options = sorted(
        {profile.variants[i].choices[knob] for line in lines for i in line}, key=lambda option: harshness(knob, option)
    )
    places = _places(knob, options)
    points = [_points(profile, knob, quantity, line, places) for line in lines]
    last = {number: [y for _, y, _ in one if y is not None][-1:] for number, one in enumerate(points)}
    ends = {number: view.place(value) for number, found in last.items() for value in found}
    if not ends:
        return None
    named = _label_heights(ends, view)
    palette = colours(len(everyone))
    figure.add_traces([_line(everyone[n], n, palette[n], points[n], view, n in named) for n in ends])
    labels = [_label(everyone[n], n, palette[n], named.get(n, math.log10(y)), n in named) for n, y in ends.items()]
    figure.update_layout(annotations=labels, margin={"t": 30, "r": 16 + 7 * max(len(one["text"]) for one in labels)})
    figure.update_yaxes(view.axis(QUANTITIES[quantity]))
    figure.update_xaxes(_option_axis(knob, options, places))
    return figure


def _points(
    profile: Profile, knob: str, quantity: str, line: Sequence[int], places: dict[str | float, float]
) -> list[tuple[float | None, float | None, str]]:
    """Positions, values and hover keys; a gap between families of precision, which are no steps of one another."""
    out: list[tuple[float | None, float | None, str]] = []
    last = ""
    ordered = sorted(line, key=lambda i: places[profile.variants[i].choices[knob]])
    for index in ordered:
        option = profile.variants[index].choices[knob]
        family = precision(str(option))[0] if knob == "precision" else ""
        if out and family != last:
            out.append((None, None, ""))
        last = family
        out.append((places[option], figure_of(profile, index, quantity), f"v:{index}"))
    return out


def _places(knob: str, options: Sequence[str | float]) -> dict[str | float, float]:
    """Where options stand on the axis: by the logarithm of the share kept; precisions one by one, family by family."""
    if knob != "precision":
        kept = {option: 1 - float(option) if knob == "sparsity" else float(option) for option in options}
        return {option: -math.log2(share) for option, share in kept.items()}
    out: dict[str | float, float] = {}
    place, last = 0.0, ""
    for option in sorted(options, key=lambda option: (precision(str(option))[2], harshness(knob, option))):
        family = precision(str(option))[0]
        place += 0.0 if not out else 1.0 if family == last else 1.5
        last = family
        out[option] = place
    return out


def _option_axis(knob: str, options: Sequence[str | float], places: dict[str | float, float]) -> dict[str, Any]:
    span = max(places.values()) - min(places.values()) or 1.0
    shown: list[str | float] = []
    for option in sorted(options, key=places.__getitem__):
        if not shown or places[option] - places[shown[-1]] >= 0.055 * span:
            shown.append(option)
    words = {"text": AXES[knob], "standoff": 8}
    ends = [min(places.values()) - 0.05 * span, max(places.values()) + 0.05 * span]
    labels = [escape(option_text(knob, option, alone=True)) for option in shown]
    ticks = {"tickmode": "array", "tickvals": [short(places[option]) for option in shown], "ticktext": labels}
    return {"title": words, "range": ends, "automargin": True, **ticks}


def _line(
    unit: Unit,
    number: int,
    colour: str,
    points: Sequence[tuple[float | None, float | None, str]],
    view: Window,
    named: bool,
) -> go.Scatter:
    return go.Scatter(
        x=[None if x is None else short(x) for x, _, _ in points],
        y=[None if y is None else short(view.place(y)) for _, y, _ in points],
        customdata=[key for *_, key in points],
        name=escape(unit.name),
        meta=f"u{number}",
        mode="lines+markers",
        hoverinfo="text",
        opacity=1.0 if named else 0.55,
        line={"color": colour, "width": 2 if named else 1.2},
        marker={"size": 6 if named else 4, "color": colour},
    )


def _label(unit: Unit, number: int, colour: str, height: float, shown: bool) -> dict[str, Any]:
    """The name of a unit beside the end of its curve."""
    return {
        "name": f"u{number}",
        "text": escape(brief(unit.name, LABEL)),
        "visible": shown,
        "x": 1.005,
        "xref": "paper",
        "xanchor": "left",
        "y": short(height),
        "yanchor": "middle",
        "showarrow": False,
        "font": {"size": 11, "color": colour},
    }


def _label_heights(ends: Mapping[int, float], view: Window) -> dict[int, float]:
    """Where names stand, as powers of ten: all of a few units, else the extremes; the others wait until they are picked."""
    order = sorted(ends, key=ends.__getitem__)
    lowest = MOST_LABELS // 3
    shown = order if len(order) <= FEW_UNITS else [*order[:lowest], *order[lowest - MOST_LABELS :]]
    gap = 16 / (HEIGHT - 100) * view.decades * 1.08
    heights = _apart([math.log10(ends[number]) for number in shown], gap, math.log10(view.high))
    return dict(zip(shown, heights))


def _apart(heights: Sequence[float], gap: float, top: float) -> list[float]:
    """Ascending heights moved as little as a greedy pass can, so that neighbours are a gap apart and none is above the top."""
    out: list[float] = []
    for height in heights:
        out.append(height if not out else max(height, out[-1] + gap))
    limit = top
    for i in range(len(out) - 1, -1, -1):
        out[i] = min(out[i], limit)
        limit = out[i] - gap
    return out
