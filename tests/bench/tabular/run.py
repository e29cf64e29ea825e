"""Runs methods on instances and keeps what they found.

Symbols: ``s`` seeds, ``n`` evaluations of a run, ``N`` the most that are allowed.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np

from .digits import load_digits
from .judge import held, undominated, volume, volume_curve
from .methods import METHODS
from .problem import Metrics, Problem, scaled
from .synthetic import make_synthetic

PROBLEMS: dict[str, Callable[[int], Problem]] = {"digits": lambda _: load_digits(), "synthetic": make_synthetic}


@dataclass(frozen=True)
class Trace:
    """A run of a method.

    Parameters
    ----------
    values
        (n, 3) scaled objectives in the order of evaluation.
    thinking_s
        (n,) processor time before each evaluation.
    """

    values: np.ndarray
    thinking_s: np.ndarray


@dataclass(frozen=True)
class Instance:
    """All methods on one seed's problem."""

    seed: int
    reference: Metrics
    best_known: np.ndarray
    evaluation_seconds: float
    bank_seconds: float
    traces: Mapping[str, Trace]


@dataclass(frozen=True)
class Comparison:
    """A problem over all seeds.

    Parameters
    ----------
    ratios
        Method -> (s, N) hypervolume over the best known after each evaluation.
    finished_s
        Method -> (s, N) when each evaluation is finished: bank, thinking and the stated cost of an evaluation.
    best_volumes
        (s,) hypervolume of the best known front together with all that the methods found.
    added
        (s,) share of it that the methods added to the best known front.
    """

    problem: str
    instances: Sequence[Instance]
    ratios: Mapping[str, np.ndarray]
    finished_s: Mapping[str, np.ndarray]
    best_volumes: np.ndarray
    added: np.ndarray


def run_instance(problem_name: str, seed: int, methods: Sequence[str], evaluations: int) -> Instance:
    """Every method on the problem of a seed, with that seed."""
    problem = PROBLEMS[problem_name](seed)
    traces = {}
    for name in methods:
        visits = METHODS[name].run(problem, evaluations, seed)
        values = scaled([visit.metrics for visit in visits])
        traces[name] = Trace(values, np.array([visit.thinking_s for visit in visits]))
    costs = (problem.evaluation_seconds, problem.bank_seconds)
    return Instance(seed, problem.reference, problem.best_known(), *costs, traces)


def compare(problem_name: str, methods: Sequence[str], seeds: int, evaluations: int, workers: int) -> Comparison:
    """Run all seeds, ``workers`` at a time, and judge them."""
    start, instances = time.monotonic(), []
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(run_instance, problem_name, seed, methods, evaluations) for seed in range(seeds)]
        for future in futures:
            instances.append(future.result())
            print(f"{problem_name}: {len(instances)}/{seeds}, {time.monotonic() - start:.0f} s", file=sys.stderr)
    return judge(problem_name, instances, evaluations)


def judge(problem_name: str, instances: Sequence[Instance], evaluations: int) -> Comparison:
    """Hypervolume over the best known and the clock, for each method and seed."""
    references = [scaled([instance.reference])[0] for instance in instances]
    known = [volume(instance.best_known, reference) for instance, reference in zip(instances, references)]
    best = [volume(_union(instance), reference) for instance, reference in zip(instances, references)]
    ratios: dict[str, np.ndarray] = {}
    finished: dict[str, np.ndarray] = {}
    for name in instances[0].traces:
        traces = [instance.traces[name] for instance in instances]
        curves = [volume_curve(t.values, r) / b for t, r, b in zip(traces, references, best)]
        ratios[name] = np.array([held(curve, evaluations) for curve in curves])
        finished[name] = np.array(
            [_finished(instance, name, trace, evaluations) for instance, trace in zip(instances, traces)]
        )
    added = 1 - np.array(known) / np.array(best)
    return Comparison(problem_name, instances, ratios, finished, np.array(best), added)


def _union(instance: Instance) -> np.ndarray:
    return undominated(np.vstack([instance.best_known, *(trace.values for trace in instance.traces.values())]))


def _finished(instance: Instance, name: str, trace: Trace, evaluations: int) -> np.ndarray:
    """(N,) seconds; never where the method had run out of policies."""
    steps = trace.thinking_s + instance.evaluation_seconds
    start = instance.bank_seconds if METHODS[name].needs_bank else 0.0
    finished = start + np.cumsum(steps)
    return np.concatenate([finished, np.full(evaluations - len(finished), np.inf)])
