"""A network of 50 layers with 80 variants each whose figures are formulas; each seed is another network.

The damage of a policy is the sum of what its layers lose alone plus, between neighbours, a share of the geometric mean of
their losses (about a quarter of the whole); the bank knows each layer's losses only up to a log-normal factor. Size is
exact. Latency adds a conversion wherever an 8-bit layer stands beside a float one.

Symbols: ``U`` = 50 layers, ``V`` = 80 variants, ``k`` policies.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from paretopress.search.table import Table

from .judge import undominated
from .problem import BANK_OBJECTIVES, OBJECTIVES, Choices, Menus, Metrics, scaled

LAYERS = 50
SPARSITY = (0.0, 0.5, 0.7, 0.85, 0.95)
BITS = (32, 8, 4, 3)
RANK = (1.0, 0.5, 0.3, 0.15)
BANK_SIGMA = 0.5
TOTAL_SENSITIVITY = 0.6
# The span of error is wide so that random policies reach it too.
BASE_ERROR, WORST_ERROR, ERROR_SCALE, ERROR_SPAN = 8.0, 90.0, 0.6, 40.0
HEADER_BYTES = 2000.0
FIXED_LATENCY, CONVERSION = 0.05, 0.03
# Forward pass over 1,000 pictures and a latency probe of a small network; a variant of the bank needs neither all layers
# nor a probe of its own.
EVALUATION_SECONDS, VARIANT_SECONDS = 1.5, 0.15


@dataclass(frozen=True)
class Synthetic:
    """An instance.

    Parameters
    ----------
    seed
        Of the instance.
    damage
        (U, V) what each variant loses with all else dense, in nats of KL.
    pairs
        (U - 1,) share of the geometric mean that neighbours lose beside it.
    factors
        (U,) by how much the bank is wrong about a layer.
    stored
        (U, V) bytes.
    latency
        (U, V) share of the dense network's time.
    conversion
        (U - 1,) what an 8-bit layer beside a float one costs, as a share of the dense network's time.
    """

    seed: int
    damage: np.ndarray
    pairs: np.ndarray
    factors: np.ndarray
    stored: np.ndarray
    latency: np.ndarray
    conversion: np.ndarray
    name: str = "synthetic"
    menus: Menus = field(
        default_factory=lambda: Menus(
            {
                f"layer{u:02d}": {"sparsity": len(SPARSITY), "precision": len(BITS), "rank": len(RANK)}
                for u in range(LAYERS)
            }
        )
    )
    evaluation_seconds: float = EVALUATION_SECONDS
    bank_seconds: float = VARIANT_SECONDS * LAYERS * len(SPARSITY) * len(BITS) * len(RANK)

    @property
    def reference(self) -> Metrics:
        """The dense network's size and latency, and 40 points of error above it."""
        return {
            "error_pct": BASE_ERROR + ERROR_SPAN,
            "stored_bytes": HEADER_BYTES + float(self.stored[:, 0].sum()),
            "latency_ratio": 1.0,
        }

    def knobs(self) -> dict[str, int]:
        return self.menus.knobs

    def bank(self) -> Table:
        """As measured one layer at a time: exact bytes, latency with the conversions on both sides, KL off by a factor."""
        beside = np.concatenate([[0.0], self.conversion]) + np.concatenate([self.conversion, [0.0]])
        eight_bit = is_eight_bit()
        columns = {
            "kl": self.damage * self.factors[:, None],
            "stored_bytes": self.stored - self.stored[:, :1],
            "latency_ratio": self.latency - self.latency[:, :1] + beside[:, None] * eight_bit,
        }
        costs = np.stack([columns[name] for name in BANK_OBJECTIVES], axis=-1)
        offsets = np.array([0.0, self.reference["stored_bytes"], 1.0])
        return Table(tuple(self.menus.units), BANK_OBJECTIVES, costs, offsets)

    def alone(self) -> tuple[np.ndarray, np.ndarray]:
        damage = (self.damage * self.factors[:, None]).ravel()
        return damage, error_pct(damage)

    def measure(self, choices: Choices) -> dict[str, float]:
        figures = self.measure_all(self.menus.chosen(choices)[None])
        return {name: float(values[0]) for name, values in figures.items()}

    def measure_all(self, chosen: np.ndarray) -> Mapping[str, np.ndarray]:
        """Figures (k,) of policies (k, U)."""
        layers = np.arange(LAYERS)
        damage = self.damage[layers, chosen]
        between = np.sqrt(damage[:, 1:] * damage[:, :-1]) @ self.pairs
        eight_bit = is_eight_bit()[chosen]
        changes = (eight_bit[:, 1:] != eight_bit[:, :-1]) @ self.conversion
        kl = damage.sum(1) + between
        return {
            "kl": kl,
            "error_pct": error_pct(kl),
            "stored_bytes": HEADER_BYTES + self.stored[layers, chosen].sum(1),
            "latency_ratio": FIXED_LATENCY + self.latency[layers, chosen].sum(1) + changes,
        }

    def best_known(self) -> np.ndarray:
        """Solutions that are exact for many trade-offs (see ``chain``)."""
        return self._front

    @cached_property
    def _front(self) -> np.ndarray:
        from .chain import solve

        figures = self.measure_all(solve(self))
        rows = [{name: figures[name][i] for name in OBJECTIVES} for i in range(len(figures["kl"]))]
        return undominated(scaled(rows))


