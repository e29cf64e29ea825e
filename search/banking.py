"""The bank of a run: every unit's variants measured alone, and the table that the sampler solves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from ..evaluators.base import METRICS
from ..evaluators.kernels import kernel_policy
from ..policies.errors import PolicyError
from ..policies.plan import make_plan
from ..policies.policy import Policy
from ..spaces.base import Choices
from .dispatch import Dispatcher
from .ledger import Evaluation, EvaluationKey
from .samplers.bank_guided import Guide, without_dominated
from .session import Session
from .solve import Table

MOST_VARIANTS = 96
"""Of a unit: menus whose product is longer are thinned."""
STORED = "stored_bytes"


@dataclass(frozen=True)
class Entry:
    """A variant of a unit.

    Parameters
    ----------
    unit
        Name of the layers that share the choice.
    choices
        Its knobs' indices.
    policy
        The unit compressed, all else dense; ``None`` where it does not fit the network, with ``complaint`` saying why.
    kernels
        The whole network's kernels with this variant among the central ones.
    """

    unit: str
    choices: Choices
    policy: Policy | None
    kernels: Policy | None
    complaint: str = ""


@dataclass(frozen=True)
class Figures:
    """What was measured of a variant.

    Parameters
    ----------
    entry
        The variant.
    profile
        On the calibration rung, with only this unit compressed; empty where it failed.
    costs
        The whole network's counted and timed metrics with this variant among the central ones.
    failure
        Why it cannot be used, or empty.
    """

    entry: Entry
    profile: Mapping[str, float]
    costs: Mapping[str, float]
    failure: str


@dataclass(frozen=True)
class Banking:
    """Builds the bank on a pool; what the ledger holds already is not measured again."""

    session: Session

    def __call__(self, dispatcher: Dispatcher) -> list[Figures]:
        """Measure every variant of every unit."""
        entries = list(self._entries())
        around = {"around": self._central.to_json()}
        profiles = {entry.policy.digest: entry.policy for entry in entries if entry.policy is not None}
        kernels = {entry.kernels.digest: entry.kernels for entry in entries if entry.kernels is not None}
        kernels[self._central_kernels.digest] = self._central_kernels
        self.session.listener.say(f"building the bank: {len(profiles)} variants, {len(kernels)} sets of kernels")
        done = iter(range(1, len(profiles) + len(kernels) + 1))
        dispatcher.on_done = lambda _: self.session.show("bank", next(done), len(profiles) + len(kernels))
        self._measure(dispatcher, "profile", profiles, around)
        self._measure(dispatcher, "kernels", kernels, {})
        return [self._figures(entry) for entry in entries]

    def _measure(
        self, dispatcher: Dispatcher, fidelity: str, policies: Mapping[str, Policy], payload: Mapping[str, str]
    ) -> None:
        keys = [self._registered(policy, fidelity) for policy in policies.values()]
        dispatcher.run((key, payload) for key in keys)

    def _registered(self, policy: Policy, fidelity: str) -> EvaluationKey:
        key = self.session.key(policy, fidelity)
        self.session.ledger.register(key, policy.to_json(), "bank", {})
        return key

    def _entries(self) -> Sequence[Entry]:
        space = self.session.prepared.space
        made = []
        for unit, variants in space.variants(MOST_VARIANTS).items():
            for chosen in variants:
                try:
                    alone = self._normal(space.alone(unit, chosen))
                    kernels = self._normal(kernel_policy(self._normal(space.policy({**space.central(), **chosen}))))
                    made.append(Entry(unit, chosen, alone, kernels))
                except PolicyError as error:
                    made.append(Entry(unit, chosen, None, None, str(error)))
        return made

    def _normal(self, policy: Policy) -> Policy:
        return make_plan(policy, self.session.prepared.bench.graph).policy

    @cached_property
    def _central(self) -> Policy:
        space = self.session.prepared.space
        return self._normal(space.policy(space.central()))

    @cached_property
    def _central_kernels(self) -> Policy:
        return self._normal(kernel_policy(self._central))

    def central_costs(self) -> Mapping[str, float]:
        """Counted and timed metrics of the central kernels; empty where they could not be built."""
        return self._row(self._central_kernels, "kernels").values

    def _row(self, policy: Policy, fidelity: str) -> Evaluation:
        return self.session.ledger.get(self.session.key(policy, fidelity))

    def _figures(self, entry: Entry) -> Figures:
        if entry.policy is None or entry.kernels is None:
            return Figures(entry, {}, {}, entry.complaint)
        rows = [self._row(entry.policy, "profile"), self._row(entry.kernels, "kernels")]
        failed = next((row for row in rows if row.state != "done"), None)
        failure = "" if failed is None else f"{failed.error_class}: {failed.error}"
        return Figures(entry, rows[0].values, rows[1].values, failure)


def failed_units(figures: Sequence[Figures]) -> dict[str, str]:
    """Units none of whose variants can be used, with the reason of the last."""
    usable = {f.entry.unit for f in figures if not f.failure}
    return {f.entry.unit: f.failure for f in figures if f.entry.unit not in usable}


def make_guide(session: Session, figures: Sequence[Figures], central: Mapping[str, float]) -> Guide:
    """The table of the usable, undominated variants, and what the study asks for."""
    usable = [f for f in figures if not f.failure]
    units = tuple(dict.fromkeys(f.entry.unit for f in usable))
    limits = {limit.metric: limit.bound for limit in session.validation_limits}
    wanted = dict.fromkeys([*session.objectives, *limits])
    names = ("kl", *(name for name in wanted if name != "error_pct"))
    rows = {unit: [f for f in usable if f.entry.unit == unit] for unit in units}
    everything = [f.profile for f in usable]
    guide = Guide(
        table=table_of(units, names, rows, central),
        choices=tuple(tuple(_whole(f.entry.choices) for f in rows[unit]) for unit in units),
        knobs={knob: len(options) for knob, options in session.prepared.space.menu().items()},
        damage=np.array([p["kl"] for p in everything]),
        error=_validation_like(session, everything),
        dense_error=session.baseline["validation_error_pct"],
        objectives=session.objectives,
        reference=np.array([_reference(session, name, limits) for name in session.objectives]),
        bounds={name: bound for name, bound in limits.items() if name not in session.objectives},
    )
    return without_dominated(guide)


def _whole(choices: Choices) -> dict[str, int]:
    return {knob: int(index) for knob, index in choices.items()}


def table_of(
    units: Sequence[str],
    names: Sequence[str],
    rows: Mapping[str, Sequence[Figures]],
    central: Mapping[str, float],
) -> Table:
    """Damage as it was measured alone; every other cost as what it adds to the network's in the middle of all menus."""
    most = max(len(found) for found in rows.values())
    costs = np.full((len(units), most, len(names)), np.inf)
    stored = float(np.median([f.profile["estimated_stored_bytes"] for found in rows.values() for f in found]))
    offsets = np.array([0.0 if name == "kl" else stored if name == STORED else central[name] for name in names])
    for u, unit in enumerate(units):
        for v, found in enumerate(rows[unit]):
            for j, name in enumerate(names):
                value = found.profile["estimated_stored_bytes"] if name == STORED else found.costs.get(name, 0.0)
                costs[u, v, j] = found.profile["kl"] if name == "kl" else value - offsets[j]
    return Table(tuple(units), tuple(names), costs, offsets)


