"""The search's own sampler: solve the bank for many budgets, correct it by what was measured, ask what promises most.

Each batch refits a coefficient for every unit and cost (ridge towards the bank), solves the corrected bank along its
whole front, adds moves around the measured front, and takes the candidates of largest expected gain of hypervolume. A
share of every batch is drawn uniformly, as a check on the model's bias.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from ..front import LOGARITHMIC
from ..pareto import front as front_of
from ..solve import Table, spread_multipliers, sweep, undominated
from .gain import VolumeGain
from .surrogate import ENOUGH_FOR_LINK, Corrected, Link, correct, fit_link

KL = "paretopress:kl"
"""System attribute in which a trial's measured damage stands, promoted or not."""
UNIFORM_SHARE = 0.1
SOLVED = int(__import__("os").environ.get("SOLVED","768"))
MOVES = int(__import__("os").environ.get("MOVES","256"))
SPREAD = float(__import__("os").environ.get("SPREAD","1"))
MOST_MOVED = 3
QUANTILES = np.array([-1.15, -0.32, 0.32, 1.15])
TRIES = 64
MOST_LISTED = 65536


@dataclass(frozen=True)
class Guide:
    """What the sampler knows before the first evaluation.

    Parameters
    ----------
    table
        Costs of each unit's variants: the damage ``kl`` first, then metrics such as ``stored_bytes``.
    choices
        For each unit, for each variant: knob -> index of its option.
    knobs
        Knob -> number of options.
    damage, error
        (p,) pairs of damage and error from the bank, for the first batch.
    dense_error
        Error at no damage.
    objectives
        The study's, in order; ``error_pct`` follows from the damage, every other stands in the table.
    reference
        (m,) largest value of each objective that is of any use, in the metrics' own units.
    bounds
        Metric of the table -> bound, for budgets that are no objective.
    """

    table: Table
    choices: tuple[tuple[Mapping[str, int], ...], ...]
    knobs: Mapping[str, int]
    damage: np.ndarray
    error: np.ndarray
    dense_error: float
    objectives: tuple[str, ...]
    reference: np.ndarray
    bounds: Mapping[str, float]

    @cached_property
    def _indices(self) -> list[dict[tuple[tuple[str, int], ...], int]]:
        return [{tuple(sorted(c.items())): i for i, c in reversed(list(enumerate(unit)))} for unit in self.choices]

    def variants_of(self, params: Mapping[str, Any]) -> np.ndarray | None:
        """(U,) the variants that these knobs choose, or ``None`` where one is not in the bank."""
        found = []
        for unit, index in zip(self.choices, self._indices):
            key = tuple(sorted((knob, int(params.get(knob, 0))) for knob in unit[0]))
            if key not in index:
                return None
            found.append(index[key])
        return np.array(found, int)

    def params_of(self, chosen: np.ndarray) -> dict[str, int]:
        """The inverse."""
        params = dict.fromkeys(self.knobs, 0)
        for unit, variant in zip(self.choices, chosen):
            params |= unit[int(variant)]
        return params


def without_dominated(guide: Guide) -> Guide:
    """The guide without the variants that another of their unit is at least as good as throughout."""
    keep = undominated(guide.table)
    choices = tuple(tuple(c for c, kept in zip(unit, row) if kept) for unit, row in zip(guide.choices, keep))
    costs = np.full((len(choices), max(map(len, choices)), guide.table.costs.shape[-1]), np.inf)
    for unit, row in enumerate(keep):
        costs[unit, : row.sum()] = guide.table.costs[unit][row]
    return replace(guide, choices=choices, table=replace(guide.table, costs=costs))


@dataclass(frozen=True)
class History:
    """Answered trials.

    Parameters
    ----------
    chosen
        (n, U) policies of the bank.
    costs
        (n, M) measured, nan where they were not.
    error
        (n,) measured, nan where it was not.
    values
        (f, m) objectives of every complete trial, in the bank or not.
    misses
        (f,) what each of them is above its constraints.
    asked
        Knob settings that were asked already.
    """

    chosen: np.ndarray
    costs: np.ndarray
    error: np.ndarray
    values: np.ndarray
    misses: np.ndarray
    asked: frozenset[tuple[int, ...]]
    answered: int


