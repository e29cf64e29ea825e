"""Shared values of numbers on a line: k-means, also weighted, and with codes that are to be short. Pure."""

from __future__ import annotations

from typing import Literal

import numpy as np

Initial = Literal["linear", "density", "random"]

MAX_SWEEPS = 1000
LENGTH_SWEEPS = 60
"""Of the entropy-constrained kind, which settles slowly at the end and gains nothing there."""
HELD_VALUES = 2**22


def kmeans_1d(
    values: np.ndarray, clusters: int, initial: Initial = "linear", importance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """k-means in one dimension.

    Parameters
    ----------
    values
        (N,) float32.
    clusters
        k, at most; fewer distinct values are their own centroids, and no value at all gives the one centroid 0.
    initial
        Where the centroids start; see ``ShareKMeans``.
    importance
        (N,) weight of each value's squared error; ``None``: all alike. Where all are 0 they are alike too.

    Returns
    -------
    tuple
        Centroids (k,), ascending, and the index of the nearest one for each value (N,) int64.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order].astype(np.float64)
    centroids = ordered[np.diff(ordered, prepend=-np.inf) > 0]
    if len(centroids) > clusters:
        masses = _masses(importance, len(values))[order]
        centroids = _lloyd(_Runs(ordered, masses), _start(ordered, centroids, clusters, initial))
    elif len(centroids) == 0:
        centroids = np.zeros(1)
    return centroids, np.searchsorted(_borders(centroids), values.astype(np.float64), side="right")


def entropy_constrained_1d(
    values: np.ndarray,
    clusters: int,
    price: float,
    initial: Initial = "linear",
    importance: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Shared values whose codes are short: ``min sum h_i ((w_i - c_j)^2 - price v log2 p_j)`` (1612.01543, algorithm 1).

    ``p_j`` is the share of the values in cluster j, and ``v`` the weighted variance of all; the length of a code counts for
    each value alike, with the mean of ``h``.

    Parameters
    ----------
    values, clusters, initial, importance
        As of ``kmeans_1d``, which gives the start.
    price
        Above 0.

    Returns
    -------
    tuple
        Centroids (at most k,), ascending, and the code of each value (N,) int64.
    """
    centroids, codes = kmeans_1d(values, clusters, initial, importance)
    if len(centroids) < 2:
        return centroids, codes
    wide, h = values.astype(np.float64), _masses(importance, len(values))
    h = h / h.mean()
    center = np.average(wide, weights=h)
    bit = price * float(np.average((wide - center) ** 2, weights=h))
    for _ in range(LENGTH_SWEEPS):
        counts = np.bincount(codes, minlength=len(centroids))
        used = np.flatnonzero(counts)
        centroids, before = centroids[used], np.searchsorted(used, codes)
        codes = _cheapest(wide, h, centroids, -bit * np.log2(counts[used] / len(wide)))
        sums = np.bincount(codes, h * wide, len(centroids))
        masses = np.bincount(codes, h, len(centroids))
        centroids = np.where(masses > 0, sums / np.maximum(masses, np.finfo(float).tiny), centroids)
        if np.array_equal(codes, before):
            break
    used = np.unique(codes)
    order = np.argsort(centroids[used], kind="stable")
    return centroids[used][order], np.argsort(order)[np.searchsorted(used, codes)]


def _cheapest(values: np.ndarray, h: np.ndarray, centroids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The cluster (N,) of least weighted squared error and length of code."""
    codes = np.empty(len(values), np.int64)
    step = max(1, HELD_VALUES // len(centroids))
    for start in range(0, len(values), step):
        part = slice(start, start + step)
        codes[part] = (h[part, None] * (values[part, None] - centroids) ** 2 + lengths).argmin(axis=1)
    return codes


def _masses(importance: np.ndarray | None, count: int) -> np.ndarray:
    if importance is None or not importance.any():
        return np.ones(count)
    return importance.astype(np.float64)


def _start(ordered: np.ndarray, distinct: np.ndarray, clusters: int, initial: Initial) -> np.ndarray:
    if initial == "density":
        return np.quantile(ordered, (np.arange(clusters) + 0.5) / clusters)
    if initial == "random":
        return np.sort(np.random.default_rng(0).choice(distinct, clusters, replace=False))
    return np.linspace(ordered[0], ordered[-1], clusters)


class _Runs:
    """Clusters of sorted values (N,) as runs between edges (k + 1,): prefix sums give means and losses in O(k).

    Masses (N,) are what the values' squared errors count.
    """

    def __init__(self, ordered: np.ndarray, masses: np.ndarray) -> None:
        self.ordered = ordered
        self._masses = np.concatenate(([0.0], np.cumsum(masses)))
        self._sums = np.concatenate(([0.0], np.cumsum(ordered * masses)))
        self._squares = np.concatenate(([0.0], np.cumsum(ordered**2 * masses)))

    def nearest(self, centroids: np.ndarray) -> np.ndarray:
        """Edges of the runs of values that are nearest to each centroid; a run may be empty."""
        inner = np.searchsorted(self.ordered, _borders(centroids))
        return np.concatenate(([0], inner, [len(self.ordered)]))

    def means(self, edges: np.ndarray) -> np.ndarray:
        return np.diff(self._sums[edges]) / np.diff(self._masses[edges])

    def filled(self, edges: np.ndarray) -> np.ndarray:
        """As many runs, none empty: in place of each empty one, the run of largest squared error is cut at its mean."""
        clusters, edges = len(edges) - 1, np.unique(edges)
        while len(edges) <= clusters:
            counts, means = np.diff(edges), self.means(edges)
            spread = np.diff(self._squares[edges]) - np.diff(self._masses[edges]) * means**2
            worst = int(np.argmax(np.where(counts > 1, spread, -np.inf)))
            cut = np.searchsorted(self.ordered, means[worst])
            edges = np.insert(edges, worst + 1, np.clip(cut, edges[worst] + 1, edges[worst + 1] - 1))
        return edges


def _lloyd(runs: _Runs, centroids: np.ndarray) -> np.ndarray:
    """Lloyd's sweeps over sorted values (N,) until no value changes its cluster."""
    edges = np.empty(0, np.int64)
    for _ in range(MAX_SWEEPS):
        moved = runs.filled(runs.nearest(centroids))
        if np.array_equal(moved, edges):
            break
        edges, centroids = moved, runs.means(moved)
    return centroids


def _borders(centroids: np.ndarray) -> np.ndarray:
    return (centroids[1:] + centroids[:-1]) / 2
