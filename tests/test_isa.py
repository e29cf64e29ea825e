"""The suite under several settings: each runs with its own variables, is kept, and is skipped where the processor lacks it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paretopress.tests.bench.isa import (
    SETTINGS,
    Outcome,
    Setting,
    digest_sources,
    environment_of,
    read_level,
    run_settings,
    run_suite,
)

PASSED = Outcome(3, 0, 1, 2.5, [])
SUITE = """
import os
import subprocess
import sys


def test_the_variable_reaches_processes_of_a_test():
    code = "import os; print(os.environ['ATEN_CPU_CAPABILITY'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "default\\n"


def test_another_settings_variable_does_not():
    assert "ONEDNN_MAX_CPU_ISA" not in os.environ


def test_that_fails():
    assert False
"""


def test_a_setting_runs_the_suite_with_its_variables_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    (tmp_path / "test_suite.py").write_text(SUITE, encoding="utf-8")
    arguments = ["-p", "no:cacheprovider", str(tmp_path / "test_suite.py")]
    outcome = run_suite(Setting("aten default", {"ATEN_CPU_CAPABILITY": "default"}), tmp_path / "runs", arguments)
    assert (outcome.passed, outcome.failed, outcome.skipped) == (2, 1, 0)
    assert [name.rpartition("::")[2] for name in outcome.failures] == ["test_that_fails"]
    with pytest.raises(RuntimeError, match=r"no verdict under 'none'.*see .*none\.log"):
        run_suite(Setting("none", {}), tmp_path / "runs", [str(tmp_path / "nothing.py")])


def test_settings_are_kept_and_those_that_the_processor_lacks_are_skipped(tmp_path: Path) -> None:
    file, lines, runs = tmp_path / "isa.json", [], []

    def run(setting: Setting) -> Outcome:
        runs.append(setting.name)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return PASSED

    with pytest.raises(KeyboardInterrupt):
        run_settings(file, "AVX2", {"sources": "a"}, run, lines.append)
    assert run_settings(file, "AVX2", {"sources": "a"}, run, lines.append)
    # What was interrupted was not kept: it alone was started twice.
    needed = [setting.name for setting in SETTINGS if setting.level != "AVX512"]
    assert sorted(runs) == sorted([*needed, runs[2]])
    assert list(json.loads(file.read_text(encoding="utf-8"))["settings"]) == needed
    assert "aten avx512    skipped: this processor has no AVX512" in lines
    assert lines[-1] == "one thread     3 passed, 0 failed, 1 skipped, 2.5 s"


def test_other_sources_are_run_again_and_a_failure_is_named(tmp_path: Path) -> None:
    file, lines = tmp_path / "isa.json", []
    assert run_settings(file, "DEFAULT", {"sources": "a"}, lambda _: PASSED, lines.append)
    broken = Outcome(2, 1, 1, 2.5, ["tests.test_a::test_b"])
    assert not run_settings(file, "DEFAULT", {"sources": "b"}, lambda _: broken, lines.append)
    assert lines[-1].splitlines()[1].strip() == "tests.test_a::test_b"


def test_sources_are_told_apart_by_path_and_content_and_nothing_made_counts(tmp_path: Path) -> None:
    def digest_with(path: str, text: str) -> str:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
        return digest_sources(tmp_path)

    first = digest_with("search/a.py", "1")
    assert digest_with("runs/a.json", "1") == digest_with(".venv/a.py", "1") == first
    assert len({first, digest_with("search/a.py", "2"), digest_with("search/b.py", "")}) == 3


def test_the_processors_level_is_its_own_whatever_the_environment_holds_torch_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    level = read_level()
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    assert read_level() == level


def test_seven_settings_and_none_inherits_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({setting.name for setting in SETTINGS}) == 7
    monkeypatch.setenv("MKL_ENABLE_INSTRUCTIONS", "AVX512")
    for setting in SETTINGS:
        ours = {name for other in SETTINGS for name in other.variables} & environment_of(setting).keys()
        assert ours == set(setting.variables)
