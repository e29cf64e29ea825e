"""The bank of a run: every unit's variants measured alone, and the table that the sampler solves."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..evaluators.kernels import kernel_policy
from ..policies.errors import ConfigError, PolicyError
from ..policies.plan import make_plan
from ..policies.policy import Policy
from ..spaces.base import Choices, indices
from ..spaces.layerwise import LayerwiseSpace
from .dispatch import Dispatcher
from .ledger import Evaluation, EvaluationKey
from .rundir import sha256
from .samplers.bank_guided import Guide, without_dominated
from .session import DENSE, Session
from .table import Table

ORIGIN = "bank"
LARGEST = 1e9
"""Damage that no candidate reaches: all pictures are run."""
MOST_VARIANTS = 96
"""Of a unit: menus whose product is longer are thinned."""
KL, STORED, ESTIMATED = "kl", "stored_bytes", "estimated_stored_bytes"


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
    others
        The unit dense, all else in the middle of its menus.
    kernels
        The whole network's kernels with this variant among the central ones.
    """

    unit: str
    choices: Choices
    policy: Policy | None
    others: Policy
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
        On the calibration rung, with only this unit compressed; ``estimated_stored_bytes`` is the whole network's with
        the others in the middle of their menus. Empty where it failed.
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
class Built:
    """A bank.

    Parameters
    ----------
    figures
        Of every variant of every unit.
    central
        The whole network's costs in the middle of all menus; empty where not even the dense network's kernels can be
        built.
    failed
        Units that nothing can be done to, with the reason of the last variant that was tried.
    """

    figures: tuple[Figures, ...]
    central: Mapping[str, float]
    failed: Mapping[str, str]

    @property
    def usable(self) -> list[Figures]:
        """Variants to choose from; none where the middle cannot be built."""
        return [f for f in self.figures if self.central and not f.failure and f.entry.unit not in self.failed]


