"""Global magnitude pruning: one threshold for all layers, as a sparsity for each. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

GRID = 0.01
"""Sparsities are rounded to this, so that policies stay small and alike ones are one."""


def sparsities_by_threshold(weights: Mapping[str, np.ndarray], total: float, grid: float = GRID) -> dict[str, float]:
    """Share of each layer's weights below the magnitude that leaves a total sparsity (Han 2015, 1506.02626, section 3).

    Parameters
    ----------
    weights
        Layer, or unit of layers -> its weights, of any shape.
    total
        Share of all weights that go, in [0, 1).
    grid
        What the shares are rounded to; the highest is one step below 1, so that no layer is emptied.
    """
    magnitudes = {name: np.abs(values).ravel() for name, values in weights.items()}
    together = np.concatenate(list(magnitudes.values()))
    count = round(total * together.size)
    if not count:
        return dict.fromkeys(weights, 0.0)
    threshold = np.partition(together, count - 1)[count - 1]
    steps = {name: round(float((values <= threshold).mean()) / grid) for name, values in magnitudes.items()}
    most = round(1 / grid) - 1
    return {name: round(min(step, most) * grid, 6) for name, step in steps.items()}
