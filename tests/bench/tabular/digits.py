"""The frozen table of a digits network: every policy of small menus, truly measured (see ``make_table``).

The file holds the network's weights too, so that any entry can be measured again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
from paretopress.search.table import Table
from paretopress.spaces.layerwise import KNOBS, Menu

from .judge import undominated
from .problem import BANK_OBJECTIVES, OBJECTIVES, Choices, Menus, Metrics, padded_costs, scaled

TABLE = Path(__file__).with_name("table.npz")
ERROR_SPAN = 10.0
"""Points of error above the dense network's that a front is judged within, as in the report of a run."""

MENUS: Mapping[str, Menu] = {
    "conv1": Menu(channels=(1.0, 0.5), precision=("float32", "w8a8")),
    "conv2": Menu(channels=(1.0, 0.5), sparsity=(0.0, 0.7), precision=("float32", "w8a8", "w4a8")),
    "fc1": Menu(rank=(1.0, 0.25), sparsity=(0.0, 0.8, 0.95), precision=("float32", "w8a8", "k16", "w3a8")),
    "fc2": Menu(sparsity=(0.0, 0.6), precision=("float32", "w4a8")),
}


def menus() -> Menus:
    """The knobs, in the order of the table's rows: all choices, the last knob running fastest."""
    return Menus({unit: {knob: len(getattr(menu, knob)) for knob in KNOBS} for unit, menu in MENUS.items()})


@dataclass(frozen=True)
class Digits:
    """The problem.

    Parameters
    ----------
    figures
        Metric -> one figure a policy, in the order of ``menus``.
    evaluation_seconds, bank_seconds
        As they were measured when the table was made.
    """

    figures: Mapping[str, np.ndarray]
    menus: Menus
    evaluation_seconds: float
    bank_seconds: float
    name: str = "digits"

    @property
    def reference(self) -> Metrics:
        """The dense network's size and latency, and 10 points of error above it."""
        dense = {name: float(self.figures[name][0]) for name in OBJECTIVES}
        return dense | {"error_pct": dense["error_pct"] + ERROR_SPAN, "latency_ratio": 1.0}

    def knobs(self) -> dict[str, int]:
        return self.menus.knobs

    def bank(self) -> Table:
        """The entries of the table that compress a single unit, as differences to the dense network."""
        single = [
            {name: self.figures[name][r] - self.figures[name][0] for name in BANK_OBJECTIVES} for r in self._single()
        ]
        offsets = np.array([float(self.figures[name][0]) for name in BANK_OBJECTIVES])
        return Table(tuple(self.menus.units), BANK_OBJECTIVES, padded_costs(single), offsets)

    def alone(self) -> tuple[np.ndarray, np.ndarray]:
        rows = np.concatenate(self._single())
        return self.figures["kl"][rows], self.figures["error_pct"][rows]

    def _single(self) -> list[np.ndarray]:
        """For each unit, the rows (variants,) in which it alone is compressed."""
        shape = self.menus.shape
        out = []
        for u, count in enumerate(shape):
            chosen = np.zeros((count, len(shape)), int)
            chosen[:, u] = np.arange(count)
            out.append(self.rows(chosen))
        return out

    def measure(self, choices: Choices) -> dict[str, float]:
        row = self.rows(self.menus.chosen(choices)[None])[0]
        return {name: float(column[row]) for name, column in self.figures.items()}

    def rows(self, chosen: np.ndarray) -> np.ndarray:
        """(k,) rows of the table for policies (k, U)."""
        return np.ravel_multi_index(tuple(chosen.T), self.menus.shape)

    def best_known(self) -> np.ndarray:
        """The true front: every policy was measured."""
        return self._front

    @cached_property
    def _front(self) -> np.ndarray:
        rows = [{name: self.figures[name][i] for name in OBJECTIVES} for i in range(len(self.figures["kl"]))]
        return undominated(scaled(rows))


@cache
def load_digits(path: Path = TABLE) -> Digits:
    """Read the frozen table."""
    with np.load(path, allow_pickle=False) as file:
        latency = file["latency_ratio"][file["structure"]]
        columns = {name: file[name].astype(float) for name in ("kl", "error_pct", "stored_bytes")}
        seconds = float(file["evaluation_seconds"])
    known = menus()
    expected = int(np.prod(known.shape))
    assert len(latency) == expected, f"{path} has {len(latency)} policies, the menus {expected}; make the table again"
    entries = sum(known.shape) - len(known.shape) + 1
    return Digits(columns | {"latency_ratio": latency.astype(float)}, known, seconds, seconds * entries)
