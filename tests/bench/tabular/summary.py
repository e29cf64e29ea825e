"""The benchmark's result as plain data, for JSON and for the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .judge import attainment, bands, on_clock, paired
from .methods import METHODS
from .run import Comparison

MILESTONES = (30, 100, 300)
BASELINES = ("static", "nsga2")
CLOCK_PLACES, SIZE_PLACES, CURVE_PLACES = 80, 60, 100
BAND_NAMES = ("q25", "median", "q75")


def summarise(comparison: Comparison) -> dict[str, Any]:
    """Everything about a problem; each ratio is hypervolume over the best known of the same seed."""
    first = comparison.instances[0]
    return {
        "seeds": [instance.seed for instance in comparison.instances],
        "reference": dict(first.reference),
        "evaluation_seconds": first.evaluation_seconds,
        "bank_seconds": first.bank_seconds,
        "best_known_hypervolume": comparison.best_volumes.tolist(),
        "share_added_by_methods": comparison.added.tolist(),
        "methods": {name: _method(comparison, name) for name in comparison.ratios},
        "paired": {name: _paired(comparison, name) for name in BASELINES if name in comparison.ratios},
        "curves": {
            "evaluations": _evaluation_curves(comparison),
            "seconds": _clock_curves(comparison),
            "attainment": _attainment(comparison),
        },
    }


def milestones(comparison: Comparison) -> list[int]:
    """Where ratios are read: at 30, 100 and 300 evaluations, and at the end where that is none of them."""
    count = next(iter(comparison.ratios.values())).shape[1]
    return sorted({step for step in MILESTONES if step <= count} | {count})


def _method(comparison: Comparison, name: str) -> dict[str, Any]:
    ratios = comparison.ratios[name]
    thinking = [instance.traces[name].thinking_s for instance in comparison.instances]
    return {
        "title": METHODS[name].title,
        "needs_bank": METHODS[name].needs_bank,
        "evaluations": [len(t) for t in thinking],
        "ratio": {str(step): ratios[:, step - 1].tolist() for step in milestones(comparison)},
        "mean": {str(step): float(ratios[:, step - 1].mean()) for step in milestones(comparison)},
        "thinking_s_per_candidate": float(np.concatenate(thinking).mean()),
        "thinking_s_per_candidate_at_end": float(np.mean([t[-len(t) // 3 :].mean() for t in thinking])),
    }


def _paired(comparison: Comparison, baseline: str) -> dict[str, Any]:
    """Method -> evaluations -> paired difference to the baseline."""
    base = comparison.ratios[baseline]
    return {
        name: {str(step): paired(ratios[:, step - 1], base[:, step - 1]) for step in milestones(comparison)}
        for name, ratios in comparison.ratios.items()
        if name != baseline
    }


def _evaluation_curves(comparison: Comparison) -> dict[str, Any]:
    count = next(iter(comparison.ratios.values())).shape[1]
    places = np.unique(np.linspace(1, count, min(count, CURVE_PLACES)).round().astype(int))
    curves = {name: _named(bands(ratios[:, places - 1])) for name, ratios in comparison.ratios.items()}
    return {"x": places.tolist(), "methods": curves}


def _clock_curves(comparison: Comparison) -> dict[str, Any]:
    ends = [times[np.isfinite(times)].max() for times in comparison.finished_s.values()]
    start = comparison.instances[0].evaluation_seconds
    grid = np.geomspace(start, max(ends), CLOCK_PLACES)
    curves = {}
    for name, ratios in comparison.ratios.items():
        times = comparison.finished_s[name]
        reached = (times[:, 0].min() <= grid) & (grid <= np.where(np.isfinite(times), times, 0).max())
        seeds = np.array([on_clock(curve, finished, grid) for curve, finished in zip(ratios, times)])
        curves[name] = _named(np.where(reached, bands(seeds), np.nan))
    return {"x": grid.tolist(), "methods": curves}


def _attainment(comparison: Comparison) -> dict[str, Any]:
    """Error against size, at the end: the other objective left out."""
    fronts = [np.exp(instance.best_known[:, 1].min()) for instance in comparison.instances]
    largest = max(instance.reference["stored_bytes"] for instance in comparison.instances)
    grid = np.geomspace(min(fronts), largest, SIZE_PLACES)
    curves = {}
    for name in comparison.ratios:
        points = [instance.traces[name].values[:, [1, 0]] for instance in comparison.instances]
        surfaces = attainment(points, np.log(grid))
        curves[name] = _named(np.where(np.isfinite(surfaces), surfaces, np.nan))
    truth = [instance.best_known[:, [1, 0]] for instance in comparison.instances]
    surfaces = attainment(truth, np.log(grid))
    return {
        "x": grid.tolist(),
        "methods": curves,
        "best_known": _named(np.where(np.isfinite(surfaces), surfaces, np.nan)),
    }


def _named(rows: np.ndarray) -> Mapping[str, list[float | None]]:
    """Six digits; nan, which JSON lacks, as null."""
    return {
        name: [None if np.isnan(value) else float(f"{value:.6g}") for value in row]
        for name, row in zip(BAND_NAMES, rows)
    }
