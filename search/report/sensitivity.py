"""The page of sensitivity curves: how much each layer is harmed by what is taken from it, and what each layer costs."""

from __future__ import annotations

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from . import sensitivity_facts as facts
from . import sensitivity_tables as tables
from .page import _script_json, _template
from .sensitivity_curves import HEIGHT, curve_figures
from .sensitivity_data import Profile, Variant, ranking, units
from .sensitivity_figures import cloud_figure, latency_figure, ranking_figure, size_figure
from .sensitivity_scale import FEW_UNITS, colours
from .sensitivity_text import QUANTITIES, hover_texts

__all__ = ["Profile", "Variant", "render_sensitivity"]


def render_sensitivity(profile: Profile) -> str:
    """The page as self-contained HTML (about 5 MB, nearly all of it plotly.js); it loads nothing."""
    found, everyone, curves = ranking(profile), units(profile), curve_figures(profile)
    drawn = {
        "ranking": ranking_figure(profile, found),
        "size": size_figure(profile),
        "latency": latency_figure(profile),
        "cloud": cloud_figure(profile),
    }
    figures = {name: figure for name, figure in drawn.items() if figure is not None}
    figures |= {f"{quantity}-{knob}": one for quantity, group in curves.items() for knob, one in group.items()}
    plain = {name: figure.to_plotly_json() for name, figure in figures.items()}
    return (
        _template()
        .environment.get_template("sensitivity.html.jinja")
        .render(
            profile=profile,
            units=everyone,
            colours=colours(len(everyone)),
            many=len(everyone) > FEW_UNITS,
            ranking=found,
            headline=facts.headline(profile, found),
            remarks=facts.remarks(profile, found),
            tiles=facts.tiles(profile, found),
            counts=facts.counts(profile),
            cost_lead=facts.cost_lead(profile),
            trust=facts.trust(profile),
            quantities=QUANTITIES,
            titles={name: title[0].upper() + title[1:] for name, title in QUANTITIES.items()},
            curves=curves,
            curve_height=HEIGHT,
            **{f"{name}_height": figure.layout.height if figure else None for name, figure in drawn.items()},
            additivity=tables.additivity_rows(profile),
            failures=tables.failures(profile),
            columns=tables.columns(profile),
            rows=tables.variant_rows(profile),
            methods=tables.methods(profile),
            dense=tables.dense_rows(profile),
            payload=_script_json({"figures": plain, "hover": hover_texts(profile)}),
            plotly_js=Markup(get_plotlyjs()),
        )
    )
