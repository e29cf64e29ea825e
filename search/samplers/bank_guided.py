"""The search's own sampler: solve the bank for many budgets, correct it by what was measured, ask what promises most.

Each batch corrects the bank's entries by what was measured (see ``surrogate``), solves the corrected bank along its whole
front, adds moves around the measured front, and takes the candidates of largest expected gain of hypervolume. A share of
all trials is drawn uniformly, as a check on the model's bias.
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

from ..front import scaled
from ..pareto import front as front_of
from ..table import Table
from .gain import VolumeGain, candidates, clearly_dominated
from .surrogate import ENOUGH_FOR_LINK, Corrected, correct, distances, fit_link, fit_nearby

KL = "paretopress:kl"
"""System attribute in which a trial's measured damage stands, promoted or not."""
UNIFORM_SHARE = 0.12
QUANTILES = np.array([-1.15, -0.32, 0.32, 1.15])
"""Of a normal distribution, at 1/8, 3/8, 5/8 and 7/8."""
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

    @cached_property
    def options(self) -> np.ndarray:
        """(U, V, F) as ``surrogate.distances`` takes them."""
        most = max(sum(self.knobs[knob] for knob in unit[0]) for unit in self.choices)
        out = np.zeros((*self.table.costs.shape[:2], most), np.float32)
        for u, unit in enumerate(self.choices):
            firsts = dict(zip(unit[0], np.cumsum([0, *(self.knobs[knob] for knob in unit[0])])))
            for v, choice in enumerate(unit):
                out[u, v, [firsts[knob] + index for knob, index in choice.items()]] = 1
        return out

    @cached_property
    def scaled_reference(self) -> np.ndarray:
        """(m,) on the scales of the hypervolume."""
        return scaled(self.reference[None], self.objectives)[0]

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
    """The guide without the variants that are clearly dominated."""
    costs, keep = guide.table.costs, ~clearly_dominated(guide.table)
    choices = tuple(tuple(c for c, kept in zip(unit, row) if kept) for unit, row in zip(guide.choices, keep))
    left = np.full((len(choices), max(map(len, choices)), costs.shape[-1]), np.inf)
    for unit, row in enumerate(keep):
        left[unit, : row.sum()] = costs[unit][row]
    return replace(guide, choices=choices, table=replace(guide.table, costs=left))


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
        Knob settings that were asked already, answered or not.
    answered
        How many trials are finished.
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
        assert isinstance(param_distribution, IntDistribution), "a space asks for indices only"
        rng = np.random.default_rng([self._seed, trial.number])
        return int(rng.integers(param_distribution.low, param_distribution.high + 1))

    def plan(self, history: History, count: int) -> list[dict[str, int]]:
        """Knob settings of the next batch."""
        rng = np.random.default_rng([self._seed, len(history.asked)])
        corrected = correct(self._guide.table, history.chosen, history.costs, self._guide.options)
        uniform = int(UNIFORM_SHARE * (history.answered + count)) - int(UNIFORM_SHARE * history.answered)
        pool = self._pool(corrected.table, history, rng)
        chosen = self._most_promising(pool, corrected, history, count - uniform)
        planned = [self._guide.params_of(policy) for policy in chosen]
        asked = set(history.asked) | {tuple(params.values()) for params in planned}
        while len(planned) < count:
            planned.append(self._uniform(rng, asked))
            asked.add(tuple(planned[-1].values()))
        return planned

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
        values = self._scaled(history.costs, history.error)
        known = np.isfinite(values).all(1)
        best, sizes = front_of(values[known], np.zeros(known.sum())), np.array([len(u) for u in self._guide.choices])
        pool = candidates(table, history.chosen[known][best], sizes, self._seed, rng)
        return pool[[tuple(self._guide.params_of(policy).values()) not in history.asked for policy in pool]]

    def _most_promising(self, pool: np.ndarray, corrected: Corrected, history: History, count: int) -> list[np.ndarray]:
        if not len(pool) or count <= 0:
            return []
        costs = corrected.predict(pool)
        error, draws = self._errors(pool, costs[:, 0], corrected, history)
        values = self._scaled(costs, error)
        objectives, uncertain = self._guide.objectives, "error_pct" in self._guide.objectives
        depth, depths = (objectives.index("error_pct"), draws) if uncertain else (0, values[:, :1])
        front = scaled(history.values[history.misses <= 0], objectives)
        reference, allowed = self._guide.scaled_reference, self._keeps_bounds(costs)
        taken = VolumeGain(front, values, depths, depth, reference, self._seed).take(count, allowed)
        allowed[taken] = False
        # Where nothing promises a gain: those that miss the reference by least.
        miss = np.maximum(values[allowed] - reference, 0).sum(1)
        return [*pool[taken], *pool[allowed][np.argsort(miss, kind="stable")[: count - len(taken)]]]

    def _errors(
        self, pool: np.ndarray, damage: np.ndarray, corrected: Corrected, history: History
    ) -> tuple[np.ndarray, np.ndarray]:
        """(k,) expected errors and (k, d) draws, the same quantiles for all candidates, so that none is ahead by luck."""
        known = np.isfinite(history.error) & np.isfinite(history.costs[:, 0])
        drawn = damage[:, None] * np.exp(corrected.spread[0] * QUANTILES)
        if known.sum() < ENOUGH_FOR_LINK:
            link = fit_link(self._guide.damage, self._guide.error, self._guide.dense_error)
            return link(damage), link(drawn) + link.spread * QUANTILES
        link = fit_link(history.costs[known, 0], history.error[known], self._guide.dense_error)
        options, measured = self._guide.options, history.chosen[known]
        residual = history.error[known] - link(history.costs[known, 0])
        nearby, away = fit_nearby(distances(options, measured, measured), residual), distances(options, pool, measured)
        beside = nearby.mean(away)
        return link(damage) + beside, link(drawn) + beside[:, None] + nearby.spread(away)[:, None] * QUANTILES

    def _keeps_bounds(self, costs: np.ndarray) -> np.ndarray:
        bounds = [self._guide.bounds.get(name, np.inf) for name in self._guide.table.objectives]
        allowed = np.asarray((costs <= bounds).all(1))
        return allowed if allowed.any() else ~allowed

    def _scaled(self, costs: np.ndarray, error: np.ndarray) -> np.ndarray:
        """(k, M) costs and (k,) error -> (k, m) objectives on the scales of the hypervolume."""
        names = self._guide.table.objectives
        columns = [error if name == "error_pct" else costs[:, names.index(name)] for name in self._guide.objectives]
        return scaled(np.column_stack(columns), self._guide.objectives)


def read_history(guide: Guide, trials: Sequence[FrozenTrial]) -> History:
    """What a study's trials say."""
    names = guide.table.objectives
    chosen, costs, errors, values, misses, asked = [], [], [], [], [], set()
    for trial in trials:
        if trial.params:
            asked.add(tuple(int(trial.params.get(knob, 0)) for knob in guide.knobs))
        if not trial.state.is_finished():
            continue
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
    return History(
        np.array(chosen, int).reshape(-1, len(guide.choices)),
        np.array(costs, float).reshape(-1, len(names)),
        np.array(errors, float),
        np.array(values, float).reshape(-1, len(guide.objectives)),
        np.array(misses, float),
        frozenset(asked),
        sum(trial.state.is_finished() for trial in trials),
    )