@dataclass(frozen=True)
class Banking:
    """Builds the bank on a pool; what the ledger holds already is not measured again."""

    session: Session

    def __call__(self, dispatcher: Dispatcher) -> Built:
        """Measure every variant of every unit."""
        dispatcher.on_done = lambda _: None
        alone = self._failing(dispatcher)
        middle, central = self._middle(dispatcher, alone)
        entries = self._entries(middle)
        self._measure_all(dispatcher, entries)
        figures = tuple(self._figures(entry) for entry in entries)
        changed = {f.entry.unit for f in figures if not f.failure and f.entry.policy != DENSE}
        failed = {f.entry.unit: f.failure for f in figures if f.failure and f.entry.unit not in changed}
        # A unit without a choice has no variants; if what is always done to it fails, that is known from the middle.
        fixed = {unit: reason for unit, reason in alone.items() if all(f.entry.unit != unit for f in figures)}
        dispatcher.pool.share(self.files())
        return Built(figures, central, {**fixed, **failed})

    def files(self) -> dict[str, bytes]:
        """The compressed layers by digest; a file that is missing or damaged is made anew where it is needed."""
        files = {}
        for row in self.session.rows("profile"):
            for name, digest in row.artefacts.items():
                path = self.session.run.bank(name)
                content = path.read_bytes() if path.is_file() else b""
                if sha256(content) == digest:
                    files[path.stem] = content
        return files

    def _failing(self, dispatcher: Dispatcher) -> dict[str, str]:
        """Units that fail in the middle of their menus with all others dense, with the reason; none where all work together."""
        space = self._space
        if not self._complaints(dispatcher, [space])[0]:
            return {}
        units = list(space.units)
        complaints = self._complaints(dispatcher, [space.without(set(units) - {unit}) for unit in units])
        return {unit: complaint for unit, complaint in zip(units, complaints) if complaint}

    def _middle(self, dispatcher: Dispatcher, alone: Collection[str]) -> tuple[LayerwiseSpace, Mapping[str, float]]:
        """The units that stand in the middle of their menus around the others, and what that network costs."""
        for space in (self._space.without(alone), self._space.without(list(self._space.units))):
            if not self._complaints(dispatcher, [space])[0]:
                policy = self._central(space)
                estimated = self._row(policy, "stitch").values[ESTIMATED]
                return space, {**self._row(self._kernels(policy), "kernels").values, STORED: estimated}
        return space, {}

    def _complaints(self, dispatcher: Dispatcher, spaces: Sequence[LayerwiseSpace]) -> list[str]:
        """What is wrong with each space's middle; empty where nothing is."""
        planned: list[Policy | str] = []
        for space in spaces:
            try:
                planned.append(self._central(space))
            except PolicyError as error:
                planned.append(str(error))
        policies = [policy for policy in planned if isinstance(policy, Policy)]
        kernels = self._registered("kernels", [self._kernels(policy) for policy in policies])
        stitched = [(key, {"hopeless_kl": LARGEST}) for key in self._registered("stitch", policies)]
        dispatcher.run([*stitched, *((key, {}) for key in kernels)])
        return [found if isinstance(found, str) else self._complaint(found) for found in planned]

    def _complaint(self, policy: Policy) -> str:
        return _failure([self._row(policy, "stitch"), self._row(self._kernels(policy), "kernels")])

    def _measure_all(self, dispatcher: Dispatcher, entries: Sequence[Entry]) -> None:
        fitting = [(e, e.policy, e.kernels) for e in entries if e.policy is not None and e.kernels is not None]
        variants = len({policy.digest for _, policy, _ in fitting})
        kernels = [kernel for *_, kernel in fitting]
        everything = variants + len({kernel.digest for kernel in kernels})
        self.session.listener.say(f"building the bank: {variants} variants, {everything - variants} sets of kernels")
        done = iter(range(1, everything + 1))
        dispatcher.on_done = lambda _: self.session.show("bank", next(done), everything)
        around = {policy.digest: {"around": entry.others.to_json()} for entry, policy, _ in fitting}
        alone = self._registered("profile", [policy for _, policy, _ in fitting])
        wanted = [(key, around[key.policy_hash]) for key in alone]
        dispatcher.run([*wanted, *((key, {}) for key in self._registered("kernels", kernels))])
        dispatcher.on_done = lambda _: None
        untouched = [entry.others for entry, policy, _ in fitting if policy == DENSE]
        dispatcher.run((key, {"hopeless_kl": LARGEST}) for key in self._registered("stitch", untouched))

    def _registered(self, fidelity: str, policies: Sequence[Policy]) -> list[EvaluationKey]:
        """The evaluations of distinct policies, in the ledger."""
        distinct = {policy.digest: policy for policy in policies}
        keys = [self.session.key(policy, fidelity) for policy in distinct.values()]
        for key, policy in zip(keys, distinct.values()):
            self.session.ledger.register(key, policy.to_json(), ORIGIN, {})
        return keys

    def _entries(self, middle: LayerwiseSpace) -> list[Entry]:
        made = []
        for unit, variants in self._space.variants(MOST_VARIANTS).items():
            # Around the unit, the middle; the unit itself may be one that fails there.
            space = self._space.without([u for u in self._space.units if u != unit and u not in middle.units])
            others = self._central(middle.without([unit]))
            for chosen in variants:
                try:
                    alone = self._normal(self._space.alone(unit, chosen))
                    kernels = self._kernels(self._normal(space.policy({**space.central(), **chosen})))
                    made.append(Entry(unit, chosen, alone, others, kernels))
                except PolicyError as error:
                    made.append(Entry(unit, chosen, None, others, None, str(error)))
        return made

    @property
    def _space(self) -> LayerwiseSpace:
        return layers_of(self.session)

    def _central(self, space: LayerwiseSpace) -> Policy:
        return self._normal(space.policy(space.central()))

    def _kernels(self, policy: Policy) -> Policy:
        return self._normal(kernel_policy(policy))

    def _normal(self, policy: Policy) -> Policy:
        return make_plan(policy, self.session.prepared.bench.graph).policy

    def _row(self, policy: Policy, fidelity: str) -> Evaluation:
        return self.session.ledger.get(self.session.key(policy, fidelity))

    def _figures(self, entry: Entry) -> Figures:
        if entry.policy is None or entry.kernels is None:
            return Figures(entry, {}, {}, entry.complaint)
        rows = [self._row(entry.policy, "profile"), self._row(entry.kernels, "kernels")]
        profile = rows[0].values
        if entry.policy == DENSE:
            # Units share this row; what the others come to around the dense unit is its own.
            rows.append(self._row(entry.others, "stitch"))
            profile = {**profile, **{name: v for name, v in rows[-1].values.items() if name == ESTIMATED}}
        return Figures(entry, profile, rows[1].values, _failure(rows))


