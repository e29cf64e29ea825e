"""The methods that are compared, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .problem import Problem
from .recorder import Visit
from .sampled import adaptive, sampler_method, tpe_coefficients, warm_nsga2
from .solved import greedy, magnitude_uniform, static_sweep, uniform


@dataclass(frozen=True)
class Method:
    """A way to search.

    Parameters
    ----------
    run
        (problem, evaluations, seed) -> what it tried, in order.
    title
        For the page.
    needs_bank
        Whether the bank has to be built first, which the clock counts.
    """

    run: Callable[[Problem, int, int], list[Visit]]
    title: str
    needs_bank: bool


METHODS: dict[str, Method] = {
    "uniform": Method(uniform, "uniform policy", False),
    "magnitude": Method(magnitude_uniform, "magnitude-uniform", False),
    "greedy": Method(greedy, "greedy sensitivity", True),
    "random": Method(sampler_method("random"), "random", False),
    "nsga2": Method(sampler_method("nsga2"), "NSGA-II", False),
    "nsga2-warm": Method(warm_nsga2, "NSGA-II, warm-started", True),
    "tpe": Method(sampler_method("tpe"), "TPE", False),
    "tpe-coefficients": Method(tpe_coefficients, "TPE on coefficients", True),
    "static": Method(static_sweep, "static sweep", True),
    "adaptive": Method(adaptive, "adaptive (bank-guided)", True),
}
