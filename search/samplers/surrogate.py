"""What a policy will measure, from the bank's sums corrected by what was measured so far. Pure.

Each entry of the bank has a true value ``c (1 + all + unit + own)``, with a factor that all entries share, one that its unit's
share and one of its own, normal around 0; what is measured is the sum of the chosen entries' within a relative error. The
posterior mean is a table again, which is what makes it solvable; it is found by Gaussian process regression with that
covariance, its scales by the evidence (MacKay 1992).

Symbols: ``U`` units, ``V`` variants, ``M`` costs (of which the first is the damage, ``kl``), ``n`` measured policies, each
``chosen`` (n, U).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.isotonic import IsotonicRegression

from ..solve import Table

UNIT_SCALES = (0.005, 0.05, 0.2, 0.5, 1.0)
OWN_SHARES = (0.1, 0.5, 1.5)
NOISES = (0.003, 0.02, 0.05, 0.1, 0.2, 0.4)
SHARED_SCALE = 0.3
LEAST_FACTOR = 0.05
LEAST_MEASURED = 0.1
FIRST_SPREAD = 0.35
LEAST_SPREAD = 0.01
ENOUGH_FOR_LINK = 6
SLOPE = 1e-3
_TINY = 1e-9
import os
GP = int(os.environ.get("GP", "1"))
LENGTHS = (0.35, 1, 3.5, 10, 35)
RELATIVE_NOISES = (.01, .1, 1, 10)


@dataclass(frozen=True)
class Corrected:
    """The bank's table as corrected by measurements.

    Parameters
    ----------
    table
        With corrected costs and offsets.
    spread
        (M,) standard deviation of the logarithm of measured over predicted.
    """

    table: Table
    spread: np.ndarray
    least: np.ndarray
    beyond: tuple[Beyond | None, ...]
    bank: Table

    def predict(self, chosen: np.ndarray) -> np.ndarray:
        """(k, U) policies -> (k, M) costs, positive."""
        totals = np.maximum(self.table.totals(chosen), self.least)
        if any(b is not None for b in self.beyond):
            away = _away(_features(self.bank, chosen), self.features)
            for j, b in enumerate(self.beyond):
                if b is not None:
                    totals[:, j] = (totals[:, j] + b.shift) * np.exp(_kernel(away, b.length) @ b.weights) - b.shift
        return np.maximum(totals, _TINY)

    features: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))


@dataclass(frozen=True)
class Beyond:
    shift: float
    length: float
    weights: np.ndarray


def _features(table: Table, chosen: np.ndarray) -> np.ndarray:
    c = np.where(np.isfinite(table.costs), table.costs, np.nan)
    low, high = np.nanmin(c, axis=1, keepdims=True), np.nanmax(c, axis=1, keepdims=True)
    z = np.sqrt((c - low) / np.where(high > low, high - low, 1))
    return z[np.arange(len(c)), chosen].reshape(len(chosen), c.shape[0] * c.shape[2]) / np.sqrt(c.shape[0] * c.shape[2])


def _away(a, b):
    return np.sqrt(np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T, 0))


def _kernel(away, length):
    scaled = away * length
    return (1 + scaled) * np.exp(-scaled)


def _beyond(away, residual, shift):
    n = len(residual)
    best = (-np.inf, Beyond(shift, 1.0, np.zeros(n)), 0.0)
    for length, noise in itertools.product(LENGTHS, RELATIVE_NOISES):
        factor = cho_factor(_kernel(away, length) + noise * np.eye(n), lower=True)
        weights = cho_solve(factor, residual)
        variance = (residual @ weights + 0.01) / (n + 1)
        evidence = -0.5 * n * np.log(variance) - np.log(np.diag(factor[0])).sum()
        if evidence > best[0]:
            best = evidence, Beyond(shift, length, weights), np.sqrt(variance * noise)
    return best[1:]


def correct(table: Table, chosen: np.ndarray, measured: np.ndarray) -> Corrected:
    """Posterior mean of every entry.

    Parameters
    ----------
    chosen
        (n, U) measured policies.
    measured
        (n, M); nan where a cost was not measured.
    """
    costs, offsets = np.where(np.isfinite(table.costs), table.costs, 0.0), table.offsets.copy()
    least = np.where(offsets > 0, 0.005 * offsets, _TINY)
    beyond = [None] * len(offsets)
    features = _features(table, chosen)
    knowns = {}
    spread = np.full(costs.shape[-1], FIRST_SPREAD)
    for j in range(costs.shape[-1]):
        known = np.isfinite(measured[:, j]) & (measured[:, j] > _TINY) if len(measured) else np.zeros(0, bool)
        if known.sum() < 2:
            continue
        # The offset is a unit of one variant.
        entries = np.vstack([np.full(costs.shape[1], offsets[j]), costs[..., j]])
        picks = np.column_stack([np.zeros(known.sum(), int), chosen[known]])
        fitted, spread[j] = _posterior(entries, picks, measured[known, j])
        if j == 0:
            usual = np.median(measured[known, j] / np.maximum(entries[np.arange(len(entries)), picks].sum(1), _TINY))
            fitted = np.maximum(fitted, LEAST_FACTOR * usual * entries)
        offsets[j], costs[..., j] = fitted[0, 0], fitted[1:]
        y = measured[known, j]
        least[j] = 0.3 * y.min()
        shift = LEAST_MEASURED * np.median(y) if j == 0 else 0.0
        pred = np.maximum(fitted[np.arange(len(fitted)), picks].sum(1), least[j])
        if GP:
            residual = np.log((y + shift) / (pred + shift))
            b, noise = _beyond(_away(features[known], features[known]), residual, shift)
            weights = np.zeros(len(chosen))
            weights[known] = b.weights
            beyond[j] = replace(b, weights=weights)
    return Corrected(replace(table, costs=np.where(np.isfinite(table.costs), costs, np.inf), offsets=offsets), spread, least, tuple(beyond), table, features)


def _posterior(entries: np.ndarray, picks: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Entries (U, V) by their means given sums ``y`` (n,) over ``picks`` (n, U); and the relative error of a sum."""
    units = np.arange(len(entries))
    scale = np.maximum(y, LEAST_MEASURED * np.median(y))
    parts = entries[units, picks]
    usual = float(np.median(y / np.maximum(parts.sum(1), _TINY))) if (parts.sum(1) > 0).all() else 1.0
    parts = usual * parts / scale[:, None]
    sums = parts.sum(1)
    shared, unit, own = np.outer(sums, sums), parts @ parts.T, _own(parts, picks)
    residual = (y / scale) - sums
    best = (-np.inf, 0.0, 0.0, 0.0, residual)
    for tau, share, noise in itertools.product(UNIT_SCALES, OWN_SHARES, NOISES):
        covariance = SHARED_SCALE**2 * shared + tau**2 * (unit + share**2 * own)
        covariance[np.diag_indices(len(y))] += noise**2
        factor = cho_factor(covariance, lower=True, check_finite=False)
        solved = cho_solve(factor, residual, check_finite=False)
        evidence = -0.5 * residual @ solved - np.log(np.diag(factor[0])).sum()
        if evidence > best[0]:
            best = (evidence, tau, share, noise, solved)
    _, tau, share, noise, solved = best
    weighted = parts * solved[:, None]
    factors = np.full(entries.shape, 1 + SHARED_SCALE**2 * (sums @ solved)) + tau**2 * weighted.sum(0)[:, None]
    np.add.at(factors, (np.broadcast_to(units, picks.shape), picks), (tau * share) ** 2 * weighted)
    return entries * usual * factors, max(LEAST_SPREAD, noise)


