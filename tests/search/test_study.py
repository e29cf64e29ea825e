from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from paretopress.policies.policy import Policy, Step
from paretopress.search.records import TrialRecord
from paretopress.search.study import STUDY_NAME, Asked, Outcome, Study
from paretopress.spaces.base import Choices, SuggestTrial

OBJECTIVES = ("error_pct", "stored_bytes")
MENU = {"a/sparsity": (0.0, 0.25, 0.5, 0.75), "a/bits": (2, 3, 4, 8), "b/bits": (2, 4, 8)}
UNIFORM = [{"a/sparsity": 0, "a/bits": 3, "b/bits": 2}, {"a/sparsity": 0, "a/bits": 0, "b/bits": 0}]


class Menus:
    """A space of menus without a network behind it."""

    def menu(self) -> Mapping[str, Sequence[object]]:
        return MENU

    def suggest(self, trial: SuggestTrial) -> Policy:
        chosen = {knob: trial.suggest_int(knob, 0, len(options) - 1) for knob, options in MENU.items()}
        return Policy({knob.replace("/", "."): (Step.of("quantize", bits=2 + i),) for knob, i in chosen.items()})

    def choices(self, policy: Policy) -> Choices | None:
        raise NotImplementedError

    def uniform(self) -> Iterable[Choices]:
        return []


def answer(record: TrialRecord) -> Outcome:
    """A made-up landscape: small networks err, one corner fails, another misses its budget."""
    a, b, c = (record.choices[knob] for knob in MENU)
    if (a, b) == (3, 0):
        return Outcome(None, {}, "CandidateError: nothing left of the layer")
    error, size = 1.0 + a * a + (3 - b) * 1.5 + (2 - c), 100.0 - 20 * a - 9 * (3 - b) - 5 * (2 - c)
    return Outcome((error, size), {"error_pct": (error - 8) / 8})


def record_of(asked: Asked) -> TrialRecord:
    """The question as it comes back from the ledger: through JSON."""
    record = TrialRecord(asked.number, asked.policy.digest, asked.origin, asked.choices, asked.attributes)
    return TrialRecord(**json.loads(json.dumps(asdict(record))))


def search(sampler: str, evaluations: int, batch: int, restarts: bool) -> list[TrialRecord]:
    """All questions of a search; with ``restarts`` every batch is asked by a study that was rebuilt from the records."""

    def make() -> Study:
        return Study(Menus(), OBJECTIVES, sampler, 5, evaluations)

    study, records = make(), list[TrialRecord]()
    while len(records) < evaluations:
        if restarts:
            study = make()
            for record in records:
                study.tell(record, answer(record))
        asked = study.ask(UNIFORM[len(records) :], min(batch, evaluations - len(records)))
        batch_records = [record_of(question) for question in asked]
        if not restarts:
            for record in batch_records:
                study.tell(record, answer(record))
        records += batch_records
    return records


@pytest.mark.parametrize(
    ("sampler", "evaluations", "batch"), [("nsga2", 60, 7), ("tpe", 24, 6), ("random", 24, 7), ("gp", 14, 3)]
)
def test_a_resumed_study_asks_what_the_uninterrupted_one_asks(sampler: str, evaluations: int, batch: int) -> None:
    whole = search(sampler, evaluations, batch, restarts=False)
    assert search(sampler, evaluations, batch, restarts=True) == whole
    assert [record.number for record in whole] == list(range(evaluations))
    assert [record.origin for record in whole] == ["uniform"] * 2 + [sampler] * (evaluations - 2)
    assert len({record.policy_hash for record in whole}) > evaluations / 3, "it tries different policies"


def test_another_seed_asks_other_questions() -> None:
    first, second = (
        [asked.choices for asked in Study(Menus(), OBJECTIVES, "nsga2", seed, 12).ask([], 12)] for seed in (0, 1)
    )
    assert first != second


def test_nsga2_breeds_generations_from_what_was_recorded() -> None:
    generations = [
        value
        for record in search("nsga2", 60, 7, restarts=True)
        for name, value in record.attributes.items()
        if "generation" in name
    ]
    assert max(generations) >= 3


def test_uniform_policies_are_asked_first_and_as_given() -> None:
    asked = Study(Menus(), OBJECTIVES, "random", 0, 8).ask(UNIFORM, 4)
    assert [question.choices for question in asked[:2]] == UNIFORM
    assert [question.origin for question in asked] == ["uniform", "uniform", "random", "random"]


def test_trials_are_told_in_order_only() -> None:
    study = Study(Menus(), OBJECTIVES, "random", 0, 8)
    records = [record_of(question) for question in study.ask([], 2)]
    with pytest.raises(AssertionError, match="in the order of their numbers"):
        study.tell(records[1], answer(records[1]))


@pytest.fixture
def journal(tmp_path: Path) -> optuna.Study:
    """Optuna's own reading of the written study."""
    study = Study(Menus(), OBJECTIVES, "random", 3, 30)
    for question in study.ask(UNIFORM, 30):
        study.tell(record_of(question), answer(record_of(question)))
        if question.number in (3, 29):
            study.write_journal(tmp_path / "journal.log")
    assert [path.name for path in tmp_path.iterdir()] == ["journal.log"], "nothing else is left beside it"
    return optuna.load_study(
        study_name=STUDY_NAME, storage=JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
    )


def test_the_journal_opens_with_every_trial(journal: optuna.Study) -> None:
    assert len(journal.trials) == 30 and journal.metric_names == list(OBJECTIVES)
    assert [direction.name for direction in journal.directions] == ["MINIMIZE", "MINIMIZE"]
    for trial in journal.trials:
        outcome = answer(TrialRecord(trial.number, "", "", trial.params))
        if outcome.values is None:
            assert trial.state is TrialState.FAIL and trial.user_attrs == {"failure": outcome.note}
        else:
            assert trial.state is TrialState.COMPLETE and tuple(trial.values) == outcome.values
    assert {trial.state for trial in journal.trials} == {TrialState.FAIL, TrialState.COMPLETE}
    assert journal.trials[0].params == UNIFORM[0]


def test_constraints_reach_optuna(journal: optuna.Study) -> None:
    complete = [trial for trial in journal.trials if trial.state is TrialState.COMPLETE]
    for trial in complete:
        assert trial.constraints == {"error_pct": (trial.values[0] - 8) / 8}
    missing = {trial.number for trial in complete if trial.constraints["error_pct"] > 0}
    assert missing and {trial.number for trial in journal.best_trials}.isdisjoint(missing), "none of the best misses"


def test_constraints_steer_the_sampler() -> None:
    """NSGA-II asks for fewer policies that miss the budget than chance does."""

    def missing(sampler: str) -> int:
        outcomes = [answer(record) for record in search(sampler, 72, 12, restarts=True)[-24:]]
        return sum(outcome.values is None or outcome.constraints["error_pct"] > 0 for outcome in outcomes)

    assert missing("nsga2") < missing("random")
