"""What a front promises: who is chosen and marked by the upper bound of the error, and where it is said."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import paretopress as pp
import pytest
from paretopress.search import api
from paretopress.search.certainty import PairedErrors, pictures_needed
from paretopress.search.cli import run
from paretopress.search.config import make_config
from paretopress.search.driver import doubt_of_all
from paretopress.search.ledger import Ledger
from paretopress.search.progress import Silence
from paretopress.search.report.facts import banner, table_rows
from paretopress.search.rundir import find_run
from paretopress.search.session import Session
from paretopress.search.summary import report_data
from paretopress.tests.search.runs import few_variants, front_of, rows, small

pytestmark = pytest.mark.usefixtures("one_core")


class Lines(Silence):
    """Keeps the lines that are said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def made_up_session(pictures: int, dense_pct: float, **changes: Any) -> Session:
    """A session of a dense network with this error on so many validation pictures; nothing of it can be run."""
    nothing = cast(Any, None)
    prepared = cast(Any, SimpleNamespace(data=SimpleNamespace(validation=np.zeros(pictures))))
    session = Session(make_config(small(**changes)), nothing, prepared, nothing, nothing)
    session.__dict__["baseline"] = {
        "error_pct": 2.0,
        "validation_error_pct": dense_pct,
        "latency_ms": 1.0,
        "stored_bytes": 1e6,
    }
    return session


def counts(pictures: int, wrong: int, dense_wrong: int, newly_wrong: int) -> dict[str, float]:
    """What an evaluation records of its mistakes."""
    values = {"pictures": pictures, "wrong": wrong, "dense_wrong": dense_wrong, "newly_wrong": newly_wrong}
    return {f"validation_{name}": float(value) for name, value in values.items()}


# What is said at the start


@pytest.mark.parametrize("budget", ["+1.0", "+0.1", 3.5, "1.5x"])
@pytest.mark.parametrize("confidence", [0.8, 0.9])
def test_a_split_that_is_too_small_is_told_the_number_that_would_do(budget: object, confidence: float) -> None:
    settings: dict[str, Any] = {"budgets": {"error": budget}, "search__confidence": confidence}
    needed = pictures_needed(make_config(small(**settings)).limits()[0], 3.0, confidence)
    assert needed is not None
    doubt = doubt_of_all(made_up_session(needed - 1, 3.0, **settings))
    assert doubt is not None and f"budgets.error: {budget}: {needed - 1:,} validation pictures are too few" in doubt
    assert f"expected at least {needed:,} (data.validation)" in doubt and f"{confidence:.0%} certain" in doubt
    assert doubt_of_all(made_up_session(needed, 3.0, **settings)) is None


@pytest.mark.parametrize("budget", ["+0", 2.5])
def test_where_no_number_would_do_none_is_given(budget: object) -> None:
    doubt = doubt_of_all(made_up_session(5000, 3.0, budgets={"error": budget}))
    assert doubt is not None and "on no number of pictures 90% certain to keep it" in doubt


def test_without_a_budget_on_the_error_there_is_no_doubt() -> None:
    assert doubt_of_all(made_up_session(20, 3.0, budgets={"stored": "0.5x"})) is None


# Who is chosen


def test_finalists_are_chosen_by_the_bound_and_screened_candidates_by_the_estimate() -> None:
    session = made_up_session(1000, 3.0, budgets={"error": "+1.0"}, recovery__epochs=0)
    steady = {"error_pct": 3.5, "stored_bytes": 1e5, "latency_ratio": 1.0, **counts(1000, 35, 30, 5)}
    restless = {**steady, **counts(1000, 35, 30, 30)}
    assert session.screen_violations(steady) == session.screen_violations(restless)
    assert session.screen_violations(steady)["error_pct"] < 0
    assert session.finalist_violations(steady)["error_pct"] < 0 < session.finalist_violations(restless)["error_pct"]
    assert 3.5 < session.finalist_values(steady)["error_pct"] < session.finalist_values(restless)["error_pct"]


def test_where_recovery_follows_the_bound_is_held_to_what_it_is_trusted_to_win_back() -> None:
    session = made_up_session(1000, 3.0, budgets={"error": "+1.0"}, search__screen_error=10.0)
    values = {"error_pct": 12.5, "stored_bytes": 1e5, "latency_ratio": 1.0, **counts(1000, 125, 30, 100)}
    assert "error_pct" not in session.finalist_violations(values)
    assert session.screen_violations(values)["screen_error"] < 0 < session.finalist_violations(values)["screen_error"]


def test_evaluations_that_counted_nothing_are_judged_as_before() -> None:
    session = made_up_session(1000, 3.0, budgets={"error": "+1.0"}, recovery__epochs=0)
    values = {"error_pct": 3.5, "stored_bytes": 1e5, "latency_ratio": 1.0}
    assert session.finalist_violations(values) == session.screen_violations(values)
    assert session.finalist_values(values) == values


# What a run leaves


