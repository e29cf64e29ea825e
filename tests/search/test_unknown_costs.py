"""Runs of networks with an operation whose cost is not known."""

from __future__ import annotations

from pathlib import Path

import paretopress as pp
import pytest
import torch
from paretopress.policies.errors import SearchError
from paretopress.search import api
from paretopress.search.cli import run
from paretopress.tests.search.runs import front_of
from torch import Tensor, nn

QUICK = {
    "space": {"precision": ["float32", "w8a8"]},
    "search": {"sampler": "random", "evaluations": 2, "batch": 1, "finalists": 1, "screen_error": 100.0},
    "recovery": {"epochs": 0},
    "latency": {"screen_seconds": 0.05, "pairs": 50},
    "pool": {"kind": "in-process"},
}


class Tangent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.first(x.flatten(1))
        return self.last(torch.tan(hidden / 10))


@pytest.mark.usefixtures("one_core")
def test_the_report_names_operations_of_unknown_cost_and_can_be_written_again(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    found = pp.search(Tangent(), "digits", evaluations=2, out=directory, **QUICK)
    assert {member["metrics"]["unknown_operations"] for member in front_of(directory)["front"]} == {1}
    page = (directory / "report.html").read_text()
    assert "at least" in page and "cost not known: tan" in page
    (directory / "report.html").unlink()
    assert run(["report", str(directory)]) == 0 and len(found) == 1
    assert "cost not known: tan" in (directory / "report.html").read_text()


def test_what_stopped_a_run_is_told_and_not_that_its_report_failed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(_: object) -> None:
        raise SearchError("all finalists failed")

    def unwritable(*_: object) -> None:
        raise TypeError("'int' object is not iterable")

    monkeypatch.setattr(api, "run_stages", stopped)
    monkeypatch.setattr(api, "write_report", unwritable)
    with pytest.raises(SearchError, match="all finalists failed"):
        pp.search(Tangent(), "digits", evaluations=2, out=tmp_path / "run", **QUICK)
