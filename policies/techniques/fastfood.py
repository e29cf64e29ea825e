"""Adaptive Fastfood weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..coding.generated import GENERATORS, fastfood_sizes, hadamard_transform, signs, upright
from .base import About, Calibration, LayerCost, LayerInfo, Phase, Technique
from .structured import count_reason, generate, generated_cost, quantization_clash, require_whole

SWEEPS = 4
RIDGE = 1e-9
LARGEST_SIDE = 8192
"""A diagonal is solved for by a dense system of the smaller side."""
BLOCK = 1


@dataclass(frozen=True)
class Fastfood:
    """A weight becomes ``S H G P H B / d`` with trained diagonals S, G, B (Yang 2015, 1412.7149, eq. 1 and 3).

    H is the Hadamard matrix of size d, a power of two from the smaller side on, P a random permutation; as many such blocks
    stand above each other as the larger side needs. The diagonals start from random signs in B and some rounds of least
    squares for one of them at a time; they are what trains and what is stored. It saves size alone: the exported layer
    multiplies by the dense weight.

    Parameters
    ----------
    seed
        Of the permutations and the first signs, at least 1.
    """

    seed: int = 1

    name: ClassVar[str] = "fastfood"
    about: ClassVar[About] = About(
        ("R4",),
        "Hadamard transforms between trained diagonals",
        "convolutions and linear layers",
        ("stored bytes",),
        "float32 with the effective weights",
        "Yang 2015, 1412.7149",
    )
    phase: ClassVar[Phase] = Phase.PRUNE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_whole(self.name, "seed", self.seed, 1)

    def check(self, layer: LayerInfo) -> str | None:
        _, side, _, _ = fastfood_sizes(layer.weight_shape)
        if side > LARGEST_SIDE:
            return f"'{layer.name}' has {side} inputs and outputs, fastfood takes {LARGEST_SIDE} on the smaller side"
        return count_reason(self.name, layer, BLOCK)

    def clash(self, other: Technique) -> str | None:
        """Why another technique cannot follow on the same layer."""
        return quantization_clash(self.name, other)

    def is_identity(self, layer: LayerInfo) -> bool:
        return False

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        def fit(weight: Tensor) -> Tensor:
            return fit_fastfood(weight, self.seed)

        return generate(module, self.name, BLOCK, self.seed, fit)

    def cost(self, layer: LayerInfo) -> LayerCost:
        return generated_cost(self.name, layer, BLOCK)


def fit_fastfood(weight: Tensor, seed: int, sweeps: int = SWEEPS) -> Tensor:
    """The diagonals (count,) float32 by least squares, in turn S, G and B; no step raises the squared error.

    Parameters
    ----------
    weight
        (out, in) or (out, in, kh, kw).
    """
    shape = tuple(weight.shape)
    m, n, d, k = fastfood_sizes(shape)
    hadamard, order = (torch.from_numpy(array) for array in GENERATORS["fastfood"].constants(shape, BLOCK, seed))
    target = torch.zeros(k * d, n, dtype=torch.float64)
    target[:m] = upright(weight.detach().flatten(1).double())
    target, columns = target.view(k, d, n), hadamard.double()[order % d].view(k, d, n)
    b = torch.from_numpy(np.stack([signs(seed, k + block, n) for block in range(k)])).double()
    g = torch.ones(k, d, dtype=torch.float64)
    for _ in range(sweeps):
        s = _scales(target, _transformed(g[:, :, None] * columns * b[:, None]), 2)
        g = _middle(target, columns * b[:, None], s, b, (order % d).view(k, d))
        b = _scales(target, s[:, :, None] * _transformed(g[:, :, None] * columns), 1)
    s = _scales(target, _transformed(g[:, :, None] * columns * b[:, None]), 2)
    return torch.cat([b.flatten(), g.flatten(), s.flatten()[:m]]).float()


def _transformed(x: Tensor) -> Tensor:
    """``H x / d`` of (k, d, n)."""
    return hadamard_transform(x, torch.stack) / x.shape[1]


def _scales(target: Tensor, made: Tensor, axis: int) -> Tensor:
    """The factors of rows or columns by which what was made comes nearest to the target."""
    size = made.square().sum(axis)
    return torch.where(size > 0, (target * made).sum(axis) / size.where(size > 0, torch.ones_like(size)), 0.0)


def _middle(target: Tensor, columns: Tensor, s: Tensor, b: Tensor, order: Tensor) -> Tensor:
    """The best G (k, d) for the other two: normal equations whose Gram matrix is a product of two dyadic ones.

    ``(H S^2 H)_ij = (H s^2)_{i xor j}``, and likewise for ``b`` with the permuted indices.
    """
    d = target.shape[1]
    right = (_transformed(s[:, :, None] * target) * columns).sum(2)
    squares = torch.zeros(len(b), d, dtype=b.dtype)
    squares[:, : b.shape[1]] = b.square()
    outer, inner = (hadamard_transform(x[:, :, None], torch.stack)[:, :, 0] for x in (s.square(), squares))
    index, found = torch.arange(d), []
    for block in range(len(s)):
        places = order[block]
        gram = outer[block][index[:, None] ^ index] * inner[block][places[:, None] ^ places] / d**2
        gram.diagonal().add_(RIDGE * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny)
        found.append(torch.cholesky_solve(right[block][:, None], torch.linalg.cholesky(gram))[:, 0])
    return torch.stack(found)
