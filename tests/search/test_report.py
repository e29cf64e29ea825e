"""The report: self-contained, honest about what is missing, unharmed by hostile text."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from paretopress.policies.techniques import TECHNIQUES
from paretopress.search.pareto import hypervolume
from paretopress.search.report import ReportData, render
from paretopress.search.report.data import axes, chosen, keeps, misses
from paretopress.search.report.facts import banner, commands, failures, headline, seconds_by_kind, table_rows, tiles
from paretopress.search.report.figures import front_figures, front_series
from paretopress.search.report.layers import layer_rows
from paretopress.search.report.progress import best_so_far, hypervolume_curve, hypervolume_curves
from paretopress.search.report.rungs import correlations, rung_rows
from paretopress.search.report.text import _STEPS, policy_lines, step_text, times_text, value_text
from paretopress.tests.search.report_fixture import BASELINE, make_run, with_bank

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> {{ 7*7 }} & \u2028"


class Page(HTMLParser):
    """Elements with their attributes, and the text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else ""
        if self._inside == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif not self._inside:
            self.text += data

    @property
    def payload(self) -> dict[str, Any]:
        index = next(i for i, (_, attrs) in enumerate(self._script_tags()) if attrs.get("id") == "payload")
        return json.loads(self.scripts[index])

    def _script_tags(self) -> list[tuple[str, dict[str, str | None]]]:
        return [(tag, attrs) for tag, attrs in self.tags if tag == "script"]


@pytest.fixture(scope="module")
def run() -> ReportData:
    return make_run()


@pytest.fixture(scope="module")
def html(run: ReportData) -> str:
    return render(run)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_nothing_is_loaded_from_anywhere(html: str, page: Page) -> None:
    loads = [attrs.get(name) or "" for _, attrs in page.tags for name in ("src", "href", "srcset", "action", "data")]
    assert all(target == "" or target.startswith("#") for target in loads)
    assert "link" not in {tag for tag, _ in page.tags}
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style is not None and "url(" not in style[1] and "@import" not in style[1]
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")


def test_plotly_stands_in_the_page_once(html: str) -> None:
    assert html.count("window.Plotly = Plotly") == 1


def test_uploading_a_figure_is_switched_off(page: Page) -> None:
    assert "showSendToCloud: false" in page.scripts[-1]


def test_every_policy_of_the_front_has_its_export_commands(run: ReportData, html: str) -> None:
    text = unescape(html)
    for entry in run.front:
        for target, out in (("onnx", "model.onnx"), ("press", "model.press"), ("bundle", "bundle")):
            assert f"paretopress export 'runs/mnist lenet5' --pick {entry['id']} --to {target} --out {out}" in text


def test_commands_quote_the_directory_for_the_shell() -> None:
    assert commands("a; rm -rf $HOME", "abc")[0].startswith("paretopress export 'a; rm -rf $HOME' --pick abc --to onnx")


def test_budgets_are_drawn_as_a_line_and_a_shaded_side(run: ReportData) -> None:
    for (x, y), (_, _, figure) in zip(
        (("stored_bytes", "error_pct"), ("latency_ratio", "error_pct"), ("latency_ratio", "stored_bytes")),
        front_figures(run),
    ):
        drawn = {lim["metric"]: lim["bound"] for lim in run.limits if lim["metric"] in (x, y)}
        lines = {
            shape.x0 if shape.x0 == shape.x1 else shape.y0 for shape in figure.layout.shapes if shape.type == "line"
        }
        assert lines == set(drawn.values()) and len(drawn) == 2
        for shape in figure.layout.shapes:
            if shape.type == "rect":
                low, high = (shape.x0, shape.x1) if shape.xref == "x" else (shape.y0, shape.y1)
                assert low in lines and high > low
        words = {note.text for note in figure.layout.annotations}
        assert words == {str(lim["budget"]) for lim in run.limits if lim["metric"] in drawn}


def test_a_bound_in_milliseconds_is_drawn_on_an_axis_in_milliseconds(run: ReportData) -> None:
    limited = replace(run, limits=[{"budget": "latency: 0.2ms", "metric": "latency_ms", "bound": 0.2}])
    assert axes(limited) == ("error_pct", "stored_bytes", "latency_ms")
    assert front_figures(limited)[1][2].layout.xaxis.title.text == "latency, ms"