class BankGuidedSampler(BaseSampler):
    """An Optuna sampler over the bank; deterministic under its seed, its state is the study.

    Parameters
    ----------
    guide
        Of the network, its data and its menus.
    seed
        Of this sampler.
    batch
        How many trials are planned at a time.
    """

    def __init__(self, guide: Guide, seed: int, batch: int = 8) -> None:
        self._guide, self._seed, self._batch = guide, seed, batch
        self._planned: deque[dict[str, int]] = deque()
        self._space: dict[str, BaseDistribution] = {
            knob: IntDistribution(0, count - 1) for knob, count in guide.knobs.items()
        }

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not self._planned:
            self._planned.extend(self.plan(read_history(self._guide, study.get_trials(deepcopy=False)), self._batch))
        return dict(self._planned.popleft())

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        rng = np.random.default_rng([self._seed, trial.number])
        assert isinstance(param_distribution, IntDistribution), "a space asks for indices only"
        return int(rng.integers(param_distribution.low, param_distribution.high + 1))

    def plan(self, history: History, count: int) -> list[dict[str, int]]:
        """Knob settings of the next batch."""
        rng = np.random.default_rng([self._seed, len(history.asked)])
        corrected = correct(self._guide.table, history.chosen, history.costs)
        answered = history.answered
        uniform = int(UNIFORM_SHARE * (answered + count)) - int(UNIFORM_SHARE * answered)
        pool = self._pool(corrected.table, history, rng)
        chosen = self._most_promising(pool, corrected, history, count - uniform)
        planned = [self._guide.params_of(policy) for policy in chosen]
        asked = set(history.asked) | {tuple(params.values()) for params in planned}
        while len(planned) < count:
            planned.append(self._uniform(rng, asked))
            asked.add(tuple(planned[-1].values()))
        return planned

    def _link(self, history: History) -> Link:
        known = np.isfinite(history.error) & np.isfinite(history.costs[:, 0])
        if known.sum() >= ENOUGH_FOR_LINK:
            return fit_link(history.costs[known, 0], history.error[known], self._guide.dense_error)
        return fit_link(self._guide.damage, self._guide.error, self._guide.dense_error)

    def _uniform(self, rng: np.random.Generator, asked: Collection[tuple[int, ...]]) -> dict[str, int]:
        """A setting that was not asked for before, where one is left."""
        sizes = [len(unit) for unit in self._guide.choices]
        for _ in range(TRIES):
            params = self._guide.params_of(rng.integers(0, sizes))
            if tuple(params.values()) not in asked:
                return params
        if math.prod(sizes) <= MOST_LISTED:
            everything = [self._guide.params_of(np.array(policy)) for policy in np.ndindex(*sizes)]
            left = [params for params in everything if tuple(params.values()) not in asked]
            if left:
                return left[int(rng.integers(len(left)))]
        return params

    def _pool(self, table: Table, history: History, rng: np.random.Generator) -> np.ndarray:
        """(k, U) candidates that were not asked yet: solved ones, and moves around solved and measured ones."""
        solved = np.unique(sweep(table, spread_multipliers(table, SOLVED, self._seed)), axis=0)
        centres = solved
        if len(history.chosen):
            known = np.isfinite(history.error)
            best = front_of(self._scaled(history.costs[known], history.error[known]), np.zeros(known.sum()))
            centres = np.concatenate([solved, np.repeat(history.chosen[known][best], 3, 0)])
        moved = centres[rng.integers(0, len(centres), MOVES)].copy()
        sizes = np.array([len(unit) for unit in self._guide.choices])
        for policy in moved:
            for unit in rng.choice(len(sizes), min(len(sizes), int(rng.integers(1, MOST_MOVED + 1))), replace=False):
                policy[unit] = rng.integers(0, sizes[unit])
        pool = np.unique(np.concatenate([solved, moved]), axis=0)
        new = [tuple(self._guide.params_of(policy).values()) not in history.asked for policy in pool]
        return pool[np.array(new, bool)]

    def _most_promising(
        self, pool: np.ndarray, corrected: Corrected, history: History, count: int
    ) -> list[np.ndarray]:
        if not len(pool) or count <= 0:
            return []
        costs, link = corrected.predict(pool), self._link(history)
        values = self._scaled(costs, link(costs[:, 0]))
        depth = self._guide.objectives.index("error_pct") if "error_pct" in self._guide.objectives else 0
        depths = np.repeat(values[:, depth, None], len(QUANTILES), 1)
        if "error_pct" in self._guide.objectives:
            depths = link(costs[:, :1] * np.exp(SPREAD*corrected.spread[0] * QUANTILES)) + SPREAD*link.spread * QUANTILES
        gain = VolumeGain(self._front(history), values, depths, depth, self._reference, self._seed)
        allowed = self._keeps_bounds(costs)
        taken: list[np.ndarray] = []
        while len(taken) < count and allowed.any():
            best, share = gain.take_best(allowed)
            if share <= 0:
                break
            taken.append(pool[best])
            allowed[best] = False
        return taken + self._nearest(pool[allowed], costs[allowed], link, count - len(taken))

    def _nearest(self, pool: np.ndarray, costs: np.ndarray, link: Link, count: int) -> list[np.ndarray]:
        """Where nothing promises a gain: the candidates that miss the reference by least."""
        if count <= 0 or not len(pool):
            return []
        values = self._scaled(costs, link(costs[:, 0]))
        miss = np.maximum(values - self._reference, 0).sum(1)
        return list(pool[np.argsort(miss, kind="stable")[:count]])

    def _keeps_bounds(self, costs: np.ndarray) -> np.ndarray:
        names = self._guide.table.objectives
        allowed = np.ones(len(costs), bool)
        for name, bound in self._guide.bounds.items():
            if name in names:
                allowed &= costs[:, names.index(name)] <= bound
        return allowed if allowed.any() else np.ones(len(costs), bool)

    def _front(self, history: History) -> np.ndarray:
        kept = history.values[history.misses <= 0]
        return _scale(kept, self._guide.objectives)

    @cached_property
    def _reference(self) -> np.ndarray:
        return _scale(self._guide.reference[None], self._guide.objectives)[0]

    def _scaled(self, costs: np.ndarray, error: np.ndarray) -> np.ndarray:
        """(k, M) costs and (k,) error -> (k, m) objectives on the scales of the hypervolume."""
        names = self._guide.table.objectives
        columns = [error if name == "error_pct" else costs[:, names.index(name)] for name in self._guide.objectives]
        return _scale(np.column_stack(columns), self._guide.objectives)


