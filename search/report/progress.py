"""How the search went: hypervolume and best-so-far over the evaluations. Pure.

Symbols: ``n`` evaluations in order, ``m`` objectives, all minimised.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..pareto import front, hypervolume
from .data import Record, ReportData, axes, done, error_of, keeps, number

ERROR_SPAN = 10.0


def hypervolume_curve(values: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Hypervolume after each evaluation, from the volume that each adds.

    A point adds its box less what the kept points, clipped to that box, dominate of it (While 2012, WFG).

    Parameters
    ----------
    values
        (n, m).
    reference
        (m,).

    Returns
    -------
    np.ndarray
        (n,), never falling.
    """
    kept = np.zeros((0, values.shape[1]))
    out, volume = np.zeros(len(values)), 0.0
    for i, point in enumerate(values):
        if (point < reference).all() and not (kept <= point).all(1).any():
            volume += float(np.prod(reference - point)) - _shared(kept, point, reference)
            kept = np.vstack([kept[~(point <= kept).all(1)], point])
        out[i] = volume
    return out


def _shared(kept: np.ndarray, point: np.ndarray, reference: np.ndarray) -> float:
    """The part of a point's box that the kept points dominate already."""
    clipped = np.unique(np.maximum(kept, point), axis=0)
    return hypervolume(clipped[front(clipped, np.zeros(len(clipped)))], reference)


def reference_point(data: ReportData) -> dict[str, float]:
    """Where hypervolume is measured from: the dense network's size and speed, and its error plus what screening allows.

    A metric that was not measured for the dense network is left out.
    """
    given = (data.config.get("search") or {}).get("screen_error")
    span = float(given) if isinstance(given, int | float) else ERROR_SPAN
    dense = {metric: number(data.baseline, metric) for metric in axes(data)}
    if "latency_ratio" in dense and dense["latency_ratio"] is None:
        # The dense network against itself.
        dense["latency_ratio"] = 1.0
    found = {metric: value for metric, value in dense.items() if value is not None}
    return {metric: value + span if metric == "error_pct" else value for metric, value in found.items()}


def objectives(rows: Sequence[Record], reference: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Evaluation numbers (n,) and objectives (n, m) as shares of the reference point, of the rows where all are known."""
    numbers, values = [], []
    for row in rows:
        point = [error_of(row) if metric == "error_pct" else number(row["metrics"], metric) for metric in reference]
        if None not in point:
            numbers.append(row["number"])
            values.append(
                [value / max(bound, 1e-12) for value, bound in zip(point, reference.values()) if value is not None]
            )
    return np.array(numbers, int), np.array(values, float).reshape(-1, len(reference))


def hypervolume_curves(data: ReportData) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Numbers and hypervolume of the screened evaluations: ``all``, and each origin alone.

    Hypervolume is a share of the box between zero and the reference point. Empty where the dense network's error was not
    measured.
    """
    reference = reference_point(data)
    rows = done(data, "screen")
    if "error_pct" not in reference or not rows:
        return {}
    names = list(dict.fromkeys(str(row["origin"]) for row in rows))
    groups = {"all": rows, **{name: [row for row in rows if str(row["origin"]) == name] for name in names}}
    curves = {}
    for name, members in groups.items():
        numbers, values = objectives(members, reference)
        if len(numbers):
            curves[name] = (numbers, hypervolume_curve(values, np.ones(len(reference))))
    return curves


def cost_limits(data: ReportData) -> list[Record]:
    """The budgets other than the error's."""
    return [limit for limit in data.limits if limit["metric"] != "error_pct"]


def best_so_far(rows: Sequence[Record], limits: Sequence[Record]) -> tuple[np.ndarray, np.ndarray]:
    """Evaluation numbers (k,) at which the lowest error that keeps the limits fell, and that error in per cent (k,)."""
    numbers: list[int] = []
    errors: list[float] = []
    for row in rows:
        error = error_of(row)
        if error is not None and keeps(limits, row["metrics"]) and (not errors or error < errors[-1]):
            numbers.append(row["number"])
            errors.append(error)
    return np.array(numbers, int), np.array(errors, float)
