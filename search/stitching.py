"""The lowest rung: many candidates tried by one forward pass each, the best of them sent on to be built and measured."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from .banking import LARGEST
from .dispatch import Dispatcher
from .front import scaled_values
from .ledger import Evaluation
from .promotion import kept_share, promote, rank_correlation
from .records import TrialRecord
from .samplers.bank_guided import KL, QUANTILES, Guide
from .samplers.gain import VolumeGain
from .samplers.surrogate import ENOUGH_FOR_LINK, Link, correct, fit_link
from .session import Session, total

TRIED_FOR_ONE = 3
HOPELESS_FACTOR = 8.0
"""A candidate whose first pictures lie this far above the damage that is still of use is not run on the others."""


class Choice(Protocol):
    """Which of a batch of trials are measured in full."""

    @property
    def rung(self) -> str:
        """The rung on which every trial is measured."""
        ...

    @property
    def screened(self) -> Collection[str]:
        """Digests of the policies that were chosen so far; the ledger of a resumed run knows later ones too."""
        ...

    def count(self, batch: int, left: int) -> int:
        """How many trials to ask for, where ``batch`` may be screened at a time and ``left`` in all."""
        ...

    def choose(self, dispatcher: Dispatcher, batch: Sequence[TrialRecord], left: int) -> list[TrialRecord]:
        """Those of a batch that are screened, ``left`` at most."""
        ...

    def learn(self, records: Sequence[TrialRecord]) -> None:
        """Take in what was measured of the chosen."""
        ...

    def attributes(self, record: TrialRecord) -> Mapping[str, float]:
        """What a lower rung measured, for the sampler."""
        ...


@dataclass
class EveryOne:
    """No lower rung."""

    screened: set[str] = field(default_factory=set)
    rung: str = "screen"

    def count(self, batch: int, left: int) -> int:
        return min(batch, left)

    def choose(self, dispatcher: Dispatcher, batch: Sequence[TrialRecord], left: int) -> list[TrialRecord]:
        self.screened |= {record.policy_hash for record in batch}
        return list(batch)

    def learn(self, records: Sequence[TrialRecord]) -> None:
        pass

    def attributes(self, record: TrialRecord) -> Mapping[str, float]:
        return {}


@dataclass
class Stitching:
    """Tries three candidates for one that is screened, by the damage to a few training pictures.

    Parameters
    ----------
    session, guide
        The run, and the bank's table: what a stitched candidate's other costs are predicted from.
    """

    session: Session
    guide: Guide
    screened: set[str] = field(default_factory=set)
    _known: list[_Known] = field(default_factory=list)
    rung: str = "stitch"

    def count(self, batch: int, left: int) -> int:
        return TRIED_FOR_ONE * min(batch, left)

    def choose(self, dispatcher: Dispatcher, batch: Sequence[TrialRecord], left: int) -> list[TrialRecord]:
        # Not what the ledger holds by now: a resumed run would choose otherwise.
        new = {record.policy_hash: record for record in batch if record.policy_hash not in self.screened}
        self._try(dispatcher, list(new.values()))
        tried = [record for record in new.values() if self._stitched(record).state == "done"]
        if not tried:
            return []
        count = min(left, max(1, math.ceil(len(batch) * kept_share(self.correlation()))))
        promoted = [tried[i] for i in self._worthwhile(tried, count)]
        self.screened |= {record.policy_hash for record in promoted}
        return promoted

    def learn(self, records: Sequence[TrialRecord]) -> None:
        """Take in what the next rung measured of the promoted."""
        for record in records:
            row = self.session.ledger.get(self.session.key_of(record.policy_hash, "screen"))
            if row.state == "done":
                chosen = self.guide.variants_of(record.choices)
                self._known.append(_Known(chosen, self._stitched(record).values["kl"], row.values))

    def attributes(self, record: TrialRecord) -> Mapping[str, float]:
        row = self._stitched(record)
        whole = row.state == "done" and row.values["pictures"] >= self._pictures
        return {KL: row.values["kl"]} if whole else {}

    def correlation(self) -> float | None:
        """Of the damage on this rung with the error on the next."""
        return rank_correlation(
            [known.kl for known in self._known], [known.screened["error_pct"] for known in self._known]
        )

    def _try(self, dispatcher: Dispatcher, records: Sequence[TrialRecord]) -> None:
        payload = {"hopeless_kl": self._hopeless_kl()}
        dispatcher.on_done = lambda _: None
        dispatcher.run((self.session.key_of(record.policy_hash, "stitch"), payload) for record in records)

    def _stitched(self, record: TrialRecord) -> Evaluation:
        return self.session.ledger.get(self.session.key_of(record.policy_hash, "stitch"))

    @property
    def _pictures(self) -> int:
        return min(self.session.config.search.stitch_pictures, len(self.session.prepared.data.train))

    def _hopeless_kl(self) -> float:
        """Far above what any candidate had whose error was still of use."""
        allowed = self.guide.reference[self.guide.objectives.index("error_pct")] if self._bounds_error else math.inf
        useful = [known.kl for known in self._known if known.screened["error_pct"] <= allowed]
        return HOPELESS_FACTOR * max(useful) if len(useful) >= ENOUGH_FOR_LINK else LARGEST

    @property
    def _bounds_error(self) -> bool:
        return "error_pct" in self.guide.objectives

    def _worthwhile(self, records: Sequence[TrialRecord], count: int) -> list[int]:
        """Those expected to add most to the volume below the measured front; then by rank where none adds anything."""
        metrics, spread = self._predicted(records)
        values = scaled_values(metrics, self.guide.objectives)
        broken = [self.session.screen_violations(found) for found in metrics]
        chosen: list[int] = []
        if self._bounds_error:
            # What an objective misses is outside the reference anyhow, and the error may turn out smaller.
            others = [total({n: v for n, v in b.items() if n not in self._soft}) for b in broken]
            chosen = self._by_gain(values, spread, np.array(others) <= 0, count)
        rest = [i for i in range(len(records)) if i not in chosen]
        missed, names = np.array([total(found) for found in broken]), self.guide.objectives
        latency = next((i for i, name in enumerate(names) if name.startswith("latency")), None)
        more = promote(values[rest], missed[rest], min(count - len(chosen), len(rest)), latency)
        return [*chosen, *(rest[i] for i in more)]

    def _by_gain(self, values: np.ndarray, spread: float, allowed: np.ndarray, count: int) -> list[int]:
        names = self.guide.objectives
        depth = names.index("error_pct")
        draws = values[:, depth, None] + spread * QUANTILES
        kept = [k.screened for k in self._known if total(self.session.screen_violations(k.screened)) <= 0]
        seed, reference = len(self._known), self.guide.scaled_reference
        gain = VolumeGain(scaled_values(kept, names), values, draws, depth, reference, seed)
        return gain.take(count, allowed)

    @property
    def _soft(self) -> set[str]:
        """Limits that a predicted miss of does not rule a candidate out."""
        return {*self.guide.objectives, "screen_error"}

    def _predicted(self, records: Sequence[TrialRecord]) -> tuple[list[dict[str, float]], float]:
        """Metrics of each: damage measured, the rest predicted; and the error's standard deviation."""
        names = self.guide.table.objectives
        found = [self.guide.variants_of(record.choices) for record in records]
        chosen = np.array(
            [self._nearest(record) if policy is None else policy for record, policy in zip(records, found)]
        )
        inside = [known for known in self._known if known.chosen is not None]
        measured = np.array([[k.kl, *(k.screened[name] for name in names[1:])] for k in inside], float)
        measured = measured.reshape(-1, len(names))
        past = np.array([known.chosen for known in inside], int).reshape(-1, chosen.shape[1])
        costs = correct(self.guide.table, past, measured, self.guide.options).predict(chosen)
        costs[:, 0] = [self._stitched(record).values["kl"] for record in records]
        link = self._link()
        errors = link(costs[:, 0]).tolist()
        return [dict(zip(names, row)) | {"error_pct": e} for row, e in zip(costs.tolist(), errors)], link.spread

    def _link(self) -> Link:
        """From the damage to the error: as it was screened, or at first as the bank has it."""
        if len(self._known) < ENOUGH_FOR_LINK:
            return fit_link(self.guide.damage, self.guide.error, self.guide.dense_error)
        errors = [known.screened["error_pct"] for known in self._known]
        return fit_link(np.array([known.kl for known in self._known]), np.array(errors), self.guide.dense_error)

    def _nearest(self, record: TrialRecord) -> np.ndarray:
        """For a choice that the thinned bank leaves out: each unit's variant whose indices are nearest."""
        out = []
        for unit in self.guide.choices:
            away = [sum(abs(index - int(record.choices.get(knob, 0))) for knob, index in v.items()) for v in unit]
            out.append(int(np.argmin(away)))
        return np.array(out, int)


@dataclass(frozen=True)
class _Known:
    """A candidate on both rungs; ``chosen`` is ``None`` where the bank has not all of its variants."""

    chosen: np.ndarray | None
    kl: float
    screened: Mapping[str, float]
