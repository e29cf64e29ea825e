"""What a policy will measure, from the bank's sums corrected by what was measured so far. Pure.

Each entry ``c`` of the bank truly adds ``c (1 + shared + unit's + own)``: a factor that all entries share, one that its unit's
share and one of its own, normal around 0; a policy measures the sum of its entries up to a relative error. The posterior mean
is a table again, which is what keeps it solvable; it is found by Gaussian process regression with that covariance (Rasmussen
and Williams 2006, section 2.7), its scales by the evidence (MacKay 1992).

What a sum cannot say (layers that share channels, errors of a few pictures) is left to a second regression, of what remains on
the knobs that policies have in common: it shifts the predictions of policies like those measured, but not the table.

Symbols: ``U`` units, ``V`` variants, ``M`` costs (of which the first is the damage, ``kl``), ``n`` measured policies, each
``chosen`` (n, U), ``k`` others, ``F`` the most options that a unit's knobs have together.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from sklearn.isotonic import IsotonicRegression

from ..table import Table

SHARED_SCALE = 0.3
UNIT_SCALES = (0.005, 0.05, 0.2, 0.5, 1.0)
OWN_SHARES = (0.1, 0.5, 1.5)
NOISES = (0.003, 0.02, 0.1, 0.2, 0.4)
LENGTHS = (0.35, 1.0, 3.5, 10.0, 35.0)
NEARBY_NOISES = (0.01, 0.1, 1.0, 10.0)
PRIOR_VARIANCE = 0.01
MOST_FOR_SCALES = 96
"""Measurements by which scales are chosen; all of them count in the fit."""
LEAST_FACTOR = 0.05
LEAST_MEASURED = 0.1
"""Of the median damage: smaller ones are measured no better than this one."""
LEAST_SEEN, LEAST_OF_OFFSET = 0.3, 0.005
"""A cost is predicted no smaller than this share of the least measured, or of the dense network's where none was."""
FIRST_SPREAD = 0.35
LEAST_SPREAD = 0.01
ENOUGH_FOR_LINK = 6
SLOPE = 1e-3
ROUNDING = 1e-10
_TINY = 1e-9


@dataclass(frozen=True)
class Nearby:
    """What remains, by the policies measured nearby: Gaussian process regression with a Matern 3/2 kernel.

    Parameters
    ----------
    weights
        (n,) of the measured policies' kernels.
    factor
        Cholesky factor of their covariance over ``variance``, as ``cho_factor`` gives it.
    length, variance, noise
        Inverse reach of the kernel, prior variance, and noise over it.
    """

    weights: np.ndarray
    factor: tuple[np.ndarray, bool]
    length: float
    variance: float
    noise: float

    def mean(self, away: np.ndarray) -> np.ndarray:
        """(k,), of policies so far (k, n) away from those measured."""
        return np.asarray(_kernel(away, self.length) @ self.weights)

    def spread(self, away: np.ndarray) -> np.ndarray:
        """(k,) standard deviation of what would be measured."""
        kernel = _kernel(away, self.length).T
        explained = (kernel * cho_solve(self.factor, kernel, check_finite=False)).sum(0)
        return np.sqrt(self.variance * (np.maximum(1 - explained, 0.0) + self.noise))


def fit_nearby(away: np.ndarray, residual: np.ndarray) -> Nearby:
    """Of residuals (n,) of policies (n, n) away from each other."""
    some = _some(len(residual))
    away_some, residual_some = away[np.ix_(some, some)], residual[some]

    def evidence(scales: tuple[float, float]) -> float:
        factor, weights = _solved(away_some, residual_some, *scales)
        variance = _variance(residual_some, weights)
        return float(-0.5 * len(some) * np.log(variance) - np.log(np.diag(factor[0])).sum())

    length, noise = max(itertools.product(LENGTHS, NEARBY_NOISES), key=evidence)
    factor, weights = _solved(away, residual, length, noise)
    return Nearby(weights, factor, length, _variance(residual, weights), noise)


