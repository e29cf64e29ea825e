"""The page of sensitivity curves: what it says follows from the figures, and nothing is shown that was not measured."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from paretopress.search.report.sensitivity import Profile, Variant, render_sensitivity
from paretopress.search.report.sensitivity_curves import curve_figures
from paretopress.search.report.sensitivity_data import curve, harshness, knobs, ranking, units
from paretopress.search.report.sensitivity_facts import cost_lead, extremes, headline, remarks, tiles, trust
from paretopress.search.report.sensitivity_figures import cloud_figure, latency_figure, ranking_figure, size_figure
from paretopress.search.report.sensitivity_scale import colours, window
from paretopress.search.report.sensitivity_tables import columns, failures, methods, variant_rows
from paretopress.search.report.sensitivity_text import brief, choice_text, hover_texts, part_text, small_text
from paretopress.tests.search.report_fixture import BASELINE, layers
from paretopress.tests.search.test_report import HOSTILE, Page

MENU: Mapping[str, Sequence[str | float]] = {
    "sparsity": (0.0, 0.5, 0.8, 0.9),
    "precision": ("float32", "w8", "w4", "k16", "w8a8", "w4a8"),
}
BITS = {"float32": 32, "w8": 8, "w4": 4, "k16": 4, "w8a8": 8, "w4a8": 4}
# How much harm a unit takes; LeNet-5 has four.
FRAGILITY = (100.0, 10.0, 0.1, 1.0)
CHECKED = {
    "kl_spearman": 0.97,
    "stored_bytes_median_error_pct": 1.2,
    "latency_ratio_median_error_pct": 4.0,
    "policies": 20,
}


def make_variant(layer: Mapping[str, Any], fragility: float, choices: Mapping[str, str | float]) -> Variant:
    """Stored size is the exact share of float32; harm grows with what is taken away, and is nothing where nothing is."""
    share = (1 - float(choices.get("sparsity", 0.0))) * BITS[str(choices.get("precision", "float32"))] / 32
    share *= float(choices.get("rank", 1.0)) * float(choices.get("channels", 1.0))
    stored = 4 * layer["weights"] * share
    harm = 1e-3 * (1 - share) * (2 - share) ** 4
    ratio = 0.7 if str(choices.get("precision")).endswith("a8") else 1.0
    name = layer["name"]
    return Variant(
        name, (name,), choices, fragility * harm, harm, 2 * harm, stored, 4 * stored, ratio, share < 0.03, None
    )


def make_profile(
    depth: int = 4, menu: Mapping[str, Sequence[str | float]] = MENU, fragility: Sequence[float] = FRAGILITY
) -> Profile:
    network = layers(depth)
    variants = [
        make_variant(layer, fragility[i % len(fragility)], dict(zip(menu, options)))
        for i, layer in enumerate(network)
        for options in itertools.product(*menu.values())
    ]
    return Profile("lenet5 bank", "family:lenet5", "mnist", BASELINE, 512, network, variants, 83.0, CHECKED)


def without(profile: Profile, **figures: None) -> Profile:
    return replace(profile, variants=[replace(variant, **figures) for variant in profile.variants])


def failed(variant: Variant, reason: str) -> Variant:
    nothing = dict.fromkeys(
        ("kl", "relative_error", "weighted_error", "stored_bytes", "onnx_bytes", "latency_ratio"), None
    )
    return replace(variant, **nothing, dominated=False, failure=reason)


@pytest.fixture(scope="module")
def profile() -> Profile:
    return make_profile()


@pytest.fixture(scope="module")
def page(profile: Profile) -> Page:
    return Page(render_sensitivity(profile))


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    loads = [attrs.get(name) or "" for _, attrs in page.tags for name in ("src", "href", "srcset", "action", "data")]
    assert all(target == "" or target.startswith("#") for target in loads)
    assert "link" not in {tag for tag, _ in page.tags}
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


def test_every_figure_of_the_page_is_in_its_payload_and_every_point_has_a_hover_text(page: Page) -> None:
    payload = page.payload
    assert {attrs["data-figure"] for _, attrs in page.tags if "data-figure" in attrs} == set(payload["figures"])
    assert set(payload["figures"]) == {
        "ranking", "size", "latency", "cloud",
        "kl-sparsity", "kl-precision", "relative_error-sparsity", "relative_error-precision",
    }  # fmt: skip
    traces = [trace for figure in payload["figures"].values() for trace in figure["data"]]
    keys = {key for trace in traces for key in trace.get("customdata", []) if key}
    assert {key for key in keys if key.startswith("v:")} == {f"v:{i}" for i in range(96)}
    assert keys <= set(payload["hover"])


def test_sections_that_the_page_links_to_are_there(page: Page) -> None:
    ids = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    links = {str(attrs["href"])[1:] for tag, attrs in page.tags if tag == "a"}
    assert links and links <= ids


def test_layers_are_ranked_at_the_same_compression(profile: Profile) -> None:
    found = ranking(profile)
    assert [standing.unit.name for standing in found.standings] == ["conv1", "conv2", "fc2", "fc1"]
    for standing in found.standings:
        fitting = [
            variant
            for variant in profile.variants
            if variant.unit == standing.unit.name and 4 * standing.unit.weights / variant.stored_bytes >= found.ratio
        ]
        assert standing.kl == min(variant.kl for variant in fitting)
        assert profile.variants[standing.variant].kl == standing.kl


def test_compression_that_wrecks_every_layer_ranks_none() -> None:
    strong = ranking(make_profile(fragility=(0.4, 0.3, 0.2, 0.1)))
    weak = ranking(make_profile(fragility=(40.0, 30.0, 20.0, 10.0)))
    assert strong.ratio == 64 and weak.ratio is not None and weak.ratio < strong.ratio


def test_a_unit_that_cannot_be_stored_so_small_is_named_and_not_ranked() -> None:
    profile = make_profile(depth=6, fragility=(0.5, 0.4, 0.3, 0.2, 0.1, 0.05))
    large = [replace(v, stored_bytes=2 * v.stored_bytes) if v.unit == "layer0.3.conv" else v for v in profile.variants]
    found = ranking(replace(profile, variants=large))
    assert [unit.name for unit in found.beyond] == ["layer0.3.conv"] and found.ratio == 64
    assert remarks(profile, found) == ["layer0.3.conv cannot be stored 64× smaller and is not ranked."]


def test_the_headline_names_the_fragile_and_the_free_with_their_figures(profile: Profile) -> None:
    found = ranking(profile)
    fragile, free = extremes(found)
    assert [s.unit.name for s in fragile] == ["conv1"] and [s.unit.name for s in free] == ["fc1", "fc2"]
    text = headline(profile, found)
    assert text == (
        f"Each layer alone stored at least {found.ratio:g}× smaller: the most fragile is conv1"
        f" (KL {small_text(fragile[0].kl)}); the most free are fc1 and fc2 (KL at most {small_text(free[1].kl)},"
        " 100 times less), which together hold 94 % of all weights."
    )


def test_layers_that_are_alike_are_not_told_apart() -> None:
    profile = make_profile(fragility=(1.0, 1.2, 1.1, 1.05))
    assert "no layer stands out" in headline(profile, ranking(profile))


def test_a_curve_moves_one_knob_and_leaves_the_others_at_their_mildest(profile: Profile) -> None:
    first = units(profile)[0]
    line = [profile.variants[i].choices for i in curve(profile, first, "sparsity")]
    assert [choices["sparsity"] for choices in line] == [0.0, 0.5, 0.8, 0.9]
    assert {choices["precision"] for choices in line} == {"float32"}
    line = [profile.variants[i].choices for i in curve(profile, first, "precision")]
    assert [choices["precision"] for choices in line] == ["float32", "w8", "w8a8", "w4", "k16", "w4a8"]
    assert {choices["sparsity"] for choices in line} == {0.0}


def test_the_mildest_is_what_the_menu_has_and_not_the_dense_layer() -> None:
    profile = make_profile(menu={"sparsity": (0.9, 0.5), "precision": ("w4a8", "w8a8")})
    line = [profile.variants[i].choices for i in curve(profile, units(profile)[0], "precision")]
    assert [choices["precision"] for choices in line] == ["w8a8", "w4a8"]
    assert {choices["sparsity"] for choices in line} == {0.5}


def test_options_are_ordered_by_what_they_take_away() -> None:
    order = ["float32", "w8", "k256", "w8a8", "w4", "k16", "w4a8", "k8", "w2", "k2"]
    assert sorted(order, key=lambda option: harshness("precision", option)) == order
    for knob in ("rank", "channels"):
        assert harshness(knob, 0.25) > harshness(knob, 1.0)
    assert harshness("sparsity", 0.9) > harshness("sparsity", 0.5)


def test_curves_show_the_figures_of_their_variants_on_a_logarithmic_axis(profile: Profile) -> None:
    drawn = curve_figures(profile)
    assert set(drawn) == {"kl", "relative_error"} and set(drawn["kl"]) == {"sparsity", "precision"}
    for quantity, figures in drawn.items():
        # One scale for all knobs.
        assert len({tuple(figure.layout.yaxis.range) for figure in figures.values()}) == 1
        for figure in figures.values():
            assert figure.layout.yaxis.type == "log"
            assert [trace.name for trace in figure.data] == ["conv1", "conv2", "fc1", "fc2"]
            for trace in figure.data:
                for key, y in zip(trace.customdata, trace.y):
                    value = getattr(profile.variants[int(key[2:])], quantity) if key else None
                    expected = value if not value else pytest.approx(value, rel=1e-5)
                    assert y == expected or (value == 0 and 0 < y == min(y for y in trace.y if y is not None))


def test_families_of_precision_are_not_joined(profile: Profile) -> None:
    trace = curve_figures(profile)["kl"]["precision"].data[0]
    options = [profile.variants[int(key[2:])].choices["precision"] if key else None for key in trace.customdata]
    assert options == ["float32", None, "w8", "w4", None, "k16", None, "w8a8", "w4a8"]
    places = [x for x in trace.x if x is not None]
    assert places == sorted(places) and len(places) == 6


def test_a_failed_variant_breaks_its_curve() -> None:
    profile = make_profile(menu={"sparsity": (0.0, 0.5, 0.8)})
    variants = [failed(v, "too large") if v.choices["sparsity"] == 0.5 else v for v in profile.variants]
    for trace in curve_figures(replace(profile, variants=variants))["kl"]["sparsity"].data:
        assert [y is None for y in trace.y] == [False, True, False]


def test_a_zero_is_drawn_at_the_lower_edge_and_stays_zero_in_the_table(profile: Profile) -> None:
    zero = next(i for i, v in enumerate(profile.variants) if v.kl == 0)
    traces = [trace for figure in curve_figures(profile)["kl"].values() for trace in figure.data]
    assert traces[0].customdata[0] == f"v:{zero}"
    assert traces[0].y[0] == min(y for trace in traces for y in trace.y if y is not None) > 0
    assert "KL 0\n" in hover_texts(profile)[f"v:{zero}"]


@pytest.mark.parametrize("values", [[0.0, 0.0], [], [-1.0]])
def test_nothing_above_zero_gives_no_logarithmic_axis(values: list[float]) -> None:
    assert window(values) is None


def test_an_axis_spans_no_more_than_seven_decades() -> None:
    view = window([1e-30, 1e-3, 1.0])
    assert view is not None and view.low == pytest.approx(1e-7) and view.place(1e-30) == view.low
    assert view.axis("KL")["ticktext"] == [
        f"10{power}" for power in ("⁻⁹", "⁻⁸", "⁻⁷", "⁻⁶", "⁻⁵", "⁻⁴", "⁻³", "⁻²", "⁻¹")
    ] + [
        "1",
        "10¹",
        "10²",
    ]


def test_labels_beside_the_curves_do_not_cover_one_another(profile: Profile) -> None:
    figure = curve_figures(without(profile, kl=None))["relative_error"]["sparsity"]
    heights = sorted(label.y for label in figure.layout.annotations)
    low, high = figure.layout.yaxis.range
    gap = min(b - a for a, b in itertools.pairwise(heights)) / (high - low) * (figure.layout.height - 100)
    assert len(heights) == 4 and gap >= 12
    assert {label.text for label in figure.layout.annotations} == {"conv1", "conv2", "fc1", "fc2"}


def test_many_units_have_a_colour_each_and_only_the_extremes_a_label() -> None:
    profile = make_profile(60, fragility=[10 ** (i / 20) for i in range(60)])
    assert len(set(colours(60))) == 60
    figure = curve_figures(profile)["kl"]["sparsity"]
    shown = [label.text for label in figure.layout.annotations if label.visible]
    last = [unit.name for unit in units(profile)]
    assert len(figure.data) == 60 and set(shown) == {*last[:2], *last[-4:]}
    page = Page(render_sensitivity(profile))
    chips = {attrs["data-unit"] for _, attrs in page.tags if attrs.get("data-unit")}
    assert chips == {f"u{i}" for i in range(60)}
    assert {trace.meta for trace in figure.data} == chips


def test_a_large_bank_stays_within_its_size() -> None:
    menu = {"sparsity": (0.0, 0.5, 0.7, 0.8, 0.9), "precision": tuple(BITS), "rank": (1.0, 0.5)}
    assert len(render_sensitivity(make_profile(60, menu)).encode()) < 9e6


def test_size_shows_the_dense_weights_and_every_variant(profile: Profile) -> None:
    figure = size_figure(profile)
    assert figure is not None
    drawn = {trace.name: trace for trace in figure.data if trace.name}
    assert list(drawn["dense"].x) == [4.0 * unit.weights for unit in units(profile)]
    points = {key: x for name in ("variants", "dominated") for key, x in zip(drawn[name].customdata, drawn[name].x)}
    assert points == {f"v:{i}": pytest.approx(v.stored_bytes, rel=1e-5) for i, v in enumerate(profile.variants)}
    assert {profile.variants[int(key[2:])].dominated for key in drawn["dominated"].customdata} == {True}
    assert drawn["dominated"].opacity < drawn["variants"].opacity


def test_where_size_and_time_lie_is_said(profile: Profile) -> None:
    text = cost_lead(profile)
    assert text.startswith("Most bytes in float32 lie in fc1 (93 % of all weights).")
    assert "The choice for conv1 moves latency most: from 1.000× to 0.700× of dense (w8a8)." in text
    assert dict(tiles(profile, ranking(profile)))["most bytes"].text == "fc1"


def test_latency_that_was_not_measured_is_in_no_figure_and_no_sentence(profile: Profile) -> None:
    slow = without(profile, latency_ratio=None)
    assert latency_figure(slow) is None and "Latency was not measured" in cost_lead(slow)
    assert "most time to win" not in dict(tiles(slow, ranking(slow)))
    page = Page(render_sensitivity(slow))
    assert "latency" not in page.payload["figures"]
    assert not any("latency" in text for text in page.payload["hover"].values())
    assert "latency" not in dict(methods(slow))
    place = columns(slow).index("latency")
    assert {cells[place].text for *_, cells in variant_rows(slow)} == {"—"}


def test_only_points_with_both_figures_are_in_the_cloud(profile: Profile) -> None:
    variants = [replace(v, kl=None) if i % 3 == 0 else v for i, v in enumerate(profile.variants)]
    figure = cloud_figure(replace(profile, variants=variants))
    assert figure is not None
    keys = [key for trace in figure.data if trace.mode == "markers" for key in trace.customdata]
    assert sorted(keys) == sorted(f"v:{i}" for i in range(len(variants)) if i % 3)
    for trace in figure.data:
        kinds = {profile.variants[int(key[2:])].dominated for key in trace.customdata}
        assert len(kinds) == 1 and (trace.opacity < 0.3) == (kinds == {True})
        if trace.mode == "lines":
            assert list(trace.x) == sorted(trace.x) and list(trace.y) == sorted(trace.y, reverse=True)


def test_a_hover_text_has_all_the_figures(profile: Profile) -> None:
    index = next(i for i, v in enumerate(profile.variants) if v.choices == {"sparsity": 0.5, "precision": "w8a8"})
    lines = hover_texts(profile)[f"v:{index}"].split("\n")
    assert lines[0] == "conv1 · 50 % zeros + w8a8"
    assert lines[1] == "stored 250 B (8.00× smaller)"
    kinds = [
        "KL",
        "relative output error",
        "second-order estimate",
        "ONNX 1.00 kB",
        "latency of the whole network 0.700×",
    ]
    assert all(line.startswith(kind) for line, kind in zip(lines[2:], kinds, strict=True))


def test_the_table_has_a_row_for_each_variant_that_sorts_by_its_figures(profile: Profile, page: Page) -> None:
    rows = variant_rows(profile)
    assert len(rows) == len(profile.variants) == sum("data-of" in attrs for _, attrs in page.tags)
    assert columns(profile)[:2] == ["sparsity", "precision"] and columns(profile)[-1] == "standing"
    assert all(len(cells) == len(columns(profile)) for *_, cells in rows)
    place = columns(profile).index("KL divergence")
    assert sorted(cells[place].value for *_, cells in rows) == sorted(v.kl for v in profile.variants)


def test_failures_are_listed_with_their_reasons(profile: Profile) -> None:
    variants = [
        failed(v, "no kernel" if i % 2 else "too large") if i < 5 else v for i, v in enumerate(profile.variants)
    ]
    partly = replace(profile, variants=variants)
    rows = failures(partly)
    assert [(row["unit"], row["count"], row["reason"]) for row in rows] == [
        ("conv1", "2 of 24", "no kernel"),
        ("conv1", "3 of 24", "too large"),
    ]
    text = Page(render_sensitivity(partly)).text
    assert "Failed variants" in text and "no kernel" in text and "5 failed" in text


def test_no_table_of_failures_where_none_failed(page: Page) -> None:
    assert "Failed variants" not in page.text and "0 failed" in page.text


def test_a_unit_whose_every_variant_failed_is_said_to_stay_dense(profile: Profile) -> None:
    variants = [failed(v, "no kernel") if v.unit == "fc2" else v for v in profile.variants]
    partly = replace(profile, variants=variants)
    assert remarks(partly, ranking(partly)) == [
        "Every variant of fc2 failed; it can only stay dense, the reasons stand below."
    ]
    assert "fc2" not in {standing.unit.name for standing in ranking(partly).standings}


@pytest.mark.parametrize(
    ("checked", "said"),
    [
        (CHECKED, "can be trusted"),
        ({**CHECKED, "kl_spearman": 0.75}, "roughly (rank correlation 0.75)"),
        ({**CHECKED, "kl_spearman": 0.2}, "cannot be trusted"),
        ({**CHECKED, "latency_ratio_median_error_pct": 14.0}, "latency (14 % off) need a correction"),
        ({**CHECKED, "policies": 5}, "Only 5 policies were measured"),
        ({"kl_spearman": math.nan}, "Not checked"),
        (None, "Not checked"),
    ],
)
def test_whether_sums_can_be_trusted_is_said(profile: Profile, checked: Mapping[str, float] | None, said: str) -> None:
    assert said in trust(replace(profile, additivity=checked))


def test_hostile_text_stays_text() -> None:
    base = make_profile()
    names = {f"{layer['name']}": f"{HOSTILE}{i}" for i, layer in enumerate(base.layers)}
    hostile = replace(
        base,
        run=HOSTILE,
        network=HOSTILE,
        data=HOSTILE,
        layers=[{**layer, "name": names[layer["name"]], "kind": HOSTILE} for layer in base.layers],
        variants=[
            replace(failed(v, HOSTILE) if i % 7 == 3 else v, unit=names[v.unit], layers=(names[v.unit],))
            for i, v in enumerate(base.variants)
        ],
        additivity={HOSTILE: 1.0},
    )
    page = Page(render_sensitivity(hostile))
    assert "img" not in {tag for tag, _ in page.tags}
    assert len(page.scripts) == 3 and not any(script.startswith("alert") for script in page.scripts)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert HOSTILE in page.text
    for figure in page.payload["figures"].values():
        axes = [figure["layout"].get(name, {}) for name in ("xaxis", "yaxis")]
        said = [trace.get("name", "") for trace in figure["data"]]
        said += [label["text"] for label in figure["layout"].get("annotations", [])]
        said += [text for axis in axes for text in axis.get("ticktext", [])]
        assert said and not any("<" in text for text in said)


ONE = make_profile(menu={"sparsity": (0.9,)})
NO_WEIGHTS = replace(make_profile(), layers=[])


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (replace(make_profile(), variants=[v for v in make_profile().variants if v.unit == "fc1"]), "fc1 alone stored"),
        (replace(ONE, variants=ONE.variants[:1]), "1 variant of 1 unit"),
        (replace(ONE, variants=[failed(ONE.variants[0], "too large")]), "The only variant failed."),
        (
            replace(make_profile(), variants=[failed(v, "too large") for v in make_profile().variants]),
            "No variant was measured: all 96 failed.",
        ),
        (replace(make_profile(), variants=[]), "The bank holds no variant."),
        (without(make_profile(), kl=None), "Layers are not ranked"),
        (without(make_profile(), stored_bytes=None), "Layers are not ranked"),
        (without(make_profile(), kl=None, relative_error=None, stored_bytes=None), "Not measured"),
        (NO_WEIGHTS, "Layers are not ranked"),
        (replace(make_profile(), dense={}, additivity=None), "Not checked"),
        (replace(ONE, variants=[replace(v, choices={}) for v in ONE.variants[:1]]), "no variant has a KL"),
        (replace(ONE, variants=[replace(v, kl=0.0) for v in ONE.variants]), "costs nothing"),
        (replace(ONE, variants=[replace(v, kl=math.nan, latency_ratio=math.inf) for v in ONE.variants]), "not ranked"),
    ],
)
def test_a_bank_with_little_in_it_still_has_a_page(odd: Profile, said: str) -> None:
    page = Page(render_sensitivity(odd))
    assert said in page.text
    assert {attrs["data-figure"] for _, attrs in page.tags if "data-figure" in attrs} == set(page.payload["figures"])
    json.dumps(page.payload, allow_nan=False)


def test_nothing_is_drawn_where_all_failed() -> None:
    profile = make_profile()
    dead = replace(profile, variants=[failed(v, "too large") for v in profile.variants])
    assert curve_figures(dead) == {} and cloud_figure(dead) is None and latency_figure(dead) is None
    assert ranking_figure(dead, ranking(dead)) is None
    assert all(cell.text == "—" for *_, cells in variant_rows(dead) for cell in cells[2:-1])


def test_tied_layers_are_one_unit() -> None:
    profile = make_profile()
    tied = [replace(v, unit="convs", layers=("conv1", "conv2")) for v in profile.variants if v.unit == "conv1"]
    others = [v for v in reversed(profile.variants) if v.unit.startswith("fc")]
    found = units(replace(profile, variants=[*others, *tied]))
    assert [(unit.name, unit.weights) for unit in found] == [("convs", 25500), ("fc1", 400000), ("fc2", 5000)]


def test_a_knob_that_is_no_choice_has_no_curve_and_a_dash_in_the_table() -> None:
    wide, narrow = make_profile(menu={"rank": (1.0, 0.5)}), make_profile(menu={"channels": (1.0, 0.5)})
    mixed = replace(
        wide, variants=[v for v in (*wide.variants, *narrow.variants) if (v.unit < "d") == ("channels" in v.choices)]
    )
    assert knobs(mixed) == ["rank", "channels"]
    drawn = curve_figures(mixed)["kl"]
    assert [t.name for t in drawn["rank"].data] == ["fc1", "fc2"]
    assert [t.name for t in drawn["channels"].data] == ["conv1", "conv2"]
    assert {cells[0].text for _, unit, cells in variant_rows(mixed) if unit.name == "conv1"} == {"—"}


def test_small_figures_and_choices_have_a_short_form() -> None:
    assert [small_text(v) for v in (None, 0.0, 0.0312, 4.14e-6, 1.0)] == ["—", "0", "0.0312", "4.1×10⁻⁶", "1.00"]
    assert [part_text(v) for v in (0.929, 0.058, 0.00042)] == ["93 %", "5.8 %", "< 0.1 %"]
    name = brief("layer4.11.branch.conv2", 12)
    assert len(name) == 12 and name.endswith("h.conv2") and "…" in name
    variant = make_profile().variants[0]
    cases = [
        ({"sparsity": 0.9, "precision": "k16", "rank": 1.0}, "90 % zeros + k16"),
        ({"rank": 0.5, "channels": 0.75}, "rank 50 % + 75 % channels"),
        ({"sparsity": 0.0, "precision": "float32"}, "0 % zeros + float32"),
        ({}, "its only form"),
    ]
    assert [choice_text(replace(variant, choices=choices)) for choices, _ in cases] == [text for _, text in cases]
