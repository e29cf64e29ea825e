"""Methods that read the bank and think for themselves: no sampler. The uniform ones, greedy and the static sweep.

Symbols: ``U`` units, ``V`` variants, ``w`` weights of size against latency.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from paretopress.search.families import family
from paretopress.search.table import Table

from .problem import Menus, Problem
from .recorder import Recorder, Visit

STEPS = (30, 100, 300)
GREEDY_WEIGHTS = (0.5, 1.0, 0.0, 0.25, 0.75)


def uniform(problem: Problem, evaluations: int, seed: int) -> list[Visit]:
    """Every layer alike: each combination of the knobs' options, those that touch the fewest knobs first."""
    return Recorder(problem, evaluations).measure_new(_uniform(problem.menus, None))


def magnitude_uniform(problem: Problem, evaluations: int, seed: int) -> list[Visit]:
    """Every layer alike, sparsity and bits alone, from mild to strong: what people do by hand."""
    return Recorder(problem, evaluations).measure_new(_uniform(problem.menus, ("sparsity", "precision")))


def _uniform(menus: Menus, allowed: tuple[str, ...] | None) -> Iterator[dict[str, int]]:
    longest: dict[str, int] = {}
    for name, count in menus.knobs.items():
        kind = name.rpartition("/")[2]
        if allowed is None or kind in allowed:
            longest[kind] = max(longest.get(kind, 1), count)
    settings = list(itertools.product(*(range(count) for count in longest.values())))
    if allowed is None:
        settings.sort(key=lambda options: (sum(map(bool, options)), sum(options)))
    else:
        settings.sort(key=lambda options: (sum(options), max(options)))
    for options in settings:
        setting = dict(zip(longest, options))
        yield {name: min(setting.get(name.rpartition("/")[2], 0), count - 1) for name, count in menus.knobs.items()}


def greedy(problem: Problem, evaluations: int, seed: int) -> list[Visit]:
    """Sensitivity-guided: from dense, always the step that costs least KL for what it saves of bytes and latency.

    Several weightings of bytes against latency give a path each; the policies to measure lie evenly along the paths, coarse
    first. The one step back that a path may need (a worse variant that leads to a better one) is what it lacks.
    """
    recorder, table = Recorder(problem, evaluations), problem.bank()
    paths = [greedy_path(problem.menus, table, weight) for weight in GREEDY_WEIGHTS]
    places = _coarse_to_fine(evaluations)
    policies = (path[round(place * (len(path) - 1))] for place in places for path in paths)
    return recorder.measure_new(problem.menus.choices(chosen) for chosen in policies)


def greedy_path(menus: Menus, table: Table, weight: float) -> list[np.ndarray]:
    """Policies (U,) from dense on; a step raises one knob of one unit by one option.

    The price of a step is its KL over ``weight`` times the share of the bytes it saves plus the rest times that of latency.
    """
    # Padding is never reached by a step, so its value is of no account.
    costs = np.where(np.isfinite(table.costs), table.costs, 0.0)
    value = costs[..., 1] * (weight / table.offsets[1]) + costs[..., 2] * ((1 - weight) / table.offsets[2])
    steps = _raised(menus, table.costs.shape[1])
    chosen, path = np.zeros(len(menus.units), int), []
    units = np.arange(len(chosen))
    while True:
        path.append(chosen.copy())
        after = steps[units, chosen]
        possible = after >= 0
        damage = costs[units[:, None], after, 0] - costs[units, chosen, 0][:, None]
        saved = value[units, chosen][:, None] - value[units[:, None], after]
        possible &= saved > 0
        if not possible.any():
            return path
        price = np.where(possible, np.maximum(damage, 0) / np.where(possible, saved, 1.0), np.inf)
        unit, knob = np.unravel_index(int(price.argmin()), price.shape)
        chosen[unit] = after[unit, knob]


def _raised(menus: Menus, variants: int) -> np.ndarray:
    """(U, V, knobs) the variant reached by raising a knob, -1 where there is none."""
    knobs = max(len(unit) for unit in menus.units.values())
    out = np.full((len(menus.units), variants, knobs), -1)
    for u, counts in enumerate(menus.units.values()):
        shape = tuple(counts.values())
        for variant, options in enumerate(itertools.product(*map(range, shape))):
            for k, count in enumerate(shape):
                if options[k] + 1 < count:
                    raised = (*options[:k], options[k] + 1, *options[k + 1 :])
                    out[u, variant, k] = np.ravel_multi_index(raised, shape)
    return out


def _coarse_to_fine(count: int) -> list[float]:
    """``count`` places in [0, 1], each prefix spread evenly (van der Corput 1935), the ends first."""
    places = [0.0, 1.0]
    for number in range(1, count + 1):
        place, step = 0.0, 0.5
        while number:
            place, number, step = place + step * (number % 2), number // 2, step / 2
        places.append(place)
    return places


def static_sweep(problem: Problem, evaluations: int, seed: int) -> list[Visit]:
    """Solve the bank at spread budgets: a family of few policies first, then larger ones, never measured twice."""
    recorder, table = Recorder(problem, evaluations), problem.bank()
    rng = np.random.default_rng(seed)
    for count in [step for step in STEPS if step < evaluations] + [evaluations]:
        policies = family(table, count, seed)
        recorder.measure_new(problem.menus.choices(chosen) for chosen in rng.permutation(policies))
    return recorder.visits