def test_screened_and_final_figures_never_share_a_series(run: ReportData) -> None:
    screened = {f"h:{row['number']}" for row in run.history if row["fidelity"] == "screen"}
    for series in front_series(run):
        keys = {key for key, _ in series.points}
        assert keys <= screened or not keys & screened
        assert ("screened, before recovery, validation" in series.name) == bool(keys & screened)


def test_finals_carry_their_intervals_and_screened_points_none(run: ReportData) -> None:
    figure = front_figures(run)[0][2]
    with_bars = {trace.meta for trace in figure.data if trace.error_y.array is not None}
    assert with_bars == {"kept", "missed", "knee"}


def test_size_axes_are_logarithmic(run: ReportData) -> None:
    figures = [figure for *_, figure in front_figures(run)]
    assert figures[0].layout.xaxis.type == "log" and figures[2].layout.yaxis.type == "log"
    assert figures[1].layout.xaxis.type is None


def test_every_drawn_point_has_a_hover_text(page: Page) -> None:
    payload = page.payload
    keys = {
        key for figure in payload["figures"].values() for trace in figure["data"] for key in trace.get("customdata", [])
    }
    assert keys and keys <= set(payload["hover"])


def test_hostile_text_stays_text(run: ReportData) -> None:
    history = [
        {**row, "origin": HOSTILE, **({"error": HOSTILE, "error_class": HOSTILE} if row["state"] == "failed" else {})}
        for row in run.history
    ]
    front = [{**entry, "policy": {"version": 1, "layers": {HOSTILE: [{HOSTILE: {HOSTILE: 1}}]}}} for entry in run.front]
    limits = [{**limit, "budget": HOSTILE} for limit in run.limits]
    hostile = replace(
        run, run=HOSTILE, history=history, front=front, limits=limits, config={HOSTILE: HOSTILE}, directory=HOSTILE
    )
    page = Page(render(hostile))
    assert "img" not in {tag for tag, _ in page.tags}
    assert len(page.scripts) == 3 and not any(script.startswith("alert") for script in page.scripts)
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert HOSTILE in page.text
    for figure in page.payload["figures"].values():
        named = [trace.get("name", "") for trace in figure["data"]] + [
            a["text"] for a in figure["layout"].get("annotations", [])
        ]
        assert not any("<" in text for text in named)


def _failed(run: ReportData) -> ReportData:
    reason = {"state": "failed", "metrics": {}, "seconds": {}, "error_class": "CandidateError", "error": "too large"}
    return replace(run, front=[], history=[{**row, **reason} for row in run.history])


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            replace(make_run(0, finals=0), history=[], layers=[], methods={}, environment={}, config={}),
            "The front is empty",
        ),
        (_failed(make_run(30, finals=0)), "30 evaluations are recorded, 30 of them failed"),
        (make_run(20, finals=1), "misses the budget stored: 44kB by"),
        (make_run(40, finals=4, limits=[]), "No budgets were set"),
        (replace(make_run(40, finals=4), baseline={}), "not measured"),
        (replace(make_run(40, finals=4), history=[]), "No evaluation is recorded"),
    ],
)
def test_a_run_with_little_in_it_still_has_a_report(data: ReportData, said: str) -> None:
    page = Page(render(data))
    assert said in page.text
    json.dumps(page.payload, allow_nan=False)


def test_a_large_run_stays_within_its_size() -> None:
    large = make_run(2000, depth=60, finals=12)
    assert len(render(large).encode()) < 6.5e6


def test_the_headline_and_tiles_follow_from_the_figures() -> None:
    run = make_run()
    metrics = {
        **run.front[0]["metrics"],
        "error_pct": 0.9,
        "error_ci95": [0.7, 1.1],
        "stored_bytes": 43108,
        "latency_ratio": 0.5,
    }
    entry = {**run.front[0], "knee": True, "feasible": True, "metrics": metrics}
    data = replace(run, front=[entry])
    assert headline(data, entry) == (
        f"The knee of the front, {entry['id']}, is stored in 43.1 kB (40.0× smaller), runs 2.00× faster than the dense network"
        " and errs on 0.90 % of the test pictures against the dense network's 0.84 %."
    )
    texts = [cell.text for _, cell in tiles(data, entry)]
    assert texts == ["0.90 %", "40.0× smaller", "2.00× faster", "3 of 3"]