def distances(options: np.ndarray, chosen: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Policies (k, U) and (n, U) -> (k, n) root of the share of knobs in which they differ.

    Parameters
    ----------
    options
        (U, V, F) float32, 1 for the options of which a variant is made, one for each knob of its unit, else 0.
    """
    units, width = np.arange(len(options)), options.shape[0] * options.shape[2]
    a, b = (options[units, policies].reshape(len(policies), width) for policies in (chosen, others))
    # Sums of ones are exact, so a policy is no distance from itself.
    return np.sqrt(1 - (a @ b.T).astype(float) / max(1.0, float(options[:, 0].sum())))


@dataclass(frozen=True)
class Beyond:
    """The logarithm of measured over summed, both ``shift`` higher, by the ``known`` (n,) of the measured policies."""

    shift: float
    known: np.ndarray
    nearby: Nearby


@dataclass(frozen=True)
class Corrected:
    """The bank as corrected by measurements.

    Parameters
    ----------
    table
        With corrected costs and offsets.
    spread
        (M,) standard deviation of the logarithm of measured over predicted.
    least
        (M,) below which nothing is predicted.
    beyond
        What sums cannot say, for each cost of which that is known.
    options, measured
        As in ``distances``, and the (n, U) policies that were measured.
    """

    table: Table
    spread: np.ndarray
    least: np.ndarray
    beyond: Mapping[int, Beyond]
    options: np.ndarray
    measured: np.ndarray

    def predict(self, chosen: np.ndarray) -> np.ndarray:
        """(k, U) policies -> (k, M) costs, positive."""
        totals = np.maximum(self.table.totals(chosen), self.least)
        away = distances(self.options, chosen, self.measured)
        for j, beyond in self.beyond.items():
            factor = np.exp(beyond.nearby.mean(away[:, beyond.known]))
            totals[:, j] = (totals[:, j] + beyond.shift) * factor - beyond.shift
        return np.maximum(totals, _TINY)


def correct(table: Table, chosen: np.ndarray, measured: np.ndarray, options: np.ndarray | None = None) -> Corrected:
    """Fit the bank to what was measured; a unit of which nothing was measured follows the others.

    Parameters
    ----------
    chosen
        (n, U) measured policies.
    measured
        (n, M); nan where a cost was not measured.
    options
        As in ``distances``; each variant is like no other where they are not given.
    """
    if options is None:
        options = np.tile(np.eye(table.costs.shape[1], dtype=np.float32), (len(table.units), 1, 1))
    costs, offsets = np.where(np.isfinite(table.costs), table.costs, 0.0), table.offsets.copy()
    spread, least = np.full(len(offsets), FIRST_SPREAD), np.maximum(LEAST_OF_OFFSET * offsets, _TINY)
    beyond, away = {}, distances(options, chosen, chosen)
    for j in range(len(offsets)):
        known = np.isfinite(measured[:, j]) & (measured[:, j] > _TINY)
        if known.sum() < 2:
            continue
        y = measured[known, j]
        # The offset is a unit of one variant.
        entries = np.vstack([np.full(costs.shape[1], offsets[j]), costs[..., j]])
        picks = np.column_stack([np.zeros(len(y), int), chosen[known]])
        fitted, spread[j] = _posterior(entries, picks, y, positive=j == 0)
        offsets[j], costs[..., j] = fitted[0, 0], fitted[1:]
        least[j], shift = LEAST_SEEN * y.min(), LEAST_MEASURED * float(np.median(y)) if j == 0 else 0.0
        summed = np.maximum(_parts(fitted, picks).sum(1), least[j])
        nearby = fit_nearby(away[np.ix_(known, known)], np.log((y + shift) / (summed + shift)))
        beyond[j] = Beyond(shift, known, nearby)
    corrected = replace(table, costs=np.where(np.isfinite(table.costs), costs, np.inf), offsets=offsets)
    return Corrected(corrected, spread, least, beyond, options, chosen)


def _posterior(entries: np.ndarray, picks: np.ndarray, y: np.ndarray, positive: bool) -> tuple[np.ndarray, float]:
    """Entries (U, V) by their means given sums ``y`` (n,) over ``picks`` (n, U); and the relative error of a sum."""
    sums = _parts(entries, picks).sum(1)
    usual = float(np.median(y / np.maximum(sums, _TINY))) if (sums > 0).all() else 1.0
    scale = np.maximum(y, LEAST_MEASURED * np.median(y))
    parts = usual * _parts(entries, picks) / scale[:, None]
    sums = parts.sum(1)
    residual = y / scale - sums
    kernels = np.outer(sums, sums), parts @ parts.T, _own(parts, picks)
    tau, share, noise = _scales(kernels, residual)
    solved = cho_solve(_factor(kernels, tau, share, noise), residual, check_finite=False)
    weighted = parts * solved[:, None]
    factors = np.full(entries.shape, 1 + SHARED_SCALE**2 * (sums @ solved)) + tau**2 * weighted.sum(0)[:, None]
    np.add.at(factors, (np.broadcast_to(np.arange(len(entries)), picks.shape), picks), (tau * share) ** 2 * weighted)
    return entries * usual * (np.maximum(factors, LEAST_FACTOR) if positive else factors), max(LEAST_SPREAD, noise)


def _scales(kernels: tuple[np.ndarray, ...], residual: np.ndarray) -> tuple[float, float, float]:
    """Scale of the units' factors, share of it in the entries' own, and relative noise, of the largest evidence."""
    some = _some(len(residual))
    kernels, residual = tuple(kernel[np.ix_(some, some)] for kernel in kernels), residual[some]

    def evidence(scales: tuple[float, float, float]) -> float:
        factor = _factor(kernels, *scales)
        misfit = residual @ cho_solve(factor, residual, check_finite=False)
        return float(-0.5 * misfit - np.log(np.diag(factor[0])).sum())

    return max(itertools.product(UNIT_SCALES, OWN_SHARES, NOISES), key=evidence)


def _factor(kernels: tuple[np.ndarray, ...], tau: float, share: float, noise: float) -> tuple[np.ndarray, bool]:
    shared, unit, own = kernels
    covariance = SHARED_SCALE**2 * shared + tau**2 * (unit + share**2 * own)
    # What the noise adds may be below the rounding of entries much larger than their sums.
    covariance[np.diag_indices(len(covariance))] += noise**2 + ROUNDING * np.trace(covariance) / len(covariance)
    return cho_factor(covariance, lower=True, check_finite=False)


def _parts(entries: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """(U, V), (n, U) -> (n, U)."""
    return np.asarray(entries[np.arange(len(entries)), picks])


def _own(parts: np.ndarray, picks: np.ndarray) -> np.ndarray:
    """(n, n) sum over units of products of parts (n, U) where both have the same variant."""
    out = np.zeros((len(parts), len(parts)))
    for part, pick in zip(parts.T, picks.T):
        out += np.outer(part, part) * (pick[:, None] == pick)
    return out


def _some(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, MOST_FOR_SCALES)).astype(int))


def _solved(
    away: np.ndarray, residual: np.ndarray, length: float, noise: float
) -> tuple[tuple[np.ndarray, bool], np.ndarray]:
    factor = cho_factor(_kernel(away, length) + noise * np.eye(len(away)), lower=True, check_finite=False)
    return factor, cho_solve(factor, residual, check_finite=False)


def _variance(residual: np.ndarray, weights: np.ndarray) -> float:
    return float((residual @ weights + PRIOR_VARIANCE) / (len(residual) + 1))


def _kernel(away: np.ndarray, length: float) -> np.ndarray:
    return np.asarray((1 + length * away) * np.exp(-length * away))


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
