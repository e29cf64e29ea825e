"""The front: final candidates with their measured metrics, and how one of them is picked."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..evaluators.base import METRICS
from ..policies.errors import InputError, PolicyError, RunDirectoryError
from ..policies.files import write_text
from ..policies.policy import Policy
from .budgets import Limit
from .pareto import knee
from .rundir import read_json
from .standing import Standing

LOGARITHMIC = tuple(name for name in METRICS if name != "error_pct")
SHOWN = ("error_pct", "stored_bytes", "onnx_bytes", "latency_ratio")
"""Figures that every member of a front and the dense network have."""
_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(r"^\s*(\w+)\s*(<=|>=|<|>)\s*([0-9.eE+-]+)\s*$")


@dataclass(frozen=True)
class Member:
    """A final candidate.

    Parameters
    ----------
    id
        First digits of the policy's digest.
    policy
        What was done.
    feasible
        Whether the measured metrics keep every budget.
    metrics
        Measured on the exported file; ``error_pct`` on the test split.
    misses
        Metric -> how far above its bound, as a share of it.
    rung
        Where it was measured.
    controls
        Control -> its figures (``error_pct`` on the test split), or ``failed`` with the reason.
    validation_misses, bound_excess
        What was known before the test split was read, see ``Standing``.
    """

    id: str
    policy: Policy
    feasible: bool
    metrics: Mapping[str, Any]
    misses: Mapping[str, float] = field(default_factory=dict)
    rung: str = "final"
    controls: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    validation_misses: Mapping[str, float] = field(default_factory=dict)
    bound_excess: float = 0.0

    @property
    def standing(self) -> Standing:
        """Return where it stands with its budgets."""
        return Standing(self.misses, self.validation_misses, self.bound_excess)

    def as_dict(self) -> dict[str, Any]:
        controls = {"controls": {name: dict(figures) for name, figures in self.controls.items()}}
        return {
            "id": self.id,
            "policy": self.policy.as_dict(),
            "feasible": self.feasible,
            "rung": self.rung,
            **self.standing.as_dict(),
            "metrics": dict(self.metrics),
            **(controls if self.controls else {}),
        }


@dataclass(frozen=True)
class FrontData:
    """The content of ``front.json``.

    Parameters
    ----------
    baseline
        The dense network's metrics.
    budgets
        Metric -> bound, in absolute numbers.
    objectives
        Metrics that were minimised.
    members
        Ordered by error; where none of them is certain, by the upper bound of their error.
    """

    baseline: Mapping[str, Any]
    budgets: Mapping[str, float]
    objectives: Sequence[str]
    members: tuple[Member, ...]

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members)

    @property
    def knee(self) -> Member | None:
        """The best compromise: nearest to the ideal point on scaled (sizes and times: logarithmic) objectives.

        It is one of the members that keep every budget for certain; of those that keep them, where there is none; of all.
        """
        if not self.members:
            return None
        first = min(_readiness(member) for member in self.members)
        candidates = [member for member in self.members if _readiness(member) == first]
        return candidates[knee(scaled_values([m.metrics for m in candidates], self.objectives))]

    def pick(self, choice: str) -> Member:
        """A member by ``knee``, by id, or the best that keeps a condition such as ``stored_bytes<=50000``.

        Of those that keep a condition, the one of least error is taken (of least size where the condition is on error).

        Raises
        ------
        InputError
            Where nothing fits.
        """
        if not self.members:
            raise InputError("the front is empty: nothing to pick; see the report for why")
        if choice == "knee":
            assert self.knee is not None
            return self.knee
        match = _CONDITION.match(choice)
        if match is None:
            return self._by_id(choice)
        metric, sign, number = match.groups()
        given = [{name for name, value in m.metrics.items() if isinstance(value, int | float)} for m in self.members]
        known = [name for name in self.members[0].metrics if all(name in names for names in given)]
        if metric not in known:
            raise InputError(f"--pick: unknown metric '{metric}'; known: {', '.join(known)}")
        fitting = [m for m in self.members if _OPERATORS[sign](m.metrics[metric], _number(number))]
        if not fitting:
            values = sorted(m.metrics[metric] for m in self.members)
            raise InputError(f"no member has {choice}; the front reaches from {values[0]:g} to {values[-1]:g}")
        order = ("stored_bytes", "error_pct") if metric == "error_pct" else ("error_pct", "stored_bytes")
        return min(fitting, key=lambda m: (_readiness(m), *(m.metrics[name] for name in order)))

    def _by_id(self, choice: str) -> Member:
        found = [m for m in self.members if m.id.startswith(choice)]
        if len(found) == 1:
            return found[0]
        ids = ", ".join(m.id for m in self.members)
        raise InputError(
            f"--pick: expected knee, an id or a condition such as 'stored_bytes<=50000'; got '{choice}'. Ids: {ids}"
        )

    def write(self, path: Path) -> None:
        """Write ``front.json``."""
        best = self.knee
        content = {
            "baseline": dict(self.baseline),
            "budgets": dict(self.budgets),
            "objectives": list(self.objectives),
            "knee": None if best is None else best.id,
            "front": [member.as_dict() for member in self.members],
        }
        write_text(path, json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> FrontData:
        """Read ``front.json``.

        Raises
        ------
        RunDirectoryError
            Where it is missing or damaged.
        """
        try:
            content = _section(read_json(path), "its content")
            found = cls(
                _measured(content["baseline"], "baseline"),
                _section(content["budgets"], "budgets"),
                tuple(content["objectives"]),
                tuple(_member(_section(entry, "a member")) for entry in content["front"]),
            )
            for member in found:
                _measured(member.metrics, f"the metrics of {member.id}", found.objectives)
            return found
        except (KeyError, TypeError, ValueError, PolicyError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise RunDirectoryError(f"{path} is no front of this release: {reason}; resume the run") from error


def scaled(values: np.ndarray, objectives: Sequence[str]) -> np.ndarray:
    """(n, m) objectives -> (n, m), sizes and times as logarithms so that a halving counts the same everywhere."""
    out = np.array(values, dtype=float).reshape(len(values), len(objectives))
    for column, name in enumerate(objectives):
        if name in LOGARITHMIC:
            out[:, column] = np.log(np.maximum(out[:, column], 1e-12))
    return out


def scaled_values(metrics: Sequence[Mapping[str, Any]], objectives: Sequence[str]) -> np.ndarray:
    """The same of metrics by name."""
    return scaled(np.array([[float(m[name]) for name in objectives] for m in metrics]), objectives)


def violations(metrics: Mapping[str, Any], limits: Sequence[Limit]) -> dict[str, float]:
    """Metric -> share above its bound, for the bounds that are passed."""
    return {limit.metric: v for limit in limits if (v := limit.violation(metrics)) > 0}


def _readiness(member: Member) -> tuple[bool, bool]:
    """Return what sorts members that keep every budget for certain first, then those that keep them, then the others."""
    return (not member.feasible, not member.standing.is_certain)


def _section(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{what}: expected names with values, got a {type(value).__name__}")
    return value


def _measured(value: Any, what: str, more: Sequence[str] = ()) -> Mapping[str, Any]:
    """Metrics with those that every command shows, and more."""
    metrics = _section(value, what)
    for name in (*SHOWN, *more):
        if isinstance(figure := metrics.get(name), bool) or not isinstance(figure, int | float):
            raise ValueError(f"{what}: expected a number as {name}, got {figure!r}")
    return metrics


def _member(entry: Mapping[str, Any]) -> Member:
    policy, controls = Policy.from_dict(entry["policy"]), entry.get("controls", {})
    metrics, misses = _section(entry["metrics"], "metrics"), _section(entry["misses"], "misses")
    return Member(
        str(entry["id"]),
        policy,
        bool(entry["feasible"]),
        metrics,
        misses,
        entry["rung"],
        controls,
        _section(entry["validation_misses"], "validation_misses"),
        float(entry["bound_excess"]),
    )


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--pick: '{text}' is no number") from None
