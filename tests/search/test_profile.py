"""``paretopress profile``: the bank for its own sake, and for the search that follows in the same directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.policies.errors import CandidateError
from paretopress.search.cli import run
from paretopress.tests.search.runs import few_variants, meta, rows, write_config
from paretopress.tests.search.test_report import Page

pytestmark = pytest.mark.usefixtures("one_core")

Profiled = tuple[Path, Mapping[str, Any]]


def profile(config: dict[str, Any], directory: Path, capsys: pytest.CaptureFixture[str]) -> Mapping[str, Any]:
    path = write_config(directory / "small.yaml", config)
    assert run(["profile", str(path), "--out", str(directory / "run"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(content, dict)
    return content


def test_the_bank_is_measured_drawn_and_used_by_the_search_in_the_same_directory(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = {"stored": "9kB", "error": "+5.0"}
    summary = profile(few_variants(trained, budgets=budgets), tmp_path, capsys)
    directory = tmp_path / "run"
    assert summary["variants"] == 16 and summary["failed"] == 0 and summary["seconds"] > 0
    assert summary["additivity"]["policies"] >= 10 and "kl_spearman" in summary["additivity"]
    assert summary["additivity"]["stored_bytes_median_error_pct"] < 1.0
    page = Page(Path(summary["sensitivity"]).read_text())
    assert all(layer in page.text for layer in ("conv1", "conv2", "fc1", "fc2"))
    assert not list((directory / "policies").glob("*")) and not (directory / "front.json").exists()
    before = rows(directory, "profile") + rows(directory, "kernels")

    def never(*_: object) -> Any:
        raise AssertionError("a variant was measured again")

    for rung in ("profile", "kernels"):
        monkeypatch.setattr(CandidateEvaluator, rung, never)
    check_resumed(directory, summary, capsys)
    assert run(["search", str(tmp_path / "small.yaml"), "--out", str(directory), "--json"]) == 0
    assert rows(directory, "profile") + rows(directory, "kernels") == before
    check_report(directory)


def check_resumed(directory: Path, summary: Mapping[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """A directory that was only profiled is resumed as a profile, and there is nothing to export."""
    capsys.readouterr()
    assert run(["resume", str(directory), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == summary
    assert meta(directory, "command") == "profile" and not (directory / "front.json").exists()
    assert run(["export", str(directory), "--out", str(directory / "a.onnx")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "holds what 'profile' made and no search" in said and "begins a search there" in said


def check_report(directory: Path) -> None:
    said = meta(directory, "unreachable") or ""
    assert "stored_bytes: expected at most 9,000" in said and "fc1" in said
    page = Page((directory / "report.html").read_text())
    assert "By the bank, no policy keeps the budgets" in page.text and "Left dense" not in page.text
    assert "estimated_stored_bytes" not in page.text
    screened = rows(directory, "screen")
    done = [row for row in rows(directory, "stitch") if row.state == "done"]
    assert f"{len(done)} candidates tried on the lowest rung, {len(screened)} screened" in " ".join(page.text.split())
    numbers = {key for key in page.payload["hover"] if key.startswith("h:")}
    measured = [row for rung in ("screen", "tune", "recover", "test") for row in rows(directory, rung)]
    assert numbers == {f"h:{i}" for i in range(len([row for row in measured if row.origin != "dense"]))}


def test_a_profile_where_everything_fails_says_so_on_its_page(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Any:
        raise CandidateError("no kernel for this operator")

    for rung in ("profile", "stitch"):
        monkeypatch.setattr(CandidateEvaluator, rung, broken)
    summary = profile(few_variants(trained), tmp_path, capsys)
    assert summary["failed"] == summary["variants"] == 16 and summary["additivity"] == {}
    assert "No variant was measured: all 16 failed" in Page(Path(summary["sensitivity"]).read_text()).text


def test_a_wrong_configuration_is_refused_and_leaves_the_directory_free(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = write_config(tmp_path / "wrong.yaml", few_variants(trained, space={"precision": ["w99"]}))
    assert run(["profile", str(wrong), "--out", str(tmp_path / "run")]) == 2
    assert "space.precision" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert run(["profile", str(tmp_path / "absent.yaml")]) == 2
