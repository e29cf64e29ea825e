"""The front of the synthetic problem: since only neighbours interact, any linear trade-off has an exact solution.

For a trade-off (1, b, t) the best policy minimises ``kl + b bytes + t latency``, a sum over layers and neighbouring pairs:
a chain, solved by dynamic programming (Viterbi 1967). Many trade-offs give the convex part of the front; exchanges of
single layers between solutions and small changes of them fill what lies between.

Symbols: ``U`` layers, ``V`` variants, ``k`` trade-offs or policies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .judge import undominated
from .problem import OBJECTIVES

if TYPE_CHECKING:
    from .synthetic import Synthetic

TRADE_OFFS = 1000
BLOCK = 50
ROUNDS = 4
CHILDREN = 2000


def solve(problem: Synthetic) -> np.ndarray:
    """(k, U) policies close to the true front of an instance."""
    rng = np.random.default_rng(0)
    policies = _front(problem, _supported(problem, _trade_offs(problem, rng)))
    for _ in range(ROUNDS):
        policies = _front(problem, np.vstack([policies, _children(problem, policies, rng)]))
    return policies


def _trade_offs(problem: Synthetic, rng: np.random.Generator) -> np.ndarray:
    """(k, 2) nats a byte and nats a unit of latency, over the range where policies change."""
    scale = problem.damage.mean() / np.array([problem.stored.mean(), problem.latency.mean()])
    return scale * np.exp(rng.uniform(np.log(1e-4), np.log(1e2), (TRADE_OFFS, 2)))


def _supported(problem: Synthetic, trade_offs: np.ndarray) -> np.ndarray:
    """(k, U) the best policy of each trade-off."""
    return np.vstack([_viterbi(problem, trade_offs[i : i + BLOCK]) for i in range(0, len(trade_offs), BLOCK)])


def _viterbi(problem: Synthetic, trade_offs: np.ndarray) -> np.ndarray:
    from .synthetic import is_eight_bit

    eight_bit = is_eight_bit()
    mixed = eight_bit[:, None] != eight_bit[None, :]
    alone = problem.damage + trade_offs[:, :1, None] * problem.stored + trade_offs[:, 1:, None] * problem.latency
    roots = np.sqrt(problem.damage)
    best, back = alone[:, 0], []
    for u in range(1, len(roots)):
        kl = problem.pairs[u - 1] * np.outer(roots[u - 1], roots[u])
        pair = kl + (trade_offs[:, 1] * problem.conversion[u - 1])[:, None, None] * mixed
        total = best[:, :, None] + pair
        back.append(total.argmin(1))
        best = total.min(1) + alone[:, u]
    path = [best.argmin(1)]
    for came in reversed(back):
        path.append(np.take_along_axis(came, path[-1][:, None], 1)[:, 0])
    return np.stack(path[::-1], axis=1)


def _children(problem: Synthetic, policies: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(k, U) neighbours of known policies: stretches taken from one of similar size, and some layers changed."""
    layers, variants = problem.damage.shape
    policies = policies[np.argsort(problem.measure_all(policies)["stored_bytes"])]
    place = rng.integers(0, len(policies), CHILDREN)
    near = np.clip(place + rng.integers(-20, 21, CHILDREN), 0, len(policies) - 1)
    cuts = np.sort(rng.integers(0, layers + 1, (CHILDREN, 2)), axis=1)
    inside = (np.arange(layers) >= cuts[:, :1]) & (np.arange(layers) < cuts[:, 1:])
    children = np.where(inside, policies[near], policies[place])
    changed = rng.random(children.shape) < 0.5 / layers
    return np.where(changed, rng.integers(0, variants, children.shape), children)


def _front(problem: Synthetic, policies: np.ndarray) -> np.ndarray:
    """The undominated of (k, U) that lie within the reference point."""
    policies = np.unique(policies, axis=0)
    figures = problem.measure_all(policies)
    values = np.stack([figures[name] for name in OBJECTIVES], axis=1)
    inside = (values < np.array([problem.reference[name] for name in OBJECTIVES])).all(1)
    policies, values = policies[inside], values[inside]
    front = {tuple(row) for row in undominated(values)}
    return policies[[tuple(row) in front for row in values]]
