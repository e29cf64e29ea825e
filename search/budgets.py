"""Budgets: limits on metrics, absolute or relative to the dense network. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..policies.errors import ConfigError

BUDGET_METRICS = {
    "error": "error_pct",
    "stored": "stored_bytes",
    "onnx": "onnx_bytes",
    "latency": "latency_ms",
    "macs": "macs",
    "params": "params",
    "memory": "peak_memory_bytes",
    "energy": "energy_uj_estimate",
}
_UNITS: dict[str, dict[str, float]] = {
    "error": {"": 1, "%": 1},
    "latency": {"": 1, "ms": 1, "us": 1e-3, "s": 1e3},
    "macs": {"": 1, "k": 1e3, "M": 1e6, "G": 1e9},
    "params": {"": 1, "k": 1e3, "M": 1e6},
    "energy": {"": 1, "uJ": 1, "mJ": 1e3, "nJ": 1e-3},
}
_BYTES: dict[str, float] = {
    "": 1,
    "B": 1,
    "kB": 1e3,
    "KB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
}
_NUMBER = re.compile(r"^\s*(?P<sign>\+?)\s*(?P<value>\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+)\s*(?P<unit>[A-Za-z%]*)\s*$")


@dataclass(frozen=True)
class Budget:
    """A limit on one metric.

    Parameters
    ----------
    name
        Key in the configuration: ``error``, ``stored``, ``latency``, ...
    kind
        ``absolute`` (in the metric's unit), ``ratio`` (times the dense network's) or ``plus`` (above the dense network's).
    value
        The number.
    """

    name: str
    kind: Literal["absolute", "ratio", "plus"]
    value: float

    @classmethod
    def parse(cls, name: str, text: object) -> Budget:
        """Read ``44kB``, ``0.5x``, ``+1.0`` or a plain number in the metric's unit; ``+0`` is no worse than the dense network.

        Raises
        ------
        ConfigError
            Where the text is none of these, or its unit is not the metric's.
        """
        is_plain = isinstance(text, str | int | float) and not isinstance(text, bool)
        match = _NUMBER.match(str(text)) if is_plain else None
        units = _UNITS.get(name, _BYTES)
        if match is None:
            raise ConfigError(f"budgets.{name}: expected {_examples(name)}, got {text!r}")
        value, unit, is_plus = float(match["value"]), match["unit"], bool(match["sign"])
        if unit == "x" and is_plus:
            raise ConfigError(
                f"budgets.{name}: a share has no sign, + is for what is added; expected {_examples(name)}, got {text!r}"
            )
        if not math.isfinite(value) or (value <= 0 and not is_plus):
            raise ConfigError(
                f"budgets.{name}: expected a positive number, or +0 for no worse than the dense network; got {text!r}"
            )
        if unit == "x":
            return cls(name, "ratio", value)
        if unit not in units:
            known = ", ".join(filter(None, units))
            raise ConfigError(f"budgets.{name}: unknown unit {unit!r}; expected {_examples(name)}; units: {known}")
        return cls(name, "plus" if is_plus else "absolute", value * units[unit])

    def resolve(self, baseline: Mapping[str, float]) -> Limit:
        """The limit as a metric and a number, given the dense network's metrics."""
        metric = BUDGET_METRICS[self.name]
        if self.name == "latency" and self.kind == "ratio":
            return Limit("latency_ratio", self.value)
        dense = baseline[metric]
        return Limit(
            metric, {"absolute": self.value, "ratio": self.value * dense, "plus": self.value + dense}[self.kind]
        )


@dataclass(frozen=True)
class Limit:
    """``metric <= bound``."""

    metric: str
    bound: float

    def violation(self, metrics: Mapping[str, float]) -> float:
        """How far above the bound, as a share of it; 0 or less where it is kept."""
        return (metrics[self.metric] - self.bound) / max(abs(self.bound), 1e-12)


def _examples(name: str) -> str:
    if name == "error":
        return "a number in per cent such as 0.8, or points above the dense network such as +1.0"
    told = {
        "latency": "a time such as 3ms",
        "macs": "a number such as 100M",
        "params": "a number such as 200k",
        "energy": "an energy such as 50uJ",
    }
    return f"{told.get(name, 'a size such as 44kB')}, or a share of the dense network's such as 0.5x"