def _failure(rows: Sequence[Evaluation]) -> str:
    failed = next((row for row in rows if row.state != "done"), None)
    return "" if failed is None else f"{failed.error_class}: {failed.error}"


def make_guide(session: Session, built: Built) -> Guide:
    """The table of the usable, undominated variants, and what the study asks for."""
    usable = built.usable
    units = tuple(dict.fromkeys(f.entry.unit for f in usable))
    limits = {limit.metric: limit.bound for limit in session.screen_limits}
    wanted = dict.fromkeys([*session.objectives, *limits])
    names = (KL, *(name for name in wanted if name != "error_pct"))
    rows = {unit: [f for f in usable if f.entry.unit == unit] for unit in units}
    everything = [f.profile for f in usable]
    guide = Guide(
        table=table_of(units, names, rows, built.central),
        choices=tuple(tuple(indices(f.entry.choices) for f in rows[unit]) for unit in units),
        knobs={knob: len(options) for knob, options in layers_of(session).menu().items()},
        damage=np.array([p[KL] for p in everything]),
        error=_validation_like(session, everything),
        dense_error=session.baseline["validation_error_pct"],
        objectives=session.objectives,
        reference=np.array([useful_at_most(session, name, limits) for name in session.objectives]),
        bounds={name: bound for name, bound in limits.items() if name not in session.objectives},
    )
    return without_dominated(guide)


def table_of(
    units: Sequence[str],
    names: Sequence[str],
    rows: Mapping[str, Sequence[Figures]],
    central: Mapping[str, float],
) -> Table:
    """Damage as it was measured alone; every other cost as what it adds to the network's in the middle of all menus."""
    costs = np.full((len(units), max(map(len, rows.values())), len(names)), np.inf)
    offsets = np.array([0.0 if name == KL else central[name] for name in names])
    for u, unit in enumerate(units):
        for v, found in enumerate(rows[unit]):
            costs[u, v] = [_figure(found, name) for name in names] - offsets
    return Table(tuple(units), tuple(names), costs, offsets)


def _figure(found: Figures, name: str) -> float:
    if name == KL:
        return found.profile[KL]
    return found.profile[ESTIMATED] if name == STORED else found.costs[name]


def _validation_like(session: Session, profiles: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Errors of the variants alone, moved from training to validation pictures by the dense network's."""
    errors = np.array([p["calibration_error_pct"] for p in profiles])
    dense = session.baseline["validation_error_pct"]
    return np.maximum(errors - errors.min() + dense, 0.0)


def useful_at_most(session: Session, name: str, limits: Mapping[str, float]) -> float:
    """The largest value of an objective that is of any use: its limit, or the dense network's own figure."""
    if name == "error_pct":
        dense = session.baseline["validation_error_pct"]
        recovering = session.config.recovery.epochs > 0
        allowed = dense + session.config.search.screen_error
        return allowed if recovering else min(allowed, limits.get(name, allowed))
    return min(limits.get(name, np.inf), session.baseline[name])


def leave_dense(session: Session, failed: Mapping[str, str]) -> None:
    """Take units out of the space, and say why, also to the report."""
    session.ledger.set_meta("left_dense", json.dumps(dict(failed)))
    if not failed:
        return
    for unit, reason in failed.items():
        session.listener.say(f"{unit} is left dense, all that was tried on it failed: {reason}")
    session.prepared = replace(session.prepared, space=layers_of(session).without(list(failed)))


def layers_of(session: Session) -> LayerwiseSpace:
    """The run's space, which is one of layers.

    Raises
    ------
    ConfigError
        Where the shape of the network is searched.
    """
    if not isinstance(session.prepared.space, LayerwiseSpace):
        raise ConfigError(
            "space.shape: a bank is of one network's layers; leave out space.shape, or give"
            " another search.sampler than bank"
        )
    return session.prepared.space
