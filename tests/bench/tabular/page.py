"""The result as one HTML file that loads nothing, drawn by the plotly that the report embeds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from paretopress.search.report.style import blank
from plotly.offline import get_plotlyjs

COLOURS = (
    "#808a94", "#b5851b", "#5b8c2a", "#b08d9f", "#d6404a", "#e8790c", "#c2569b", "#8a63d2", "#12967f", "#2f7fe0", "#1b6f8f",
)  # fmt: skip
BEST = "#808a94"
ABOUT = {
    "digits": "A convolutional network on scikit-learn's digits, every policy of its menus truly measured.",
    "synthetic": "50 layers with 80 variants each; the bank errs on each layer by a log-normal factor, neighbours interact.",
}
NOTES = {
    "evaluations": "Where a method runs out of policies its last value is held.",
    "seconds": "Bank, thinking and the stated cost of evaluations; methods that read the bank begin when it is built.",
    "attainment": "Least error that half of the seeds reach with at most so many bytes, at the end; latency left out.",
}


def render(result: Mapping[str, Any]) -> str:
    """The page of a result (``__main__`` makes it)."""
    found = result["problems"]
    titles = {name: row["title"] for problem in found.values() for name, row in problem["methods"].items()}
    colours = dict(zip(titles, COLOURS))
    figures = {
        f"{name}-{kind}": figure
        for name, problem in found.items()
        for kind, figure in _figures(problem, colours).items()
    }
    # Figures' texts are ours, but "<" would still end the script element.
    payload = json.dumps({name: figure.to_plotly_json() for name, figure in figures.items()}).replace("<", "\\u003c")
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return template.from_string(Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")).render(
        methods=[{"name": name, "title": title, "colour": colours[name]} for name, title in titles.items()],
        problems=[_problem(name, problem) for name, problem in found.items()],
        overhead=_overhead(result["overhead"], titles) if "overhead" in result else None,
        payload=Markup(payload),
        plotly_js=Markup(get_plotlyjs()),
    )


def _problem(name: str, problem: Mapping[str, Any]) -> dict[str, Any]:
    titles = {
        "evaluations": "Hypervolume against evaluations",
        "seconds": "Hypervolume against time",
        "attainment": "Attainment: error against size",
    }
    reference = ", ".join(f"{metric} {value:.6g}" for metric, value in problem["reference"].items())
    return {
        "name": name,
        "about": ABOUT[name],
        "seeds": len(problem["seeds"]),
        "evaluation": f"{problem['evaluation_seconds']:.2g} s",
        "bank": f"{problem['bank_seconds']:.3g} s",
        "reference": reference,
        "steps": list(next(iter(problem["methods"].values()))["mean"]),
        "bases": [problem["methods"][base]["title"] for base in problem["paired"]],
        "rows": [_row(problem, method) for method in problem["methods"]],
        "figures": [{"key": f"{name}-{kind}", "title": title, "note": NOTES[kind]} for kind, title in titles.items()],
    }


def _row(problem: Mapping[str, Any], method: str) -> list[str]:
    found = problem["methods"][method]
    cells = [found["title"], *(f"{mean:.3f}" for mean in found["mean"].values())]
    for base, differences in problem["paired"].items():
        cells += ["—" if method == base else _difference(differences[method][step]) for step in found["mean"]]
    return [*cells, f"{1e3 * found['thinking_s_per_candidate']:.2f}"]


def _difference(found: Mapping[str, Any]) -> str:
    return f"{found['mean']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f}), {found['wins']}/{found['seeds']}"


def _overhead(found: Mapping[str, Any], titles: Mapping[str, str]) -> dict[str, Any]:
    evaluation = found["evaluation_seconds"]
    seconds = {
        f"{part}: {name}".replace("_", " "): value
        for part in ("solver", "study")
        for name, value in found[part].items()
    }
    seconds |= {f"method: {titles[name]}": row["seconds_per_candidate"] for name, row in found["methods"].items()}
    rows = [[name, f"{1e3 * value:.3f}", f"{value / evaluation:.2%}"] for name, value in seconds.items()]
    return {"evaluation": f"{evaluation:g} s", "target": f"{found['target_share']:.0%}", "rows": rows}


def _figures(problem: Mapping[str, Any], colours: Mapping[str, str]) -> dict[str, go.Figure]:
    out = {}
    for kind, curves in problem["curves"].items():
        figure = blank(height=400)
        shape = "linear" if kind == "evaluations" else "hv"
        if "best_known" in curves:
            line = {"color": BEST, "width": 1.5, "dash": "dash", "shape": shape}
            median = curves["best_known"]["median"]
            figure.add_trace(go.Scatter(x=curves["x"], y=median, name="best known", mode="lines", line=line))
        for name, band in curves["methods"].items():
            for trace in _band(name, problem["methods"][name]["title"], curves["x"], band, colours[name], shape):
                figure.add_trace(trace)
        figure.update_layout(hovermode="closest")
        figure.update_xaxes(automargin=True, **_x_axis(kind))
        title = "error (%)" if kind == "attainment" else "hypervolume over the best known"
        highest = problem["reference"]["error_pct"] if kind == "attainment" else 1.0
        figure.update_yaxes(title={"text": title}, range=[0, highest], automargin=True)
        out[kind] = figure
    return out


def _x_axis(kind: str) -> dict[str, Any]:
    if kind == "evaluations":
        return {"title": {"text": "evaluations"}}
    text, suffix = ("seconds", " s") if kind == "seconds" else ("stored size", "B")
    return {"title": {"text": text}, "type": "log", "dtick": "D2", "tickformat": "~s", "ticksuffix": suffix}


def _band(
    name: str, title: str, x: list[float], band: Mapping[str, list[float | None]], colour: str, shape: str
) -> list[go.Scatter]:
    """The quartiles as a filled band without a hover text, and the median as a line over it."""
    places = [i for i, (low, high) in enumerate(zip(band["q25"], band["q75"])) if low is not None and high is not None]
    around = [*places, *reversed(places)]
    edges = [band["q75"][i] for i in places] + [band["q25"][i] for i in reversed(places)]
    tint = f"rgba({int(colour[1:3], 16)},{int(colour[3:5], 16)},{int(colour[5:7], 16)},0.13)"
    filled = go.Scatter(
        x=[x[i] for i in around], y=edges, fill="toself", fillcolor=tint, line={"width": 0}, mode="lines",
        hoverinfo="skip", meta=name,
    )  # fmt: skip
    line = {"color": colour, "width": 2, "shape": shape}
    median = go.Scatter(x=x, y=band["median"], name=title, mode="lines", line=line, meta=name)
    return [filled, median]