def _own(parts: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """(n, n) sum over units of products of parts (n, U) where both have the same variant."""
    out = np.zeros((len(parts), len(parts)))
    for part, pick in zip(parts.T, picks.T):
        out += np.outer(part, part) * (pick[:, None] == pick)
    return out


@dataclass(frozen=True)
class Link:
    """From the damage to the error: a rising curve from the dense network through what was measured.

    Parameters
    ----------
    root_damage, error
        (p,) support points, both rising; the first is the dense network's. Over the square root of the damage, an error
        that grows with it is nearly straight near the dense network.
    spread
        Standard deviation of the error around the curve.
    """

    root_damage: np.ndarray
    error: np.ndarray
    spread: float

    def __call__(self, damage: np.ndarray) -> np.ndarray:
        """Damage -> error, of any shape; flat parts rise just enough to keep the order."""
        at = np.sqrt(np.maximum(damage, 0.0))
        beyond = np.maximum(at - self.root_damage[-1], 0.0)
        return np.interp(at, self.root_damage, self.error) + SLOPE * at + beyond * self._last_slope

    @property
    def _last_slope(self) -> float:
        rise, run = self.error[-1] - self.error[0], self.root_damage[-1] - self.root_damage[0]
        return float(rise / run) if run > 0 else 1.0


def fit_link(damage: np.ndarray, error: np.ndarray, dense_error: float) -> Link:
    """Isotonic regression of the error (n,) on the root of the damage (n,), from the dense network's error upwards."""
    at, order = np.sqrt(np.maximum(damage, 0.0)), np.argsort(damage, kind="stable")
    at, error = np.concatenate([[0.0], at[order]]), np.concatenate([[dense_error], error[order]])
    fitted = IsotonicRegression().fit_transform(at, error)
    spread = float(np.sqrt(np.mean(np.square(fitted - error)))) if len(at) > 2 else 0.0
    keep = np.concatenate([[True], np.diff(at) > 0])
    return Link(at[keep], fitted[keep], spread)
