"""The figures of what each layer costs and where it stands, without a template as in ``figures``. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from .sensitivity_data import Profile, Ranking, Unit, figure_of, measured, units
from .sensitivity_scale import DECADES, FEW_UNITS, colours, window
from .sensitivity_text import QUANTITIES, brief, part_text, small_text
from .style import DENSE, FINAL, LIMIT, QUIET, blank, short

CLOUD_HEIGHT = 520


def ranking_figure(profile: Profile, found: Ranking) -> go.Figure | None:
    """KL of each unit at the same compression, the most fragile at the top; ``None`` where there are not two to compare."""
    view = window(standing.kl for standing in found.standings)
    if view is None or len(found.standings) < 2:
        return None
    names = [unit.name for unit in units(profile)]
    figure = _rows([standing.unit.name for standing in found.standings])
    places = list(range(len(found.standings)))
    values = [short(view.place(standing.kl)) for standing in found.standings]
    figure.add_trace(_stems(places, [(view.low / 10**DECADES, value) for value in values]))
    palette = colours(len(names))
    figure.add_trace(
        go.Scatter(
            x=values,
            y=places,
            customdata=[f"v:{standing.variant}" for standing in found.standings],
            text=[small_text(standing.kl) for standing in found.standings],
            textposition="middle right",
            textfont={"size": 11},
            cliponaxis=False,
            mode="markers+text",
            hoverinfo="text",
            marker={"size": 9, "color": [palette[names.index(standing.unit.name)] for standing in found.standings]},
        )
    )
    figure.update_xaxes(view.axis(QUANTITIES["kl"]))
    figure.update_layout(margin={"t": 30, "r": 76})
    return figure


def size_figure(profile: Profile) -> go.Figure | None:
    """Stored bytes of each unit: its float32 weights and every variant."""
    everyone = units(profile)
    known = [measured(variant.stored_bytes) for variant in profile.variants]
    view = window([*(v for v in known if v is not None), *(unit.dense_bytes or 0.0 for unit in everyone)])
    if view is None:
        return None
    figure = _rows([_with_share(profile, unit) for unit in everyone])
    dense = {number: unit.dense_bytes for number, unit in enumerate(everyone) if unit.dense_bytes}
    for trace in _dots(profile, everyone, "stored_bytes", dense):
        figure.add_trace(trace)
    figure.add_trace(
        go.Scatter(
            x=[short(value) for value in dense.values()],
            y=list(dense),
            customdata=[f"d:{number}" for number in dense],
            name="dense",
            mode="markers",
            hoverinfo="text",
            marker={"symbol": "diamond", "size": 9, "color": DENSE},
        )
    )
    figure.update_xaxes(view.bytes_axis("stored bytes"))
    return figure


def latency_figure(profile: Profile) -> go.Figure | None:
    """Latency of the whole network by one unit's choice, a row a unit; ``None`` where none was measured."""
    everyone = units(profile)
    known = [v for variant in profile.variants if (v := measured(variant.latency_ratio)) is not None]
    if not known:
        return None
    figure = _rows([_with_share(profile, unit) for unit in everyone])
    for trace in _dots(profile, everyone, "latency_ratio", dict.fromkeys(range(len(everyone)), 1.0)):
        figure.add_trace(trace)
    figure.add_vline(x=1.0, line={"color": LIMIT, "width": 1.2, "dash": "dash"}, layer="below")
    margin = 0.06 * (max(*known, 1.0) - min(*known, 1.0)) + 0.005
    ends = [short(min(*known, 1.0) - margin), short(max(*known, 1.0) + margin)]
    title = {"text": "latency against dense", "standoff": 8}
    figure.update_xaxes(title=title, ticksuffix="×", range=ends, nticks=5, automargin=True)
    return figure


def _with_share(profile: Profile, unit: Unit) -> str:
    total = sum(int(layer["weights"]) for layer in profile.layers)
    return f"{brief(unit.name, 16)} · {part_text(unit.weights / total)}" if unit.weights else brief(unit.name, 22)


