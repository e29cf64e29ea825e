"""A run that is stopped anywhere and taken up again asks and chooses as one that was never stopped."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import paretopress as pp
import pytest
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.search import api
from paretopress.search.cli import run
from paretopress.search.config import make_config
from paretopress.search.ledger import Ledger
from paretopress.search.progress import Silence
from paretopress.search.records import TrialRecord
from paretopress.search.rundir import find_run
from paretopress.tests.search.runs import few_variants, rows, write_config

pytestmark = pytest.mark.usefixtures("one_core")


def config(weights: Path) -> dict[str, Any]:
    """Without what is timed, so that two runs may be compared."""
    counted = {"search__objectives": ["error", "stored"], "budgets": {}, "search__evaluations": 8, "search__batch": 2}
    return few_variants(weights, **counted)


def start(out: Path, weights: Path) -> pp.Front:
    return api.run_search(make_config(config(weights)), out, Silence())


def stop(monkeypatch: pytest.MonkeyPatch, rung: str, after: int) -> None:
    """Kill the run within the evaluation that follows so many of a rung."""
    whole, calls = getattr(CandidateEvaluator, rung), iter(range(after + 1))

    def stopped(self: CandidateEvaluator, *given: Any) -> dict[str, Any]:
        if next(calls) == after:
            raise KeyboardInterrupt
        return whole(self, *given)

    monkeypatch.setattr(CandidateEvaluator, rung, stopped)


def trials(run: Path) -> list[TrialRecord]:
    with Ledger.read(run) as ledger:
        return ledger.trials()


def chosen(run: Path, rung: str) -> list[tuple[str, str, float]]:
    name = {"stitch": "kl", "screen": "stored_bytes"}[rung]
    return [(row.policy_json, row.state, row.values[name]) for row in rows(run, rung)]


@pytest.fixture(scope="module")
def whole(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pp.Front]:
    out = tmp_path_factory.mktemp("whole") / "run"
    return out, start(out, trained)


def test_a_run_stopped_in_the_bank_and_within_batches_tries_the_same(
    trained: Path, tmp_path: Path, whole: tuple[Path, pp.Front]
) -> None:
    run = tmp_path / "run"
    # In the bank, after the bank and within a batch on both rungs of later batches.
    for rung, after in (("profile", 5), ("kernels", 2), ("stitch", 2), ("screen", 1), ("stitch", 7), ("screen", 3)):
        with pytest.MonkeyPatch.context() as patch:
            stop(patch, rung, after)
            with pytest.raises(KeyboardInterrupt):
                start(run, trained)
    resumed = pp.resume(run)
    assert trials(run) == trials(whole[0])
    for rung in ("stitch", "screen"):
        assert chosen(run, rung) == chosen(whole[0], rung)
    assert [member.member.id for member in resumed] == [member.member.id for member in whole[1]]


def test_a_finished_run_measures_nothing_again(
    tmp_path: Path, whole: tuple[Path, pp.Front], monkeypatch: pytest.MonkeyPatch
) -> None:
    for rung in ("profile", "kernels", "stitch", "screen", "recover"):
        stop(monkeypatch, rung, 0)
    before = rows(whole[0])
    pp.resume(whole[0])
    assert rows(whole[0]) == before


def test_a_run_is_resumed_with_another_pool_and_nothing_else_is_changed(
    tmp_path: Path, whole: tuple[Path, pp.Front], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = Path(shutil.copytree(whole[0], tmp_path / "run"))
    (directory / "config.yaml").write_text(
        make_config(find_run(directory)[1].model_dump(), ("pool.kind=ray", "pool.address=127.0.0.1:1")).to_yaml()
    )
    before = rows(directory)
    moved = ["resume", str(directory), "--set", "pool={kind: in-process}"]
    assert run([*moved, "--set", "search.evaluations=9"]) == 2
    assert "a run goes on with its own configuration but for pool.*" in capsys.readouterr().err
    assert run(moved) == 0 and rows(directory) == before
    assert find_run(directory)[1].pool.kind == "in-process"


@pytest.mark.parametrize(("command", "settings"), [("profile", ()), ("exits", ("exits.after=[relu1]",))])
def test_what_is_printed_when_a_command_is_stopped_goes_on_with_it(
    command: str,
    settings: tuple[str, ...],
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    path, directory = write_config(tmp_path / "mine.yaml", config(trained)), tmp_path / "a run"
    work = {"profile": "run_profile", "exits": "find_exits"}[command]
    changes = [part for change in ("seed=3", *settings) for part in ("--set", change)]
    with monkeypatch.context() as patch:
        patch.setattr(api, work, interrupted)
        assert run([command, str(path), "--out", str(directory), *changes]) == 1
    printed = shlex.split(capsys.readouterr().err.rpartition("Go on by: paretopress ")[2])
    asked: list[Any] = []
    monkeypatch.setattr(api, work, lambda session: asked.append(session.config) or interrupted())
    assert run(printed) == 1
    assert asked == [make_config(config(trained), ("seed=3", *settings))]