def test_what_was_not_measured_says_so_and_is_in_no_sentence() -> None:
    run = make_run()
    entry = {**run.front[0], "metrics": {"error_pct": 1.0}}
    assert [cell.text for _, cell in tiles(run, entry)] == ["1.00 %", "not measured", "not measured", "1 of 3"]
    assert "stored" not in headline(run, entry) and "faster" not in headline(run, entry)
    cells = table_rows(replace(run, front=[entry]))[0]["cells"]
    assert isinstance(cells, list) and [cell.value is None for cell in cells] == [False] + [True] * 9


def test_unknown_operations_are_named_and_make_a_count_a_lower_bound() -> None:
    run = make_run()
    entry = {**run.front[0], "metrics": {**run.front[0]["metrics"], "macs": 2e6, "unknown_operations": 1}}
    page = Page(render(replace(run, front=[entry], unknown_operations=["_fft_r2c"])))
    assert "at least 2.00 M" in page.text and "cost not known: _fft_r2c" in page.text
    # A candidate with others than the dense network, and a run of an earlier release.
    for known in ([], ["_fft_r2c", "gru"]):
        assert "cost not known: 1 operation" in Page(render(replace(run, front=[entry], unknown_operations=known))).text


def test_agreement_is_never_called_error(run: ReportData) -> None:
    data = replace(run, quality="agreement", baseline={**BASELINE, "error_pct": 0.0})
    assert front_figures(data)[0][2].layout.yaxis.title.text == "disagreement with the dense network (%)"
    assert "disagrees with the dense network on" in headline(data, chosen(data))
    assert "Error here means disagreement" in Page(render(data)).text


def test_the_nearest_policy_leads_where_none_keeps_the_budgets() -> None:
    limits = [{"budget": "stored: 12kB", "metric": "stored_bytes", "bound": 12000.0}]
    run = make_run(40, finals=4, limits=limits)
    nearest = min(run.front, key=lambda entry: entry["metrics"]["stored_bytes"])
    lead = chosen(run)
    assert lead is not None and lead["id"] == nearest["id"]
    share = round(100 * (nearest["metrics"]["stored_bytes"] / 12000 - 1))
    assert f"The nearest, {nearest['id']}, misses the budget stored: 12kB by {share} %" in banner(run)


def test_no_banner_where_a_policy_keeps_the_budgets(run: ReportData) -> None:
    assert any(entry["feasible"] for entry in run.front) and banner(run) == ""


def test_a_figure_that_is_missing_keeps_no_budget(run: ReportData) -> None:
    assert not keeps(run.limits, {"error_pct": 0.1})
    entry = {**run.front[0], "feasible": False, "misses": {}, "metrics": {"error_pct": 0.1}}
    assert misses(run, entry) == {"stored_bytes": math.inf, "latency_ratio": math.inf}


def test_the_hypervolume_curve_ends_at_the_hypervolume() -> None:
    values = np.random.default_rng(0).random((40, 3)) * 1.2
    curve = hypervolume_curve(values, np.ones(3))
    for i in (0, 7, 39):
        assert curve[i] == pytest.approx(hypervolume(values[: i + 1], np.ones(3)))


def test_each_origin_is_judged_on_its_own_points_too(run: ReportData) -> None:
    curves = hypervolume_curves(run)
    assert set(curves) == {"all", "uniform", "sampler"}
    assert curves["all"][1][-1] >= max(curves["uniform"][1][-1], curves["sampler"][1][-1])


def test_best_so_far_counts_only_what_keeps_the_budget() -> None:
    def row(number: int, error: float, size: float) -> dict[str, Any]:
        return {"number": number, "fidelity": "screen", "metrics": {"error_pct": error, "stored_bytes": size}}

    limit = {"budget": "stored: 50", "metric": "stored_bytes", "bound": 50.0}
    numbers, errors = best_so_far([row(0, 3.0, 90), row(1, 5.0, 40), row(2, 1.0, 60), row(3, 4.0, 50)], [limit])
    assert numbers.tolist() == [1, 3] and errors.tolist() == [5.0, 4.0]


