"""Rounding up or down, learned for each weight: AdaRound (Nagel 2020, 2004.10568).

Symbols: W weights (out, d); s scale of each row; V what is learned (out, d); H mean of x x^T over the layer's inputs (d, d).

    h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)                                      (eq. 23, zeta = 1.1, gamma = -0.1)
    Q(V) = s clip(floor(W / s) + h(V), -limit, limit)                            (eq. 22)
    min_V  tr((Q - W) H (Q - W)^T) + lambda sum(1 - |2 h(V) - 1|^beta)           (eqs. 21 and 24)

The first term is the mean squared error of the layer's outputs. It is taken in units of the mean error that a weight makes
when it is rounded to the nearest, so that lambda weighs the same in every layer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

STEPS = 400
WARM_UP = 0.2
"""Share of the steps that the regulariser stays out of."""
LEARNING_RATE = 0.1
LAMBDA = 3.0
"""In that unit; a tenth of it leaves twice the error, ten times as much changes nothing."""
BETAS = (20.0, 2.0)
_SPREAD, _MARGIN = 1.2, 0.1


def round_adaptively(weight: Tensor, hessian: Tensor, scale: Tensor, limit: int, mask: Tensor | None = None) -> Tensor:
    """Weights on the grid, each rounded up or down such that the layer's outputs change least.

    An output channel that would err no less than with the nearest values takes these.

    Parameters
    ----------
    weight
        (out, in) or (out, in, kh, kw).
    hessian
        (d, d), as ``second_order.layer_hessian`` gives it.
    scale
        (out,), positive.
    limit
        Largest code.
    mask
        Kept weights (bool, the weight's shape); the others become zero.
    """
    w, h, s = weight.detach().flatten(1).float(), hessian.float(), scale.float()[:, None]
    kept = torch.ones_like(w, dtype=torch.bool) if mask is None else mask.flatten(1)
    w = w.masked_fill(~kept, 0.0)
    nearest = (w / s).round().clamp(-limit, limit) * s
    losses = _row_errors(nearest - w, h)
    unit = (losses.sum() / kept.sum().clamp_min(1)).clamp_min(torch.finfo(torch.float32).tiny)
    v = _Problem(w, h, s, limit, kept, float(unit)).solve()
    rounded = (((w / s).floor() + (_rectified(v) >= 0.5)).clamp(-limit, limit) * s).masked_fill(~kept, 0.0)
    better = _row_errors(rounded - w, h) < losses
    return torch.where(better[:, None], rounded, nearest).to(weight.dtype).view_as(weight)


@dataclass(frozen=True, eq=False)
class _Problem:
    """One layer's: symbols as above; ``kept`` tells the weights that may move, ``unit`` what a rounded weight costs."""

    w: Tensor
    h: Tensor
    s: Tensor
    limit: int
    kept: Tensor
    unit: float

    def solve(self) -> Tensor:
        """``V`` after the last step, from the one that gives the weights as they are."""
        steps = self.w / self.s
        v = ((steps - steps.floor() + _MARGIN) / _SPREAD).logit()
        mean, square = torch.zeros_like(v), torch.zeros_like(v)
        for step in range(1, STEPS + 1):
            gradient = self.gradient(v, _beta(step))
            # Adam (1412.6980), algorithm 1.
            mean.lerp_(gradient, 0.1)
            square.lerp_(gradient.square(), 0.001)
            v -= LEARNING_RATE * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        return v

    def gradient(self, v: Tensor, beta: float | None) -> Tensor:
        """Of the two terms with respect to ``V``; without ``beta`` of the first alone."""
        up, sigmoid, limit = _rectified(v), v.sigmoid(), self.limit
        codes = (self.w / self.s).floor() + up
        by_code = 2 / self.unit * self.s * ((codes.clamp(-limit, limit) * self.s - self.w) @ self.h)
        by_up = by_code * ((codes >= -limit) & (codes <= limit))
        if beta is not None:
            sided = 2 * up - 1
            by_up -= LAMBDA * 2 * beta * sided.sign() * sided.abs() ** (beta - 1)
        free = self.kept & (up > 0) & (up < 1)
        return (by_up * _SPREAD * sigmoid * (1 - sigmoid)).masked_fill(~free, 0.0)


def _beta(step: int) -> float | None:
    """Annealed from the first to the second of ``BETAS`` by half a cosine, after the warm-up."""
    place = (step / STEPS - WARM_UP) / (1 - WARM_UP)
    if place < 0:
        return None
    first, last = BETAS
    return last + 0.5 * (first - last) * (1 + math.cos(place * math.pi))


def _rectified(v: Tensor) -> Tensor:
    return (_SPREAD * v.sigmoid() - _MARGIN).clamp(0.0, 1.0)


def _row_errors(change: Tensor, h: Tensor) -> Tensor:
    """What each output channel loses, (out,)."""
    return ((change @ h) * change).sum(1)
