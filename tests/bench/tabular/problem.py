"""What a benchmark problem is: units with variants, a bank, figures for any choice, and the best front known.

Symbols: ``U`` units, ``V`` variants (the most that a unit has), ``n`` points, ``k`` policies; ``chosen`` (k, U) int is the
variant of each unit.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from paretopress.search.front import scaled_values
from paretopress.search.table import Table

OBJECTIVES = ("error_pct", "stored_bytes", "latency_ratio")
BANK_OBJECTIVES = ("kl", "stored_bytes", "latency_ratio")

Choices = Mapping[str, int]
Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Menus:
    """The knobs of each unit and their numbers of options; option 0 leaves the layer as it is.

    A unit's variants are all combinations of its knobs' options, the last knob running fastest; variant 0 is dense.
    """

    units: Mapping[str, Mapping[str, int]]

    @cached_property
    def knobs(self) -> dict[str, int]:
        """``unit/knob`` -> number of options, for the knobs that are a choice."""
        return {
            f"{unit}/{knob}": count for unit, knobs in self.units.items() for knob, count in knobs.items() if count > 1
        }

    @cached_property
    def variants(self) -> dict[str, tuple[dict[str, int], ...]]:
        """Unit -> its variants, each the choices of the unit's knobs."""
        out = {}
        for unit, knobs in self.units.items():
            names = [f"{unit}/{knob}" for knob, count in knobs.items() if count > 1]
            ranges = [range(count) for count in knobs.values() if count > 1]
            out[unit] = tuple(dict(zip(names, options)) for options in itertools.product(*ranges))
        return out

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of variants of each unit."""
        return tuple(len(variants) for variants in self.variants.values())

    def choices(self, chosen: Sequence[int]) -> dict[str, int]:
        """The choices of a policy given by its variants (U,)."""
        out: dict[str, int] = {}
        for variant, variants in zip(chosen, self.variants.values()):
            out |= variants[int(variant)]
        return out

    def chosen(self, choices: Choices) -> np.ndarray:
        """(U,) variants of a policy given by its choices; a knob that is not named takes option 0."""
        out = []
        for unit, knobs in self.units.items():
            number = 0
            for knob, count in knobs.items():
                number = number * count + int(choices.get(f"{unit}/{knob}", 0))
            out.append(number)
        return np.array(out)


class Problem(Protocol):
    """Something to search.

    ``reference`` is the point that hypervolume is measured from, ``evaluation_seconds`` what one evaluation costs and
    ``bank_seconds`` what the bank costs before the first one, both stated with the results.
    """

    name: str
    menus: Menus
    reference: Metrics
    evaluation_seconds: float
    bank_seconds: float

    def knobs(self) -> dict[str, int]:
        """Knob -> number of options."""
        ...

    def bank(self) -> Table:
        """Each unit's variants measured with all other units dense: KL, stored bytes and latency ratio."""
        ...

    def alone(self) -> tuple[np.ndarray, np.ndarray]:
        """KL and error in per cent (p,) of the bank's entries, each with all other units dense."""
        ...

    def measure(self, choices: Choices) -> dict[str, float]:
        """``kl``, ``error_pct``, ``stored_bytes`` and ``latency_ratio`` of a policy."""
        ...

    def best_known(self) -> np.ndarray:
        """(n, 3) scaled objectives of the best front known."""
        ...


def scaled(metrics: Sequence[Metrics]) -> np.ndarray:
    """(n, 3) error in per cent, and the logarithms of bytes and latency ratio, as the product's front scales them."""
    return scaled_values(metrics, OBJECTIVES)


def padded_costs(single: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
    """Costs (U, V, 3) from each unit's figures (variants,) by name; what a unit does not have is infinite."""
    longest = max(len(figures["kl"]) for figures in single)
    costs = np.full((len(single), longest, len(BANK_OBJECTIVES)), np.inf)
    for u, figures in enumerate(single):
        for m, name in enumerate(BANK_OBJECTIVES):
            costs[u, : len(figures[name]), m] = figures[name]
    return costs