def _validation_like(session: Session, profiles: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Errors of the variants alone, moved from training to validation pictures by the dense network's."""
    errors = np.array([p["calibration_error_pct"] for p in profiles])
    dense = session.baseline["validation_error_pct"]
    return np.maximum(errors - errors.min() + dense, 0.0)


def _reference(session: Session, name: str, limits: Mapping[str, float]) -> float:
    """The largest value of an objective that is of any use: its limit, or the dense network's own figure."""
    if name == "error_pct":
        dense = session.baseline["validation_error_pct"]
        recovering = session.config.recovery.epochs > 0
        allowed = dense + session.config.search.screen_error
        return allowed if recovering else min(allowed, limits.get(name, allowed))
    return min(limits.get(name, np.inf), session.baseline[name])


def figures_of(metrics: Mapping[str, float]) -> dict[str, float]:
    """Those of a variant's figures that are metrics."""
    return {name: value for name, value in metrics.items() if name in METRICS}


def leave_dense(session: Session, failed: Mapping[str, str]) -> None:
    """Take units out of the space, and say why."""
    if not failed:
        return
    for unit, reason in failed.items():
        session.listener.say(f"{unit} is left dense, each of its variants failed: {reason}")
    session.prepared = replace(session.prepared, space=session.prepared.space.without(list(failed)))