def test_failures_are_counted_by_reason(run: ReportData) -> None:
    groups, more = failures(run)
    assert sum(int(str(group["count"])) for group in groups) == sum(row["state"] == "failed" for row in run.history)
    assert more == 0 and {group["class"] for group in groups} == {"CandidateError", "Timeout"}
    assert failures(run, limit=1)[1] == 1


def test_seconds_are_summed_by_rung_and_kind(run: ReportData) -> None:
    recovered = [row for row in run.history if row["fidelity"] == "recover"]
    assert seconds_by_kind(run)["recover"]["train"] == pytest.approx(21.0 * len(recovered))


def test_layers_show_what_is_kept_of_the_dense_shape(run: ReportData) -> None:
    policy = {
        "layers": {
            "conv2": [{"prune_channels": {"sparsity": 0.5, "multiple": 8}}, {"quantize": {"bits": 4}}],
            "fc1": [{"svd": {"rank": 125}}, {"prune_magnitude": {"sparsity": 0.9}}, {"share": {"clusters": 16}}],
        }
    }
    conv1, conv2, fc1, _ = layer_rows(run, policy)
    assert conv1.what == "untouched" and conv1.sparsity is None and not conv1.bits.touched
    assert conv2.channels is not None and conv2.channels.label == "24 of 50" and conv2.bits.share == 0.5
    assert fc1.rank is not None and fc1.rank.share == 0.25 and fc1.what == "rank 125 + 90 % zeros + k16"
    assert fc1.bits.label == "16 values (4 bit)"


def test_every_technique_has_a_short_form() -> None:
    steps = [
        ({"quantize": {"bits": 8, "activations": "int8"}}, "w8a8"),
        ({"quantize": {"bits": 3, "activations": "float32"}}, "w3"),
        ({"share": {"clusters": 32}}, "k32"),
        ({"prune_channels": {"sparsity": 0.25, "multiple": 8}}, "−25 % channels"),
        ({"svd_spatial": {"rank": 6}}, "spatial rank 6"),
        ({"tucker2": {"rank_in": 4, "rank_out": 8}}, "Tucker 4→8"),
        ({"novel": {"strength": 2}}, "novel(strength=2)"),
    ]
    assert [step_text(step) for step, _ in steps] == [expected for _, expected in steps]


def test_layers_treated_alike_share_a_line() -> None:
    same = [{"quantize": {"bits": 4}}]
    policy = {"layers": {"a": same, "b": same, "c": same, "d": same, "e": [{"share": {"clusters": 8}}]}}
    assert policy_lines(policy, ["a", "b", "c", "d", "e", "f"]) == [
        "a … d (4 layers): w4",
        "e: k8",
        "f: float32, untouched",
    ]


def test_figures_are_in_human_units() -> None:
    cases = [
        ("stored_bytes", 44000.0, "44.0 kB"),
        ("macs", 2_293_000, "2.29 M"),
        ("latency_ms", 0.412, "412 µs"),
        ("latency_ratio", 0.553, "0.55×"),
        ("energy_uj_estimate", 1520.0, "1.52 mJ"),
        ("error_pct", 0.9, "0.90 %"),
        ("peak_memory_bytes", None, "not measured"),
    ]
    assert [value_text(metric, value) for metric, value, _ in cases] == [text for *_, text in cases]
    assert times_text(2.0, "faster", "slower") == "2.00× slower"


# Rungs


def test_each_rung_says_how_many_it_saw_and_what_it_took(run: ReportData) -> None:
    rows = {row["rung"]: row for row in rung_rows(with_bank(run))}
    assert list(rows) == ["bank, layers", "bank, kernels", "stitched", "screened", "recovered", "tested"]
    assert (rows["bank, layers"]["done"], rows["bank, kernels"]["done"], rows["bank, layers"]["time"]) == (
        "4",
        "3",
        "2.00 s",
    )
    screened = [row for row in run.history if row["fidelity"] == "screen"]
    failed = sum(row["state"] == "failed" for row in screened)
    assert rows["stitched"]["done"] == rows["screened"]["done"] == str(len(screened) - failed)
    assert rows["screened"]["failed"] == str(failed) and rows["tested"]["done"] == "8"


