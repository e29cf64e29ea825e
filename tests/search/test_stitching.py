"""The lowest rung: how many candidates go on, which pictures are saved, and that a resumed run does the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from paretopress.search.banking import LARGEST
from paretopress.search.dispatch import Dispatcher
from paretopress.search.records import TrialRecord
from paretopress.search.samplers.bank_guided import KL, Guide
from paretopress.search.screening import Screening
from paretopress.search.session import Session
from paretopress.search.stitching import HOPELESS_FACTOR, EveryOne, Stitching
from paretopress.search.table import Table

PICTURES = 512.0
OPTIONS = 6
Key = tuple[str, str]


def guide() -> Guide:
    """Two units of six variants: the more is done, the more damage and the fewer bytes and milliseconds."""
    steps = np.arange(OPTIONS)
    costs = np.stack([np.column_stack([0.01 * steps**2, -100.0 * steps, -0.05 * steps])] * 2)
    damage = costs[..., 0].ravel()
    return Guide(
        table=Table(("a", "b"), ("kl", "stored_bytes", "latency_ratio"), costs, np.array([0.0, 2000.0, 1.0])),
        choices=tuple(tuple({f"{unit}/precision": int(i)} for i in steps) for unit in "ab"),
        knobs={"a/precision": OPTIONS, "b/precision": OPTIONS},
        damage=damage,
        error=1.0 + 10 * damage,
        dense_error=1.0,
        objectives=("error_pct", "stored_bytes", "latency_ratio"),
        reference=np.array([11.0, 2000.0, 1.0]),
        bounds={},
    )


class Rows:
    """A ledger of rows by policy and rung, and the pool that fills them."""

    def __init__(self, stitched: Callable[[str], Mapping[str, float] | None]) -> None:
        self.rows: dict[Key, SimpleNamespace] = {}
        self.payloads: list[Mapping[str, Any]] = []
        self._stitched = stitched
        self.on_done: Callable[[Any], None] = lambda _: None

    def get(self, key: Key) -> SimpleNamespace:
        return self.rows[key]

    def add(self, key: Key, values: Mapping[str, float] | None) -> None:
        state, why = ("failed", "it cannot") if values is None else ("done", None)
        self.rows[key] = SimpleNamespace(state=state, values=values or {}, error_class="CandidateError", error=why)

    def run(self, wanted: Any) -> None:
        for key, payload in wanted:
            if key not in self.rows:
                self.payloads.append(payload)
                self.add(key, self._stitched(key[0]))


def make(stitched: Callable[[str], Mapping[str, float] | None] | None = None) -> tuple[Stitching, Rows]:
    rows = Rows(stitched or (lambda digest: {"kl": damage_of(digest), "pictures": PICTURES}))
    session = SimpleNamespace(
        ledger=rows,
        objectives=guide().objectives,
        key_of=lambda digest, rung: (digest, rung),
        screen_violations=lambda values: {"screen_error": (values["error_pct"] - 11.0) / 100},
        config=SimpleNamespace(search=SimpleNamespace(stitch_pictures=int(PICTURES))),
        prepared=SimpleNamespace(data=SimpleNamespace(train=range(1000))),
    )
    return Stitching(cast(Session, session), guide()), rows


def damage_of(digest: str) -> float:
    a, b = map(int, digest.split("."))
    return 0.01 * (a**2 + b**2)


def records(count: int, start: int = 0) -> list[TrialRecord]:
    found = []
    for number in range(start, start + count):
        a, b = divmod(number, OPTIONS)
        found.append(TrialRecord(number, f"{a}.{b}", "bank", {"a/precision": a, "b/precision": b}))
    return found


def choose(choice: Stitching, rows: Rows, batch: list[TrialRecord], left: int = 100) -> list[TrialRecord]:
    return choice.choose(cast(Dispatcher, rows), batch, left)


def screen(choice: Stitching, rows: Rows, batch: list[TrialRecord], errors: Callable[[float], float]) -> None:
    for record in batch:
        error = errors(damage_of(record.policy_hash))
        rows.add((record.policy_hash, "screen"), {"error_pct": error, "stored_bytes": 1500.0, "latency_ratio": 0.8})
    choice.learn(batch)


def test_three_are_tried_for_one_and_a_third_goes_on() -> None:
    choice, rows = make()
    assert choice.count(8, 100) == 24 and choice.count(8, 5) == 15
    batch = records(24)
    chosen = choose(choice, rows, batch)
    assert len({record.number for record in chosen}) == 8 and all(record in batch for record in chosen)
    assert len(rows.payloads) == 24, "each was stitched once"


def test_no_more_go_on_than_may_be_screened() -> None:
    choice, rows = make()
    assert len(choose(choice, rows, records(24), 3)) == 3


def test_half_goes_on_once_stitching_ranks_poorly() -> None:
    choice, rows = make()
    chosen = choose(choice, rows, records(24))
    screen(choice, rows, chosen, lambda kl: 5.0 - 10 * kl)
    assert choice.correlation() == pytest.approx(-1.0)
    assert len(choose(choice, rows, records(12, 24))) == 6

    sure, others = make()
    screen(sure, others, choose(sure, others, records(24)), lambda kl: 1.0 + 10 * kl)
    assert sure.correlation() == pytest.approx(1.0)
    assert len(choose(sure, others, records(12, 24))) == 4


def test_candidates_outside_the_bank_count_for_the_correlation_too() -> None:
    choice, rows = make()
    batch = [TrialRecord(r.number, r.policy_hash, r.origin, {**r.choices, "a/precision": 99}) for r in records(24)]
    chosen = choose(choice, rows, batch)
    assert len(chosen) == 8, "their other costs are those of the nearest variants"
    screen(choice, rows, chosen, lambda kl: 1.0 + 10 * kl)
    assert choice.correlation() == pytest.approx(1.0)


def test_the_first_pictures_are_enough_for_what_lies_far_above_all_that_was_of_use() -> None:
    choice, rows = make()
    choose(choice, rows, records(24))
    assert {payload["hopeless_kl"] for payload in rows.payloads} == {LARGEST}, "nothing is known yet"
    screen(choice, rows, records(5), lambda kl: 1.0 + 10 * kl if kl < 0.15 else 50.0)
    seen = len(rows.payloads)
    choose(choice, rows, records(3, 24))
    assert {payload["hopeless_kl"] for payload in rows.payloads[seen:]} == {LARGEST}, "four of use are too few"
    screen(choice, rows, records(3, 5), lambda kl: 1.0 + 10 * kl if kl < 0.15 else 50.0)
    seen = len(rows.payloads)
    choose(choice, rows, records(3, 27))
    (limit,) = {payload["hopeless_kl"] for payload in rows.payloads[seen:]}
    assert limit == pytest.approx(HOPELESS_FACTOR * 0.09)


def test_damage_of_the_first_pictures_alone_is_not_told_to_the_sampler() -> None:
    choice, rows = make(lambda digest: {"kl": 3.0, "pictures": 128.0 if digest == "0.1" else PICTURES})
    batch = records(3)
    choose(choice, rows, batch)
    assert choice.attributes(batch[0]) == {KL: 3.0} and choice.attributes(batch[1]) == {}


def test_a_candidate_that_cannot_be_stitched_does_not_go_on() -> None:
    choice, rows = make(lambda digest: None if digest.startswith("0.") else {"kl": 0.1, "pictures": PICTURES})
    chosen = choose(choice, rows, records(12))
    assert chosen and not any(record.policy_hash.startswith("0.") for record in chosen)
    dead, none = make(lambda digest: None)
    assert choose(dead, none, records(12)) == []


def test_a_policy_is_screened_once() -> None:
    choice, rows = make()
    first = choose(choice, rows, records(12))
    again = choose(choice, rows, records(12))
    assert not {r.policy_hash for r in first} & {r.policy_hash for r in again}
    assert choice.screened == {r.policy_hash for r in [*first, *again]}


def test_what_a_later_batch_screened_does_not_change_what_an_earlier_one_tells() -> None:
    choice, rows = make()
    batch = records(12)
    chosen = choose(choice, rows, batch)
    left = next(record for record in batch if record not in chosen)
    # So it stands in the ledger of a run that is resumed: this policy was asked again later, and then screened.
    rows.add((left.policy_hash, "screen"), {"error_pct": 2.0, "stored_bytes": 1500.0, "latency_ratio": 0.8})
    outcome = Screening(choice.session)._outcome(left, choice)
    assert outcome.pruned and outcome.values is None
    choice.screened.add(left.policy_hash)
    assert Screening(choice.session)._outcome(left, choice).values == (2.0, 1500.0, 0.8)


def test_without_a_bank_every_trial_is_screened() -> None:
    choice, batch = EveryOne(), records(5)
    assert choice.count(8, 5) == 5 and choice.choose(cast(Dispatcher, None), batch, 5) == batch
    assert choice.screened == {record.policy_hash for record in batch}
