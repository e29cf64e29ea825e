"""Weights on a uniform grid."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..coding.tensors import StoredTensor, UniformTensor, uniform_type
from .base import as_numpy, masked, per_channel, round_through


class UniformWeight(nn.Module):
    """``weight = clamp(round(original / scale)) * scale``, a scale per output channel, symmetric, 2 to 16 bit.

    The gradient passes the rounding unchanged (straight-through, 1308.3432) and is zero where the clamp holds.

    Parameters
    ----------
    stochastic
        While training, values are rounded up with a probability equal to their fraction (1502.02551, section 3).
    """

    scale: Tensor
    mask: Tensor | None

    def __init__(self, scale: Tensor, bits: int, mask: Tensor | None, stochastic: bool = False) -> None:
        super().__init__()
        self.register_buffer("scale", scale.detach().float())
        self.register_buffer("mask", None if mask is None else mask.bool())
        self.bits = bits
        self.stochastic = stochastic

    def codes(self, original: Tensor, drawn: bool = False) -> Tensor:
        """Integer-valued float codes, the weight's shape; rounded to the nearest, or as ``drawn``."""
        limit = 2 ** (self.bits - 1) - 1
        codes = round_through(original / per_channel(self.scale, original), drawn).clamp(-limit, limit)
        # Integers have no negative zero: adding 0 turns -0 into 0.
        return masked(codes, self.mask) + 0.0

    def forward(self, original: Tensor) -> Tensor:
        return self.codes(original, self.training and self.stochastic) * per_channel(self.scale, original)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def stored(self, original: Tensor) -> StoredTensor:
        codes = as_numpy(self.codes(original)).astype(uniform_type(self.bits))
        return UniformTensor(codes, as_numpy(self.scale), self.bits)

    @classmethod
    def of_stored(cls, stored: UniformTensor, pruned: bool) -> UniformWeight:
        """The form of a weight that was read; where it was pruned, codes of 0 are weights that stay zero."""
        mask = torch.from_numpy(stored.codes != 0) if pruned else None
        return cls(torch.from_numpy(np.array(stored.scales)), stored.bits, mask)
