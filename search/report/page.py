"""The page: one HTML file that loads nothing, neither from the network nor from beside it."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jinja2
import plotly.graph_objects as go
import yaml
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from ...policies.coding.stream import PARTS
from . import facts
from .controls import control_columns, control_rows
from .data import ReportData, chosen
from .figures import front_figures, front_series
from .hover import hover_texts
from .layers import layer_rows
from .learned import learned_rows
from .progress import reference_point
from .rungs import correlations, rung_rows
from .text import metric_title, seconds_text, shape_text, value_text
from .timeline import best_figure, hypervolume_figure, seconds_figure


def render(data: ReportData) -> str:
    """The report of a run as self-contained HTML (about 5 MB, nearly all of it plotly.js)."""
    front, history = front_figures(data), _history_figures(data)
    figures = {f"front-{i}": figure for i, (_, _, figure) in enumerate(front)}
    figures |= {name: figure for name, figure in history.items() if figure is not None}
    return _template().render(
        data=data,
        entry=chosen(data),
        facts=facts,
        front=[(title, note) for title, note, _ in front],
        front_drawn=any(trace.x for *_, figure in front for trace in figure.data if trace.meta != "dense"),
        history=history,
        series=front_series(data),
        rows=facts.table_rows(data),
        dense=[facts.cell(data, {"latency_ratio": 1.0, **data.baseline}, metric) for metric in facts.columns(data)],
        columns=[(metric, metric_title(metric, data.quality)) for metric in facts.columns(data)],
        controls=control_rows(data),
        control_columns=control_columns(data),
        part_names=PARTS,
        shapes={e["id"]: shape_text(e["policy"]["shape"]) for e in data.front if e["policy"].get("shape")},
        layers=[
            (entry, layer_rows(data, entry["policy"], data.shaped_layers.get(entry["id"]))) for entry in data.front
        ],
        reference=[(metric_title(m, data.quality), value_text(m, value)) for m, value in reference_point(data).items()],
        failures=facts.failures(data),
        learned=learned_rows(data),
        rungs=rung_rows(data),
        correlations=correlations(data),
        methods=[(metric_title(name, data.quality), text) for name, text in data.methods.items()],
        environment=_flatten(data.environment),
        config=yaml.safe_dump(_plain(data.config), sort_keys=False, allow_unicode=True, width=100),
        duration=seconds_text(data.seconds_total),
        worker_seconds=seconds_text(sum(sum(kinds.values()) for kinds in facts.seconds_by_kind(data).values())),
        payload=_script_json(
            {"figures": {name: figure.to_plotly_json() for name, figure in figures.items()}, "hover": hover_texts(data)}
        ),
        plotly_js=Markup(get_plotlyjs()),
    )


def _history_figures(data: ReportData) -> dict[str, go.Figure | None]:
    return {"hypervolume": hypervolume_figure(data), "best": best_figure(data), "seconds": seconds_figure(data)}


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja")


def _script_json(payload: Any) -> Markup:
    """JSON that may stand in a script element: no text in it can close the element or open a comment."""
    text = json.dumps(payload, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _flatten(tree: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested mappings as (dotted name, value) pairs."""
    if not hasattr(tree, "items"):
        items = tree if isinstance(tree, list | tuple) else [tree]
        return [(prefix, ", ".join(str(item) for item in items) if tree is not None else "not recorded")]
    return [
        pair for name, value in tree.items() for pair in _flatten(value, f"{prefix}.{name}" if prefix else str(name))
    ]


def _plain(tree: Any) -> Any:
    """Mappings and sequences as the types that YAML writes; anything else that is no scalar as text."""
    if hasattr(tree, "items"):
        return {str(name): _plain(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_plain(item) for item in tree]
    return tree if tree is None or isinstance(tree, bool | int | float | str) else str(tree)