def _dots(profile: Profile, everyone: Sequence[Unit], quantity: str, dense: Mapping[int, float]) -> list[go.Scatter]:
    """A mark for each variant, the dominated ones behind, and a stem from the dense network's figure to the least."""
    rows: dict[bool, list[tuple[int, int, float]]] = {True: [], False: []}
    least: dict[int, float] = {}
    for number, unit in enumerate(everyone):
        for index in unit.variants:
            value = figure_of(profile, index, quantity)
            if value is not None:
                rows[profile.variants[index].dominated].append((number, index, value))
                least[number] = min(value, least.get(number, value))
    stemmed = [number for number in dense if number in least]
    stems = _stems(stemmed, [(least[number], dense[number]) for number in stemmed])
    return [stems, *(_marks(members, dominated) for dominated, members in rows.items() if members)]


def _marks(members: Sequence[tuple[int, int, float]], dominated: bool) -> go.Scatter:
    colour = QUIET if dominated else FINAL
    return go.Scatter(
        x=[short(value) for *_, value in members],
        y=[number for number, *_ in members],
        customdata=[f"v:{index}" for _, index, _ in members],
        name="dominated" if dominated else "variants",
        mode="markers",
        hoverinfo="text",
        opacity=0.4 if dominated else 0.9,
        marker={"symbol": "line-ns-open", "size": 9, "color": colour, "line": {"width": 1.6, "color": colour}},
    )


def _rows(labels: Sequence[str]) -> go.Figure:
    """A blank figure with a line for each label, from the top."""
    figure = blank(92 + (28 if len(labels) <= 20 else 18) * max(2, len(labels)))
    ticks = {"tickvals": list(range(len(labels))), "ticktext": [escape(brief(text, 24)) for text in labels]}
    figure.update_layout(margin={"t": 30})
    figure.update_yaxes(range=[len(labels) - 0.4, -0.6], automargin=True, tickmode="array", **ticks)
    return figure


def _stems(rows: Sequence[int], ends: Sequence[tuple[float, float]]) -> go.Scatter:
    x = [value for first, last in ends for value in (short(first), short(last), None)]
    y = [value for row in rows for value in (row, row, None)]
    line = {"color": QUIET, "width": 1}
    return go.Scatter(x=x, y=y, mode="lines", hoverinfo="skip", line=line, opacity=0.45)


def cloud_figure(profile: Profile) -> go.Figure | None:
    """KL against stored bytes, every variant a point, dominated ones faint; a line along the lowest KL at each size."""
    everyone = units(profile)
    points = {
        index: (stored, kl)
        for index, variant in enumerate(profile.variants)
        if (stored := measured(variant.stored_bytes)) and (kl := measured(variant.kl)) is not None
    }
    across, up = window(stored for stored, _ in points.values()), window(kl for _, kl in points.values())
    if across is None or up is None:
        return None
    figure = blank(CLOUD_HEIGHT)
    for number, (unit, colour) in enumerate(zip(everyone, colours(len(everyone)))):
        there = sorted((i for i in unit.variants if i in points), key=points.__getitem__)
        kept = [i for i in there if not profile.variants[i].dominated]
        faint = [i for i in there if profile.variants[i].dominated]
        strengths = (0.28, 0.8, 1.0) if len(everyone) <= FEW_UNITS else (0.18, 0.4, 0.7)
        for members, strength, mode in zip(
            (faint, _lower_edge(kept, points), kept), strengths, ("markers", "lines", "markers")
        ):
            places = [(points[i][0], up.place(points[i][1])) for i in members]
            if places:
                trace = _cloud(places, members, colour, mode, strength)
                figure.add_trace(trace | {"name": escape(unit.name), "meta": f"u{number}"})
    figure.update_layout(margin={"t": 30})
    figure.update_xaxes(across.bytes_axis("stored bytes of the unit"))
    figure.update_yaxes(up.axis(QUANTITIES["kl"]))
    return figure


def _cloud(
    places: Sequence[tuple[float, float]], members: Sequence[int], colour: str, mode: str, strength: float
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "x": [short(x) for x, _ in places],
        "y": [short(y) for _, y in places],
        "customdata": [f"v:{i}" for i in members],
        "mode": mode,
        "hoverinfo": "text" if mode == "markers" else "skip",
        "opacity": strength,
        "line": {"color": colour, "width": 1.3},
        "marker": {"color": colour, "size": 5 if strength < 0.3 else 6},
    }


def _lower_edge(indices: Sequence[int], points: Mapping[int, tuple[float, float]]) -> list[int]:
    """Of points sorted by size, those with a KL below that of everything smaller."""
    out: list[int] = []
    for index in indices:
        if not out or points[index][1] < points[out[-1]][1]:
            out.append(index)
    return out