def read_history(guide: Guide, trials: Sequence[FrozenTrial]) -> History:
    """What a study's trials say."""
    names = guide.table.objectives
    chosen, costs, errors, values, misses = [], [], [], [], []
    asked = set()
    for trial in trials:
        if not trial.state.is_finished():
            continue
        asked.add(tuple(int(trial.params.get(knob, 0)) for knob in guide.knobs))
        measured = dict(zip(guide.objectives, trial.values or ())) if trial.state == TrialState.COMPLETE else {}
        if measured:
            values.append(trial.values)
            misses.append(sum(max(0.0, v) for v in (trial.constraints or {}).values()))
        policy = guide.variants_of(trial.params)
        damage = trial.system_attrs.get(KL)
        if policy is not None and (measured or damage is not None):
            chosen.append(policy)
            costs.append([np.nan if damage is None else damage, *(measured.get(name, np.nan) for name in names[1:])])
            errors.append(measured.get("error_pct", np.nan))
    m = len(guide.objectives)
    return History(
        np.array(chosen, int).reshape(-1, len(guide.choices)),
        np.array(costs, float).reshape(-1, len(names)),
        np.array(errors, float),
        np.array(values, float).reshape(-1, m),
        np.array(misses, float),
        frozenset(asked),
        sum(trial.state.is_finished() for trial in trials),
    )


def _scale(values: np.ndarray, objectives: Sequence[str]) -> np.ndarray:
    out = np.array(values, float)
    for column, name in enumerate(objectives):
        if name in LOGARITHMIC:
            out[:, column] = np.log(np.maximum(out[:, column], 1e-12))
    return out
