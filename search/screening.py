"""Screening: ask the sampler for policies, evaluate them cheaply, tell it what came of them."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..policies.architectures.shapes import canonical
from ..policies.errors import PolicyError, SearchError
from ..policies.plan import make_plan
from ..policies.policy import Policy
from ..spaces.base import indices
from ..spaces.shapes import ShapeSpace
from .banking import Banking, Built, leave_dense, make_guide
from .dispatch import Dispatcher
from .feasibility import unreachable
from .reasons import reason_of, told
from .records import TrialRecord
from .samplers.bank_guided import Guide
from .session import DENSE, Session, nothing_left
from .stitching import Choice, EveryOne, Stitching
from .study import Asked, Outcome, Study

UNIFORM_SHARE = 0.5
HOPELESS_AFTER = 16
IDLE_BATCHES = 3
TIMED_RUNGS = ("profile", "kernels", "stitch", "screen")
BATCH = "paretopress:batch"
"""Attribute of a trial: the number of the first trial of its batch."""


@dataclass(frozen=True)
class Screening:
    """The first stage of a run.

    Parameters
    ----------
    session
        The run.
    deadline_s
        Time of day after which no further batch is asked for.
    """

    session: Session
    deadline_s: float = math.inf

    def __call__(self, dispatcher: Dispatcher) -> None:
        """Screen as many candidates as the configuration says, those recorded before included.

        Raises
        ------
        SearchError
            Where every candidate fails.
        """
        settings = self.session.config.search
        sampler = self.session.config.sampler
        guide = self._guide(dispatcher) if sampler == "bank" else None
        study = Study(
            self.session.prepared.space,
            self.session.objectives,
            sampler,
            self.session.config.seed,
            settings.evaluations,
            guide,
            distinct=isinstance(self.session.prepared.space, ShapeSpace),
        )
        choice: Choice = EveryOne() if guide is None else Stitching(self.session, guide)
        uniform = self._uniform()
        records = self.session.ledger.trials()
        told, screened, idle = 0, 0, 0
        evaluations = len(self._whole) or settings.evaluations
        while told < len(records) or (screened < evaluations and idle < IDLE_BATCHES and self._in_time()):
            if told == len(records):
                count = choice.count(settings.batch, evaluations - screened)
                asked = study.ask(uniform[told : told + count], count)
                records = [*records, *self._note(asked, told, choice.rung)]
            batch = _batch(records, told)
            promoted = choice.choose(dispatcher, batch, evaluations - screened)
            self._evaluate(dispatcher, promoted, screened, choice.rung)
            choice.learn(promoted)
            for record in batch:
                study.tell(record, self._outcome(record, choice))
            told += len(batch)
            screened += len(promoted)
            idle = 0 if promoted else idle + 1
            study.write_journal(self.session.run.journal)
            self._give_up_where_hopeless(records, choice.rung)

    @property
    def _whole(self) -> list[dict[str, int]]:
        """All of a space of shapes that is no larger than the search; nothing otherwise."""
        space = self.session.prepared.space
        if not isinstance(space, ShapeSpace) or space.size > self.session.config.search.evaluations:
            return []
        return [indices(choices) for choices in space.all()]

    def _guide(self, dispatcher: Dispatcher) -> Guide:
        built = Banking(self.session)(dispatcher)
        leave_dense(self.session, built.failed)
        if not built.usable:
            raise self._no_layer(built)
        guide = make_guide(self.session, built)
        warning = unreachable(self.session, guide, built)
        if warning is not None:
            self.session.listener.say(warning)
        self.session.ledger.set_meta("unreachable", warning or "")
        return guide

    def _no_layer(self, built: Built) -> SearchError:
        """The error where the bank has nothing to choose from, with the reasons, the most frequent first."""
        rows = [row for rung in ("kernels", "stitch") for row in self.session.rows(rung) if row.state == "failed"]
        # Where no unit is to blame, not even the dense network's kernels can be built.
        reasons = list(built.failed.values()) or [reason_of(row) for row in rows]
        return SearchError(f"no layer can be compressed as space says: {told(reasons)}; widen or change the menus")

    def _in_time(self) -> bool:
        """Whether the minutes given are not spent; those of earlier starts count too."""
        minutes = self.session.config.search.minutes
        if minutes is None:
            return time.time() < self.deadline_s
        rows = [row for rung in TIMED_RUNGS for row in self.session.rows(rung) if row.finished_s is not None]
        spent_s = sum(row.seconds.get("total", 0.0) for row in rows) / self.session.prepared.workers
        return spent_s < 60 * minutes

    def _uniform(self) -> list[dict[str, int]]:
        """What is asked for first."""
        if whole := self._whole:
            return whole
        everything = [indices(choices) for choices in self.session.prepared.space.uniform()]
        room = max(1, round(UNIFORM_SHARE * self.session.config.search.evaluations))
        if len(everything) <= room:
            return everything
        return [everything[i] for i in np.unique(np.linspace(0, len(everything) - 1, room).round().astype(int))]

    def _note(self, asked: Sequence[Asked], batch: int, rung: str) -> list[TrialRecord]:
        """Register what was asked: the evaluations first, then their trials, so that a trial always has its row."""
        records = []
        for question in asked:
            policy, complaint = self._normalised(question.policy)
            key = self.session.key(policy, rung)
            row = self.session.ledger.register(key, policy.to_json(), question.origin, {"number": question.number})
            if complaint is not None and row.state == "pending":
                self.session.ledger.fail(self.session.ledger.lease(key, time.time()), "PolicyError", complaint)
            attributes = {**question.attributes, BATCH: batch}
            records.append(TrialRecord(question.number, policy.digest, question.origin, question.choices, attributes))
        self.session.ledger.add_trials(records)
        return records

    def _normalised(self, policy: Policy) -> tuple[Policy, str | None]:
        try:
            # Whether the supernet holds a shape is seen where it is cut out.
            if policy.shape and not policy.layers:
                return Policy(shape=canonical(policy.shape)), None
            return make_plan(policy, self.session.prepared.bench.graph).policy, None
        except PolicyError as error:
            return policy, str(error)

    def _evaluate(self, dispatcher: Dispatcher, batch: Sequence[TrialRecord], before: int, rung: str) -> None:
        keys = {record.policy_hash: self.session.key_of(record.policy_hash, "screen") for record in batch}
        for record in batch:
            policy = self.session.ledger.get(self.session.key_of(record.policy_hash, rung)).policy_json
            self.session.ledger.register(keys[record.policy_hash], policy, record.origin, {"number": record.number})
        open_rows = sum(self.session.ledger.get(key).state in ("pending", "leased") for key in keys.values())
        start, counter = before + len(batch) - open_rows, iter(range(1, open_rows + 1))
        dispatcher.on_done = lambda _: self.session.show(
            "screen", start + next(counter), self.session.config.search.evaluations
        )
        dispatcher.run((key, {}) for key in keys.values())

    def _outcome(self, record: TrialRecord, choice: Choice) -> Outcome:
        attributes = choice.attributes(record)
        is_screened = record.policy_hash in choice.screened
        rung = "screen" if is_screened else choice.rung
        row = self.session.ledger.get(self.session.key_of(record.policy_hash, rung))
        if not is_screened and row.state == "done":
            return Outcome(None, pruned=True, attributes=attributes)
        if row.state != "done":
            return Outcome(None, {}, f"{row.error_class}: {row.error}", attributes=attributes)
        values = tuple(row.values[name] for name in self.session.objectives)
        return Outcome(values, self.session.screen_violations(row.values), attributes=attributes)

    def _give_up_where_hopeless(self, records: Sequence[TrialRecord], rung: str) -> None:
        # The dense network says nothing about whether compression works.
        hashes = dict.fromkeys(record.policy_hash for record in records if record.policy_hash != DENSE.digest)
        keys = [(self.session.key_of(digest, "screen"), self.session.key_of(digest, rung)) for digest in hashes]
        found = [self.session.ledger.find(screen) or self.session.ledger.get(tried) for screen, tried in keys]
        # What a lower rung let pass but did not send on is neither.
        rows = [row for row in found if row.key.fidelity == "screen" or row.state == "failed"]
        asked_all = len(rows) >= self.session.config.search.evaluations
        if any(row.state == "done" for row in rows) or not (rows and (asked_all or len(rows) >= HOPELESS_AFTER)):
            return
        raise nothing_left(f"all {len(rows)} candidates failed", rows)


def _batch(records: Sequence[TrialRecord], start: int) -> list[TrialRecord]:
    """The trials that were asked together with the one at ``start``."""
    first = records[start].attributes[BATCH]
    return [record for record in records[start:] if record.attributes[BATCH] == first]
