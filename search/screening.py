"""Screening: ask the sampler for policies, evaluate them cheaply, tell it what came of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..policies.errors import PolicyError
from ..policies.plan import make_plan
from ..policies.policy import Policy
from .dispatch import Dispatcher
from .records import TrialRecord
from .session import DENSE, Session, nothing_left
from .study import Asked, Outcome, Study

UNIFORM_SHARE = 0.5
HOPELESS_AFTER = 16


@dataclass(frozen=True)
class Screening:
    """The first stage of a run."""

    session: Session

    def __call__(self, dispatcher: Dispatcher) -> None:
        """Screen as many candidates as the configuration says, those recorded before included.

        Raises
        ------
        SearchError
            Where every candidate fails.
        """
        settings = self.session.config.search
        study = Study(
            self.session.prepared.space,
            self.session.objectives,
            settings.sampler,
            self.session.config.seed,
            settings.evaluations,
        )
        uniform = self._uniform()
        records = self.session.ledger.trials()
        told = 0
        while told < max(settings.evaluations, len(records)):
            if told == len(records):
                count = min(settings.batch, settings.evaluations - told)
                asked = study.ask(uniform[told : told + count], count)
                records = [*records, *self._note(asked)]
            batch = records[told:]
            self._evaluate(dispatcher, batch, told)
            for record in batch:
                study.tell(record, self._outcome(record))
            told = len(records)
            study.write_journal(self.session.run.journal)
            self._give_up_where_hopeless(records)

    def _uniform(self) -> list[dict[str, int]]:
        everything = [{k: int(v) for k, v in choices.items()} for choices in self.session.prepared.space.uniform()]
        room = max(1, round(UNIFORM_SHARE * self.session.config.search.evaluations))
        if len(everything) <= room:
            return everything
        return [everything[i] for i in np.unique(np.linspace(0, len(everything) - 1, room).round().astype(int))]

    def _note(self, asked: Sequence[Asked]) -> list[TrialRecord]:
        """Register what was asked: the evaluations first, then their trials, so that a trial always has its row."""
        records = []
        for question in asked:
            policy, complaint = self._normalised(question.policy)
            key = self.session.key(policy, "screen")
            row = self.session.ledger.register(key, policy.to_json(), question.origin, {"number": question.number})
            if complaint is not None and row.state == "pending":
                self.session.ledger.fail(self.session.ledger.lease(key, time.time()), "PolicyError", complaint)
            records.append(
                TrialRecord(question.number, policy.digest, question.origin, question.choices, question.attributes)
            )
        self.session.ledger.add_trials(records)
        return records

    def _normalised(self, policy: Policy) -> tuple[Policy, str | None]:
        try:
            return make_plan(policy, self.session.prepared.bench.graph).policy, None
        except PolicyError as error:
            return policy, str(error)

    def _evaluate(self, dispatcher: Dispatcher, batch: Sequence[TrialRecord], before: int) -> None:
        keys = {record.policy_hash: self.session.key_of(record.policy_hash, "screen") for record in batch}
        open_rows = sum(self.session.ledger.get(key).state in ("pending", "leased") for key in keys.values())
        start, counter = before + len(batch) - open_rows, iter(range(1, open_rows + 1))
        dispatcher.on_done = lambda _: self.session.show(
            "screen", start + next(counter), self.session.config.search.evaluations
        )
        dispatcher.run((key, {}) for key in keys.values())

    def _outcome(self, record: TrialRecord) -> Outcome:
        row = self.session.ledger.get(self.session.key_of(record.policy_hash, "screen"))
        if row.state != "done":
            return Outcome(None, {}, f"{row.error_class}: {row.error}")
        return Outcome(
            tuple(row.values[name] for name in self.session.objectives), self.session.screen_violations(row.values)
        )

    def _give_up_where_hopeless(self, records: Sequence[TrialRecord]) -> None:
        # The dense network says nothing about whether compression works.
        hashes = dict.fromkeys(record.policy_hash for record in records if record.policy_hash != DENSE.digest)
        rows = [self.session.ledger.get(self.session.key_of(policy_hash, "screen")) for policy_hash in hashes]
        asked_all = len(records) >= self.session.config.search.evaluations
        if any(row.state == "done" for row in rows) or not (rows and (asked_all or len(rows) >= HOPELESS_AFTER)):
            return
        raise nothing_left(f"all {len(rows)} candidates failed", rows)
