"""Weights of two values, stored as one bit each and a scale for each output channel."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, autograd, nn

from ..coding.tensors import StoredTensor, UniformTensor
from .base import as_numpy, masked, per_channel

Follows = Literal["fixed", "mean", "curvature"]

_DECAY = 0.999
"""Of the running mean of squared gradients, as Adam's."""


class BinaryWeight(nn.Module):
    """``weight = scale * sign(original)``, a scale per output channel; zero where the mask is not set, and sign(0) = 1.

    The gradient passes the sign unchanged (straight-through, 1308.3432); what the scale does differs:

    - ``fixed``: the latent values lie in [-1, 1], in units of the scale, and are clipped there while they train
      (BinaryConnect, 1511.00363, algorithm 1). The gradient is that of the binary weight in the same units.
    - ``mean``: the scale is ``mean|original|`` of the channel and moves with it (XNOR-Net, 1603.05279, eq. 6).
    - ``curvature``: ``sum(d |original|) / sum(d)`` with ``d`` the curvature of the loss (loss-aware binarization, 1611.01600,
      proposition 3.1). While it trains ``d`` goes on as the running mean of squared gradients, Adam's second moment; the
      paper takes its root, but without it ``d`` is the Fisher information that it starts from.

    Parameters
    ----------
    scale
        (out,), where it is fixed; otherwise of no account.
    curvature
        ``d``, the weight's shape.
    stochastic
        While training the sign is drawn, +1 with probability ``clip((original + 1) / 2, 0, 1)`` (1511.00363, eq. 2); only
        for a fixed scale.
    """

    mask: Tensor | None
    scale: Tensor | None
    curvature: Tensor | None

    def __init__(
        self,
        follows: Follows,
        mask: Tensor | None,
        *,
        scale: Tensor | None = None,
        curvature: Tensor | None = None,
        stochastic: bool = False,
    ) -> None:
        super().__init__()
        assert (follows == "fixed") == (scale is not None)
        assert (follows == "curvature") == (curvature is not None)
        assert follows == "fixed" or not stochastic
        self.follows, self.stochastic = follows, stochastic
        self.register_buffer("mask", None if mask is None else mask.bool())
        self.register_buffer("scale", None if scale is None else scale.detach().float().clone())
        self.register_buffer("curvature", None if curvature is None else curvature.detach().float().clone())

    def forward(self, original: Tensor) -> Tensor:
        if self.training and self.scale is not None:
            with torch.no_grad():
                # What clipping after the optimizer's step comes to: nothing reads the values in between.
                original.clamp_(-1.0, 1.0)
        signs = _Drawn.apply(original) if self.training and self.stochastic else _Sign.apply(original)
        weight: Tensor = masked(signs, self.mask) * per_channel(self.scales(original), original)
        if self.training and self.curvature is not None and weight.requires_grad:
            weight.register_hook(self._remember)
        return weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        if self.scale is None:
            return weight
        units = per_channel(torch.where(self.scale > 0, self.scale, 1.0), weight)
        return (weight / units).clamp(-1.0, 1.0)

    def scales(self, original: Tensor) -> Tensor:
        """(out,) float32."""
        if self.scale is not None:
            return self.scale
        return weighted_scales(original, self.curvature, self.mask)

    def stored(self, original: Tensor) -> StoredTensor:
        codes = masked(_Sign.apply(original.detach()), self.mask)
        return UniformTensor(as_numpy(codes).astype(np.int8), as_numpy(self.scales(original)), 1)

    @classmethod
    def of_stored(cls, stored: UniformTensor, pruned: bool) -> BinaryWeight:
        """The form of a weight that was read, whose scale moves with the weights; codes of 0 are pruned weights."""
        mask = torch.from_numpy(stored.codes != 0) if pruned else None
        return cls("mean", mask)

    def _remember(self, gradient: Tensor) -> None:
        assert self.curvature is not None
        self.curvature.mul_(_DECAY).addcmul_(gradient, gradient, value=1 - _DECAY)


def weighted_scales(weight: Tensor, d: Tensor | None, mask: Tensor | None) -> Tensor:
    """The scale of each output channel with the least ``sum d (w - scale * sign(w))^2`` over the weights kept.

    It is ``||d * w||_1 / ||d||_1`` (1611.01600, eq. 9), and with equal ``d`` the mean of ``|w|`` (1603.05279, eq. 6).

    Parameters
    ----------
    weight
        (out, ...).
    d
        Curvatures of the weight's shape, not negative; ``None`` or a channel of zeros: all equal.
    mask
        Weights kept; a channel that keeps none has the scale 0.

    Returns
    -------
    Tensor
        (out,) float32.
    """
    kept = torch.ones_like(weight, dtype=torch.float64) if mask is None else mask.double()
    if d is not None:
        shares = kept * d.double()
        flat = per_channel((shares.flatten(1).sum(1) > 0), weight)
        kept = torch.where(flat, shares, kept)
    # Of equal values the mean in float64 is the value itself: a weight that was read gives the scale that was written.
    sizes = (weight.abs().double() * kept).flatten(1).sum(1)
    return (sizes / kept.flatten(1).sum(1).clamp_min(torch.finfo(torch.float64).tiny)).float()


class _Sign(autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return torch.where(x >= 0, 1.0, -1.0).to(x)

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Drawn(autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        up = torch.rand_like(x) < ((x + 1) / 2).clamp(0.0, 1.0)
        return torch.where(up, 1.0, -1.0).to(x)

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> Tensor:
        return grads[0]
