"""A run that is stopped anywhere and taken up again asks and chooses as one that was never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import paretopress as pp
import pytest
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.search import api
from paretopress.search.config import make_config
from paretopress.search.ledger import Ledger
from paretopress.search.progress import Silence
from paretopress.search.records import TrialRecord
from paretopress.tests.search.runs import few_variants, rows

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