def test_rungs_are_shown_only_where_there_was_a_bank(run: ReportData, page: Page) -> None:
    assert rung_rows(run) == [] and "rungs" not in {attrs.get("id") for _, attrs in page.tags}
    shown = Page(render(with_bank(run)))
    assert "rungs" in {attrs.get("id") for _, attrs in shown.tags} and "rank correlation" in shown.text


@pytest.mark.parametrize(
    ("follows", "text", "meaning"), [(True, "1.00", "a third of them is screened"), (False, "-1.00", "half of the")]
)
def test_correlations_between_rungs_are_of_what_both_measured(
    run: ReportData, follows: bool, text: str, meaning: str
) -> None:
    first, second = correlations(with_bank(run, follows))
    assert first["correlation"] == text and meaning in first["meaning"]
    assert first["pairs"] == str(sum(row["fidelity"] == "screen" and row["state"] == "done" for row in run.history))
    assert second["pairs"] == "8" and second["correlation"] != "—"


def test_too_few_pairs_are_no_correlation() -> None:
    for finals, known in ((3, False), (4, True)):
        few = with_bank(make_run(7, finals=finals))
        first, second = correlations(few)
        assert (first["pairs"], first["correlation"]) == ("7", "—") and "Too few pairs" in first["meaning"]
        assert second["pairs"] == str(finals) and (second["correlation"] != "—") == known


def test_estimated_figures_are_in_no_plot_and_under_no_measured_name(run: ReportData, page: Page) -> None:
    banked = Page(render(with_bank(run)))
    drawn, before = banked.payload, page.payload
    assert drawn["hover"] == before["hover"]
    same = set(before["figures"]) - {"seconds"}
    assert all(drawn["figures"][name] == before["figures"][name] for name in same)
    assert all(told not in banked.text for told in ("123.5 kB", "77.7", "7 B"))
    assert "tried on the lowest rung" in banked.text and "tried on the lowest rung" not in page.text


def test_layers_left_dense_and_budgets_out_of_reach_are_said_as_text(run: ReportData) -> None:
    page = Page(render(replace(run, left_dense={HOSTILE: HOSTILE}, unreachable="by the bank, none fits")))
    assert "Left dense" in page.text and HOSTILE in page.text and "By the bank, none fits." in page.text
    assert "img" not in {tag for tag, _ in page.tags} and len(page.scripts) == 3


def test_every_technique_has_words_of_its_own() -> None:
    assert set(_STEPS) == set(TECHNIQUES)


def test_the_stored_bytes_of_each_policy_are_split_and_sum_to_the_file(run: ReportData) -> None:
    parts = {"weights": 3000, "indices": 1500, "codebooks": 240, "header": 260}
    page = render(replace(run, stored_parts={str(run.front[0]["id"]): parts}))
    assert "What the stored bytes hold" in page
    cells = re.findall(r"<td>([\d,]+)</td>", page.split('<table class="parts">')[1].split("</table>")[0])
    assert cells == ["3,000", "1,500", "240", "260", "5,000"]
    assert "What the stored bytes hold" not in render(run)


@pytest.mark.parametrize(
    ("step", "label"),
    [
        ({"share_soft": {"clusters": 15}}, "0 and 15 values (4 bit)"),
        ({"product_quantize": {"clusters": 256, "dimension": 4}}, "256 codewords (2 bit)"),
        ({"residual_quantize": {"clusters": 16, "dimension": 8, "stages": 2}}, "16 codewords (1 bit)"),
        ({"hash_weights": {"share": 0.125}}, "hashed values (4 bit)"),
    ],
)
def test_shared_codes_show_their_bits_a_weight(run: ReportData, step: dict[str, Any], label: str) -> None:
    name = str(run.layers[0]["name"])
    rows = {row.name: row for row in layer_rows(run, {"layers": {name: [step]}})}
    assert rows[name].bits.label == label
