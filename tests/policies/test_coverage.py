"""The table of real networks: its columns pass on small networks, a crash is a result, finished cells are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from paretopress.policies import graph
from paretopress.policies.trials import Trial
from paretopress.tests.bench.coverage import run
from paretopress.tests.bench.coverage.cell import try_cell
from paretopress.tests.bench.coverage.columns import COLUMNS
from paretopress.tests.bench.coverage.networks import NETWORKS, Network
from paretopress.tests.bench.coverage.page import render
from paretopress.tests.bench.coverage.silenced import silence_channels
from torch import nn

torch.set_num_threads(1)


class Credulous(Trial):
    """Believes that every group can lose channels."""

    def reason(self, groups, shares=()):
        return None


TINY = (Network("family:resnet20", "residual", 16), Network("timm:test_efficientnet", "inverted residuals", 32))


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("network", TINY, ids=lambda network: network.label)
def test_a_small_network_passes_every_column(network: Network, column: str) -> None:
    found = try_cell(network, column)
    assert found["status"] == "passes", found["reason"]
    ratios = {name: value for name, value in found["figures"].items() if name.endswith("_ratio")}
    assert ratios and all(0 < value < 1 for value in ratios.values())


def test_a_group_whose_channels_come_to_other_places_is_wrong_and_a_refused_one_is_not(monkeypatch) -> None:
    monkeypatch.setattr(graph, "Trial", Credulous)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ChannelShuffle(4), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 5))
    figures, complaints = silence_channels(model.eval(), torch.randn(2, 3, 8, 8))
    assert {name: figures[f"groups_{name}"] for name in ("exact", "refused", "wrong")} == {
        "exact": 1,
        "refused": 1,
        "wrong": 1,
    }
    assert len(complaints) == 1 and complaints[0].startswith("'0' changes the outputs")


def test_a_network_without_channels_to_lose_is_refused_in_words() -> None:
    found = try_cell(Network("torch.nn:Flatten", "nothing to compress", 8), "channel pruning")
    assert found["status"] == "refused"
    assert "no nn.Conv2d" in found["reason"]


def test_a_cell_that_dies_is_a_result_and_finished_cells_are_kept(tmp_path: Path) -> None:
    path, dying = tmp_path / "coverage.json", Network("os:abort", "dies", 8)
    kept = {"status": "passes", "reason": "", "figures": {"macs_ratio": 0.5}, "cpu_seconds": 1.0}
    path.write_text(json.dumps({"versions": {}, "cells": {dying.name: {"low rank": kept}}}))
    run.run(path, [dying], ["low rank", "int8 export"], cpu_limit_s=60)
    row = run.load(path)["cells"][dying.name]
    assert row["low rank"] == kept
    assert row["int8 export"]["status"] == "fails"
    assert "died with exit code -6" in row["int8 export"]["reason"]


def test_the_page_counts_passes_and_gives_reasons_in_notes() -> None:
    figures = {"macs_ratio": 0.5, "onnx_bytes_ratio": 0.25, "stored_bytes_ratio": 0.1}
    figures |= {"groups_exact": 12, "groups_refused": 1, "groups_wrong": 0}
    passing = {"status": "passes", "reason": "", "figures": figures, "cpu_seconds": 2.4}
    refused = {"status": "refused", "reason": "two\n  lines", "figures": {}, "cpu_seconds": 1.0}
    rows = [dict.fromkeys(COLUMNS, passing), dict.fromkeys(COLUMNS, passing) | {"low rank": refused}]
    page = render({"versions": {"torch": "2"}, "cells": {n.name: row for n, row in zip(NETWORKS, rows)}})
    assert "✓ 0.25, 2 s" in page
    assert f"1. `{NETWORKS[1].label}`, low rank: two lines" in page
    assert "| **2 of 2** | **2 of 2** | **1 of 2** | **2 of 2** |" in page
    assert "✓ 12 exact, 1 refused, 0 wrong, 2 s" in page
    assert "Groups of channels of these networks: 24 exact, 2 refused, 0 wrong." in page


def test_the_table_names_each_network_once() -> None:
    names = [network.name for network in NETWORKS]
    assert len(set(names)) == len(names) >= 27
