"""The Optuna study: a view of the ledger, rebuilt from it at every start.

Trials are asked for in batches and told in the order of their numbers, and each batch has a sampler with a seed of its
own, so the same answers give the same questions whether or not the run was interrupted.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial

from ..policies.files import write_atomically
from ..policies.policy import Policy
from ..spaces.base import Space
from .records import TrialRecord
from .samplers import make_sampler
from .samplers.bank_guided import BankGuidedSampler, Guide, read_history

STUDY_NAME = "paretopress"
MOST_ATTEMPTS = 32


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Parameters
    ----------
    values
        One for each objective; ``None`` where the candidate failed.
    constraints
        Name -> violation, kept where 0 or less.
    note
        Why it failed.
    pruned
        Whether it was not promoted to the rung that measures the objectives.
    attributes
        System attributes for the sampler, such as the damage that a lower rung measured.
    """

    values: tuple[float, ...] | None
    constraints: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    pruned: bool = False
    attributes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A question: the trial's number, its choices and their policy."""

    number: int
    origin: str
    choices: dict[str, int]
    policy: Policy
    attributes: dict[str, Any]


class Study:
    """Asks a sampler for policies.

    Every batch is asked of a fresh study made from the answered trials alone, so a resumed run goes on exactly as the
    uninterrupted one would have.

    Parameters
    ----------
    space
        The policies that may be tried.
    objectives
        Metric names, all minimised.
    sampler, seed, evaluations
        See ``make_sampler``; the seed is the run's.
    guide
        What the sampler ``bank`` goes by.
    distinct
        Whether Optuna's samplers are asked again where they propose what was asked before: a space of a hundred shapes is
        soon full of repetitions.
    """

    def __init__(
        self,
        space: Space,
        objectives: Sequence[str],
        sampler: str,
        seed: int,
        evaluations: int,
        guide: Guide | None = None,
        distinct: bool = False,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._name, self._seed, self._evaluations = space, sampler, seed, evaluations
        self._objectives, self._guide, self._distinct = tuple(objectives), guide, distinct
        self._answered: list[FrozenTrial] = []
        self._entries, self._journaled = _Entries(), 0
        self._journal: optuna.Study | None = None
        self._distributions: dict[str, BaseDistribution] = {
            knob: IntDistribution(0, len(options) - 1) for knob, options in space.menu().items()
        }

    def ask(self, fixed: Sequence[Mapping[str, int]], count: int) -> list[Asked]:
        """The fixed choices first (uniform policies), then the sampler's, ``count`` in all."""
        if self._guide is not None:
            return self._planned(self._guide, fixed[:count], count)
        study = self._create(optuna.storages.InMemoryStorage())
        study.add_trials(self._answered)
        study.sampler = make_sampler(self._name, self._batch_seed(), self._evaluations)
        for choices in fixed[:count]:
            study.enqueue_trial(dict(choices))
        asked = []
        seen = {_key(trial.params) for trial in self._answered}
        for position in range(count):
            trial, policy = self._proposed(study, seen)
            origin = "uniform" if position < len(fixed) else self._name
            noted = study.get_trials(deepcopy=False)[trial.number].system_attrs
            attributes = {name: value for name, value in noted.items() if _is_plain(value)}
            asked.append(Asked(len(self._answered) + position, origin, dict(trial.params), policy, attributes))
        return asked

    def _proposed(self, study: optuna.Study, seen: set[frozenset[tuple[str, Any]]]) -> tuple[optuna.Trial, Policy]:
        """A trial and its policy, one that was not seen where that is wanted and found soon; it is then seen."""
        for attempt in range(MOST_ATTEMPTS):
            trial = study.ask()
            policy = self._space.suggest(trial)
            if not self._distinct or _key(trial.params) not in seen or attempt == MOST_ATTEMPTS - 1:
                break
        seen.add(_key(trial.params))
        return trial, policy

    def _planned(self, guide: Guide, fixed: Sequence[Mapping[str, int]], count: int) -> list[Asked]:
        """What our own sampler plans for the whole batch: it reads the answered trials and needs no study for that."""
        start = len(self._answered)
        sampler = BankGuidedSampler(guide, self._batch_seed(), max(1, count - len(fixed)))
        planned = sampler.plan(read_history(guide, self._answered), count - len(fixed)) if count > len(fixed) else []
        asked = []
        for position, choices in enumerate([*map(dict, fixed), *planned]):
            origin = "uniform" if position < len(fixed) else self._name
            policy = self._space.suggest(FixedTrial(choices))
            asked.append(Asked(start + position, origin, choices, policy, {}))
        return asked

    def _batch_seed(self) -> int:
        return int(np.random.SeedSequence([self._seed, len(self._answered)]).generate_state(1)[0])

    def tell(self, record: TrialRecord, outcome: Outcome) -> None:
        """Add an answered trial; they come in the order of their numbers."""
        assert record.number == len(self._answered), "trials are told in the order of their numbers"
        self._answered.append(self._frozen(record, outcome))

    def write_journal(self, path: Path) -> None:
        """Write the whole study where ``optuna-dashboard`` opens it, in place of what stood there."""
        if self._journal is None:
            self._journal = self._create(JournalStorage(self._entries))
        self._journal.add_trials(self._answered[self._journaled :])
        self._journaled = len(self._answered)
        write_atomically(path, self._entries.write)

    def _create(self, storage: optuna.storages.BaseStorage) -> optuna.Study:
        study = optuna.create_study(
            storage=storage,
            study_name=STUDY_NAME,
            directions=["minimize"] * len(self._objectives),
            sampler=make_sampler("random", 0, 1),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names(list(self._objectives))
        return study

    def _frozen(self, record: TrialRecord, outcome: Outcome) -> FrozenTrial:
        unmeasured = TrialState.PRUNED if outcome.pruned else TrialState.FAIL
        state = unmeasured if outcome.values is None else TrialState.COMPLETE
        return create_trial(
            state=state,
            values=None if outcome.values is None else list(outcome.values),
            params=dict(record.choices),
            distributions={name: self._distributions[name] for name in record.choices},
            system_attrs={**record.attributes, **outcome.attributes},
            user_attrs={"failure": outcome.note} if outcome.note else {},
            constraints=dict(outcome.constraints) or None,
        )


class _Entries(BaseJournalBackend):
    """A journal in memory: a file of Optuna's own is flushed to the disk after every trial (3 ms each)."""

    def __init__(self) -> None:
        self._entries: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return self._entries[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self._entries.extend(logs)

    def write(self, path: Path) -> None:
        """Write all of it to a new file."""
        path.unlink(missing_ok=True)
        JournalFileBackend(str(path)).append_logs(self._entries)


def _key(choices: Mapping[str, Any]) -> frozenset[tuple[str, Any]]:
    return frozenset(choices.items())


def _is_plain(value: object) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
