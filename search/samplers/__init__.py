"""Samplers by the name that a configuration gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler

from .bank_guided import BankGuidedSampler, Guide

SMALLEST_POPULATION = 12
LARGEST_POPULATION = 50


def make_sampler(name: str, seed: int, evaluations: int, guide: Guide | None = None, batch: int = 8) -> BaseSampler:
    """A fresh sampler: our own, or one of Optuna's.

    Parameters
    ----------
    name
        ``bank``, ``nsga2``, ``tpe``, ``gp`` or ``random``.
    seed
        Of this sampler.
    evaluations
        Of the whole search; NSGA-II's population is a sixth of it, within bounds.
    guide, batch
        What ``bank`` goes by, and how many trials it plans at a time.
    """
    if name == "bank":
        assert guide is not None, "the bank is built before its sampler is made"
        return BankGuidedSampler(guide, seed, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _SAMPLERS[name](seed, evaluations)


def _nsga2(seed: int, evaluations: int) -> BaseSampler:
    population = min(LARGEST_POPULATION, max(SMALLEST_POPULATION, evaluations // 6))
    return NSGAIISampler(seed=seed, population_size=population)


def _tpe(seed: int, _: int) -> BaseSampler:
    return TPESampler(seed=seed, multivariate=True, constant_liar=True)


def _gp(seed: int, _: int) -> BaseSampler:
    return GPSampler(seed=seed, deterministic_objective=True)


def _random(seed: int, _: int) -> BaseSampler:
    return RandomSampler(seed=seed)


_SAMPLERS: dict[str, Callable[[int, int], BaseSampler]] = {"gp": _gp, "nsga2": _nsga2, "random": _random, "tpe": _tpe}
