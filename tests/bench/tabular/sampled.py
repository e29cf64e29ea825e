"""Methods that ask a sampler, in batches: Optuna's samplers and the bank-guided one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import optuna
from optuna.distributions import IntDistribution
from paretopress.search.families import family, sweep
from paretopress.search.samplers import make_sampler
from paretopress.search.samplers.bank_guided import KL, Guide, without_dominated
from paretopress.search.table import Table

from .problem import OBJECTIVES, Choices, Metrics, Problem
from .recorder import Recorder, Visit

BATCH = 8
WARM_POLICIES = 40
GROUPS = 10
COEFFICIENT_STEPS, COEFFICIENT_SPAN = 21, 3.0
MULTIPLIER_STEPS, MULTIPLIER_SPAN = 61, 1e4

Measure = Callable[[Choices], Metrics]


def sampler_method(name: str) -> Callable[[Problem, int, int], list[Visit]]:
    """One of Optuna's samplers on the raw knobs, one for each layer and technique."""

    def method(problem: Problem, evaluations: int, seed: int) -> list[Visit]:
        recorder = Recorder(problem, evaluations)
        ask_and_tell(name, problem.knobs(), recorder.measure, evaluations, seed)
        return recorder.visits

    return method


def warm_nsga2(problem: Problem, evaluations: int, seed: int) -> list[Visit]:
    """NSGA-II whose first generation holds policies solved over the bank."""
    recorder = Recorder(problem, evaluations)
    solved = np.random.default_rng(seed).permutation(family(problem.bank(), WARM_POLICIES, seed))
    first = [problem.menus.choices(chosen) for chosen in solved]
    ask_and_tell("nsga2", problem.knobs(), recorder.measure, evaluations, seed, first)
    return recorder.visits


def adaptive(problem: Problem, evaluations: int, seed: int) -> list[Visit]:
    """The product's bank-guided sampler."""
    recorder = Recorder(problem, evaluations)
    ask_and_tell("bank", problem.knobs(), recorder.measure, evaluations, seed, guide=guide_of(problem))
    return recorder.visits


def guide_of(problem: Problem) -> Guide:
    """What the bank-guided sampler knows before the first evaluation."""
    damage, error = problem.alone()
    guide = Guide(
        table=problem.bank(),
        choices=tuple(problem.menus.variants.values()),
        knobs=problem.knobs(),
        damage=damage,
        error=error,
        dense_error=float(error[np.argmin(damage)]),
        objectives=OBJECTIVES,
        reference=np.array([problem.reference[name] for name in OBJECTIVES]),
        bounds={},
    )
    return without_dominated(guide)


def tpe_coefficients(problem: Problem, evaluations: int, seed: int) -> list[Visit]:
    """TPE on a coefficient for each group of layers and two multipliers of the budgets; the bank is solved behind them."""
    recorder, table = Recorder(problem, evaluations), problem.bank()
    groups = min(GROUPS, len(table.units))
    knobs = {f"group{g}": COEFFICIENT_STEPS for g in range(groups)} | {
        "bytes": MULTIPLIER_STEPS,
        "time": MULTIPLIER_STEPS,
    }

    def measure(choices: Choices) -> Metrics:
        return recorder.measure(problem.menus.choices(_solved(table, choices, groups)))

    ask_and_tell("tpe", knobs, measure, evaluations, seed)
    return recorder.visits


def _solved(table: Table, choices: Choices, groups: int) -> np.ndarray:
    """(U,) the policy of least ``coefficient kl + multiplier bytes + multiplier latency``."""
    group = np.arange(len(table.units)) * groups // len(table.units)
    places = np.array([choices[f"group{g}"] for g in range(groups)]) / (COEFFICIENT_STEPS - 1)
    coefficients = np.exp((2 * places - 1) * np.log(COEFFICIENT_SPAN))[group]
    costs = table.costs.copy()
    costs[..., 0] *= coefficients[:, None]
    finite = np.where(np.isfinite(table.costs), table.costs, 0.0)
    typical = np.ptp(finite, axis=1).mean(0)
    places = np.array([choices["bytes"], choices["time"]]) / (MULTIPLIER_STEPS - 1)
    multipliers = typical[0] / typical[1:] * MULTIPLIER_SPAN ** (2 * places - 1)
    solved = sweep(Table(table.units, table.objectives, costs, table.offsets), np.array([[1.0, *multipliers]]))
    return np.asarray(solved[0])


def ask_and_tell(
    name: str,
    knobs: Mapping[str, int],
    measure: Measure,
    evaluations: int,
    seed: int,
    first: Sequence[Choices] = (),
    guide: Guide | None = None,
) -> None:
    """Ask a sampler for batches of choices until all evaluations are spent.

    As the product's study does, each batch has a fresh sampler with a seed of its own and is asked before any of it is
    answered. That study is made anew for each batch, which changes little (NSGA-II chooses its parents anew) and takes
    time (``overhead`` measures it); this one is kept.

    Parameters
    ----------
    name
        Of the sampler.
    knobs
        Name -> number of options.
    measure
        Spends an evaluation.
    first
        Choices that are tried before the sampler is asked.
    guide
        What the sampler ``bank`` goes by.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["minimize"] * len(OBJECTIVES), sampler=make_sampler("random", 0, 1))
    distributions = {knob: IntDistribution(0, count - 1) for knob, count in knobs.items()}
    for choices in first[:evaluations]:
        study.enqueue_trial(dict(choices))
    for start in range(0, evaluations, BATCH):
        count = min(BATCH, evaluations - start)
        batch_seed = int(np.random.SeedSequence([seed, start]).generate_state(1)[0])
        study.sampler = make_sampler(name, batch_seed, evaluations, guide, count)
        for trial in [study.ask(distributions) for _ in range(count)]:
            metrics = measure(trial.params)
            trial.storage.set_trial_system_attr(trial._trial_id, KL, metrics["kl"])
            study.tell(trial, [metrics[objective] for objective in OBJECTIVES])