def make_synthetic(seed: int) -> Synthetic:
    """The instance of a seed."""
    rng = np.random.default_rng([seed, 0x7AB])
    depth = np.linspace(0, 1, LAYERS)
    weights = np.exp(rng.normal(8.0 + 3.0 * depth, 0.6))
    shares = np.exp(rng.normal(-0.5 * depth, 0.5))
    shares *= (1 - FIXED_LATENCY) / shares.sum()
    sensitivity = np.exp(rng.normal(-0.5 * depth, 1.5))
    sensitivity *= TOTAL_SENSITIVITY / sensitivity.sum()
    return Synthetic(
        seed=seed,
        damage=sensitivity[:, None] * _relative_error(rng),
        pairs=np.clip(rng.normal(0.5, 0.3, LAYERS - 1), -0.4, 1.4),
        factors=np.exp(rng.normal(0.0, BANK_SIGMA, LAYERS)),
        stored=weights[:, None] * _bytes_a_weight(),
        latency=shares[:, None] * _speed(rng),
        conversion=CONVERSION * np.minimum(shares[1:], shares[:-1]),
    )


def error_pct(kl: np.ndarray) -> np.ndarray:
    """Error in per cent, which saturates with the damage in nats."""
    return BASE_ERROR + (WORST_ERROR - BASE_ERROR) * -np.expm1(-kl / ERROR_SCALE)


def is_eight_bit() -> np.ndarray:
    """(V,) bool: whether the runtime computes a variant in 8 bits."""
    return np.array([bits < 32 for _, bits, _ in _grid()])


def _grid() -> list[tuple[float, int, float]]:
    return list(itertools.product(SPARSITY, BITS, RANK))


def _relative_error(rng: np.random.Generator) -> np.ndarray:
    """(U, V) share of a layer's signal that a variant loses; layers differ in what they bear."""
    sparsity, bits, rank = (np.array(column) for column in zip(*_grid()))
    pruned = sparsity ** rng.uniform(3.0, 5.0, (LAYERS, 1))
    quantized = np.exp(rng.normal(2.0, 0.3, (LAYERS, 1))) * np.where(bits < 32, 4.0**-bits, 0.0)
    factored = (1 - rank) ** rng.uniform(2.0, 4.0, (LAYERS, 1))
    return 1 - (1 - pruned) * (1 - quantized) * (1 - factored)


def _bytes_a_weight() -> np.ndarray:
    """(V,) kept values at their bits (floats and codes entropy-coded), and the entropy of where the zeros are."""
    sparsity, bits, rank = (np.array(column) for column in zip(*_grid()))
    value_bits = np.select([bits == 32, bits == 8], [28.0, 7.0], bits - 0.4)
    kept = 1 - sparsity
    with np.errstate(divide="ignore", invalid="ignore"):
        positions = -kept * np.log2(kept) - np.where(sparsity > 0, sparsity * np.log2(sparsity), 0.0)
    return rank * (kept * value_bits + positions) / 8


def _speed(rng: np.random.Generator) -> np.ndarray:
    """(U, V) time against dense: zeros do not help; gains of rank and 8 bits do not multiply."""
    _, bits, rank = (np.array(column) for column in zip(*_grid()))
    floor = rng.uniform(0.1, 0.4, (LAYERS, 1))
    float_time = np.where(rank < 1, floor + (1 - floor) * rank, 1.0)
    floor_8 = rng.uniform(0.3, 0.7, (LAYERS, 1))
    int8_time = rng.uniform(0.35, 0.6, (LAYERS, 1)) * np.where(rank < 1, floor_8 + (1 - floor_8) * rank, 1.0)
    return np.where(bits < 32, int8_time, float_time)
