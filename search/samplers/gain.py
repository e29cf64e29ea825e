"""Candidates, and which of them are expected to add most to the dominated volume. Pure; every objective is minimised.

The volume is an integral over all objectives but one, the depth: above a place ``p`` of the others, it reaches from the least
depth of the points at or below ``p`` to the reference. Only the places are drawn; along the depth the integral is exact.

Symbols: ``k`` candidates, ``d`` draws of each, ``m`` objectives, ``f`` measured points, ``P`` places.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import qmc

from ..families import spread_multipliers, sweep
from ..table import Table

SOLVED = 768
MOVES = 256
MOST_MOVED = 3
MOVES_AROUND = 3
"""How much likelier a measured policy is moved than a solved one."""
CLEARLY = 0.5
MEASURED_APART = 0.03
PLACES = 1024
BLOCK = 16


def candidates(
    table: Table, measured: np.ndarray, sizes: np.ndarray, seed: int, rng: np.random.Generator
) -> np.ndarray:
    """Distinct policies along the whole front of a table, and moves of a few units around them and the best measured.

    Parameters
    ----------
    measured
        (f, U) policies of the measured front.
    sizes
        (U,) number of variants of each unit.
    seed, rng
        Of the trade-offs that are solved for, and of the moves.
    """
    solved = np.unique(sweep(table, spread_multipliers(table, SOLVED, seed)), axis=0)
    centres = np.concatenate([solved, np.repeat(measured, MOVES_AROUND, 0)])
    moved = centres[rng.integers(0, len(centres), MOVES)].copy()
    for policy in moved:
        for unit in rng.choice(len(sizes), min(len(sizes), int(rng.integers(1, MOST_MOVED + 1))), replace=False):
            policy[unit] = rng.integers(0, sizes[unit])
    return np.unique(np.concatenate([solved, moved]), axis=0)


def clearly_dominated(table: Table) -> np.ndarray:
    """(U, V) bool: variants where another of their unit has at most half the damage and no cost above theirs; and padding.

    Nearer ones are not, because what the bank knows of the damage may be wrong by that much; and of times, as two
    measurements of one network differ.
    """
    costs = table.costs
    better = (costs[:, :, None, 0] <= CLEARLY * costs[:, None, :, 0]) & (costs[:, None, :, 0] > 0)
    for j, name in enumerate(table.objectives[1:], 1):
        mine, others = costs[:, :, None, j], costs[:, None, :, j]
        apart = MEASURED_APART * table.offsets[j] if name.startswith("latency") else 0.0
        better &= (mine <= others - apart) | (mine == others)
    return np.asarray(better.any(1) | ~table.valid)


class VolumeGain:
    """Expected gain of hypervolume.

    Parameters
    ----------
    front
        (f, m) measured values.
    values
        (k, m) what is expected of each candidate.
    depths
        (k, d) draws of its objective ``depth``, the d-th draws of all candidates belonging together.
    depth
        Index of the objective that is uncertain.
    reference
        (m,).
    seed
        Of the places.
    """

    def __init__(
        self, front: np.ndarray, values: np.ndarray, depths: np.ndarray, depth: int, reference: np.ndarray, seed: int
    ) -> None:
        others = [j for j in range(len(reference)) if j != depth]
        places = _places(np.concatenate([front, values])[:, others], reference[others], seed)
        self._covers = _at_or_below(values[:, others], places)
        self._depths = depths
        measured = np.where(_at_or_below(front[:, others], places), front[:, depth, None], np.inf)
        reached = np.minimum(measured.min(0, initial=np.inf), reference[depth])
        self._reached = np.repeat(reached[None], depths.shape[1], 0)
        self._gains = np.full(len(values), np.inf)
        self._update(np.arange(len(values)))

    def take_best(self, allowed: np.ndarray) -> tuple[int, float]:
        """Index of the allowed candidate (k,) bool of largest gain, given those taken before; and its gain."""
        # Gains only shrink as others are taken, so what stood behind before needs no new look (Minoux 1978).
        fresh = np.zeros(len(allowed), bool)
        while True:
            order = np.argsort(-np.where(allowed, self._gains, -1.0), kind="stable")[:BLOCK]
            if fresh[order[0]]:
                break
            stale = order[~fresh[order]]
            self._update(stale)
            fresh[stale] = True
        best = int(order[0])
        covered = self._covers[best]
        after = np.minimum(self._reached, self._depths[best][:, None])
        self._reached = np.where(covered, after, self._reached)
        return best, float(self._gains[best])

    def take(self, count: int, allowed: np.ndarray) -> list[int]:
        """Indices of up to ``count`` of the allowed (k,) bool, the largest gain first, until nothing adds any."""
        taken: list[int] = []
        left = allowed.copy()
        while len(taken) < count and left.any():
            best, added = self.take_best(left)
            if added <= 0:
                break
            taken.append(best)
            left[best] = False
        return taken

    def _update(self, candidates: np.ndarray) -> None:
        for start in range(0, len(candidates), BLOCK):
            block = candidates[start : start + BLOCK]
            above = np.maximum(self._reached - self._depths[block][:, :, None], 0.0).mean(1)
            self._gains[block] = (above * self._covers[block]).mean(1)


def _places(points: np.ndarray, reference: np.ndarray, seed: int) -> np.ndarray:
    """(P, m - 1) of low discrepancy in the box between the least of points (n, m - 1) and the reference."""
    if points.shape[1] == 0:
        return np.zeros((1, 0))
    low = np.minimum(points.min(0), reference)
    return low + (reference - low) * qmc.Sobol(points.shape[1], rng=np.random.default_rng([seed, 11])).random(PLACES)


def _at_or_below(points: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(n, m - 1), (P, m - 1) -> (n, P) bool."""
    covers = np.ones((len(points), len(places)), bool)
    for j in range(places.shape[1]):
        covers &= points[:, j, None] <= places[:, j]
    return covers
