"""Dropped blocks on the pages: every layer that is gone says so."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from paretopress.policies.architectures import ResNet20
from paretopress.policies.graph import ModelGraph
from paretopress.search.report.layers import layer_rows
from paretopress.search.report.sensitivity import Profile, Variant, render_sensitivity
from paretopress.search.report.sensitivity_curves import curve_figures
from paretopress.search.report.text import policy_lines
from paretopress.search.summary import note_layers, with_gone_layers

torch.set_num_threads(1)

DROPPED = {"version": 1, "layers": {"layer1.2.conv1": [{"drop_branch": {}}], "conv1": [{"share": {"clusters": 8}}]}}


@pytest.fixture(scope="module")
def layers() -> list[dict[str, Any]]:
    noted: dict[str, str] = {}
    graph = ModelGraph.trace(ResNet20(width=8).eval(), torch.randn(1, 3, 32, 32))
    note_layers(SimpleNamespace(set_meta=noted.__setitem__), graph)
    return json.loads(noted["layers"])


def test_every_layer_of_a_dropped_block_is_named(layers):
    policy = with_gone_layers({"id": "a", "policy": DROPPED}, layers)["policy"]
    what = {row.name: row.what for row in layer_rows(SimpleNamespace(layers=layers), policy)}
    assert [name for name, text in what.items() if text == "block dropped"] == ["layer1.2.conv1", "layer1.2.conv2"]
    assert what["conv1"] == "k8"
    names = [layer["name"] for layer in layers]
    assert "layer1.2.conv1, layer1.2.conv2: block dropped" in policy_lines(policy, names, width=80)


def test_without_dropped_blocks_or_what_they_hold_a_policy_is_shown_as_it_is(layers):
    kept = {"policy": {"version": 1, "layers": {"conv1": [{"share": {"clusters": 8}}]}}}
    assert with_gone_layers(kept, layers) == kept
    unknown = [{key: value for key, value in layer.items() if key != "dropped_with"} for layer in layers]
    assert with_gone_layers({"policy": DROPPED}, unknown)["policy"] == DROPPED


def test_the_page_of_sensitivity_has_dropped_blocks_but_no_curve_of_them(layers):
    figures = {"kl": 0.01, "relative_error": 0.1, "weighted_error": 0.2, "stored_bytes": 500.0, "onnx_bytes": None}
    rest = {"latency_ratio": 0.9, "dominated": False, "failure": None}
    unit = "layer1.2.conv1"
    variants = [
        Variant(unit, (unit,), {"precision": precision, "blocks": "keep"}, **figures, **rest)
        for precision in ("float32", "w8", "w4")
    ]
    lost = replace(variants[0], choices={"precision": "float32", "blocks": "drop"}, kl=0.3, stored_bytes=0.0)
    profile = Profile("run", "net", "data", {}, 64, layers, [*variants, replace(lost, weighted_error=None)], 1.0, None)
    assert {knob for drawn in curve_figures(profile).values() for knob in drawn} == {"precision"}
    assert "block dropped" in render_sensitivity(profile)