@pytest.fixture(scope="module")
def doubtful(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[pp.Front, list[str]]:
    """A run whose validation pictures make no member certain, and what it said."""
    listener = Lines()
    config = few_variants(trained, budgets={"error": "+0.8"}, search__finalists=4)
    front = api.run_search(make_config(config), tmp_path_factory.mktemp("doubtful") / "run", listener)
    return front, listener.lines


def test_a_run_without_a_certain_member_says_so_and_has_a_front(doubtful: tuple[pp.Front, list[str]]) -> None:
    front, lines = doubtful
    pictures = rows(front.run.path, "recover")[0].values["validation_pictures"]
    said = [line for line in lines if "validation pictures are too few" in line]
    assert len(said) == 1 and f"{pictures:,.0f} validation pictures" in said[0]
    assert lines.index(said[0]) == next(i for i, line in enumerate(lines) if line.startswith("dense: ")) + 1
    excesses = [candidate.standing.bound_excess for candidate in front]
    assert excesses and excesses == sorted(excesses)
    for candidate in front:
        certain = not candidate.standing.validation_misses and candidate.standing.bound_excess <= 0
        assert candidate.standing.is_certain == certain


def test_a_member_is_judged_by_the_counts_that_its_recovery_recorded(doubtful: tuple[pp.Front, list[str]]) -> None:
    front, _ = doubtful
    recovered = {row.key.policy_hash: row.values for row in rows(front.run.path, "recover")}
    for member in front.found:
        values = recovered[member.policy.digest]
        paired = PairedErrors.from_values(values)
        assert paired is not None
        assert values["error_pct"] == pytest.approx(100 * paired.wrong / paired.pictures)
        assert paired.dense_error_pct == pytest.approx(front.baseline["validation_error_pct"])
        assert 0 <= paired.newly_wrong <= paired.wrong and 0 <= paired.newly_right <= paired.dense_wrong
        over = values["error_pct"] > paired.dense_error_pct + 0.8
        assert ("error_pct" in member.standing.validation_misses) == over
        assert not over or member.standing.bound_excess > 0, "the bound lies above the estimate"


@pytest.mark.parametrize("to", ["onnx", "press", "bundle"])
def test_an_export_by_id_says_where_the_member_stands(
    doubtful: tuple[pp.Front, list[str]], to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    front, _ = doubtful
    for number, candidate in enumerate(front):
        out = tmp_path / f"{number}.{to}" if to != "bundle" else tmp_path / f"{number}"
        command = ["export", str(front.run.path), "--pick", candidate.member.id, "--to", to, "--out", str(out)]
        assert run(command) == 0
        assert f"budgets: {candidate.standing.text}" in capsys.readouterr().out
        assert candidate.standing.text in str(candidate)
        if to == "bundle":
            card = json.loads((out / "card.json").read_text())
            assert card["standing"] == candidate.standing.text and card["certain"] == candidate.standing.is_certain


def test_front_file_terminal_and_report_say_the_same(
    doubtful: tuple[pp.Front, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    front, _ = doubtful
    standings = {candidate.member.id: candidate.standing for candidate in front}
    for entry in front_of(front.run.path)["front"]:
        assert entry["standing"] == standings[entry["id"]].text
        assert entry["certain"] == standings[entry["id"]].is_certain
    directory, config = find_run(front.run.path)
    with Ledger.read(directory.path) as ledger:
        data = report_data(directory, config, ledger, str(directory.path))
    assert {str(row["id"]): row["standing"] for row in table_rows(data)} == {i: s.label for i, s in standings.items()}
    page = directory.report.read_text()
    assert all(standing.label in page for standing in standings.values())
    if not any(standing.is_certain for standing in standings.values()):
        assert "No policy" in banner(data)
    assert run(["resume", str(front.run.path)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "not certain" in printed or "already" in printed


def forget_counts(run_directory: Path, policy_hash: str) -> None:
    """Take the counts out of a recorded recovery, as if an earlier state of the program had recorded it."""
    with sqlite3.connect(run_directory / "ledger.sqlite") as database:
        where = "WHERE policy_hash = ? AND fidelity = 'recover'"
        (text,) = database.execute(f'SELECT "values" FROM evaluations {where}', (policy_hash,)).fetchone()
        values = {name: value for name, value in json.loads(text).items() if not name.startswith("validation_")}
        database.execute(f'UPDATE evaluations SET "values" = ? {where}', (json.dumps(values), policy_hash))


def test_a_recovery_that_counted_no_mistakes_is_done_again(doubtful: tuple[pp.Front, list[str]]) -> None:
    front, _ = doubtful
    before = [(member.id, member.standing) for member in front.found]
    attempts = sum(row.attempt for row in rows(front.run.path, "recover"))
    forget_counts(front.run.path, front.found.members[0].policy.digest)
    again = pp.resume(front.run.path)
    assert [(member.id, member.standing) for member in again.found] == before
    assert sum(row.attempt for row in rows(front.run.path, "recover")) == attempts + 1
