"""Pruned weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..coding.tensors import SparseTensor, StoredTensor
from .base import as_numpy, masked


class MaskedWeight(nn.Module):
    """``weight = original * mask``."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.bool())

    def forward(self, original: Tensor) -> Tensor:
        return masked(original, self.mask)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return masked(weight, self.mask)

    def stored(self, original: Tensor) -> StoredTensor:
        mask, values = as_numpy(self.mask), as_numpy(original)
        return SparseTensor(mask, values[mask])

    @classmethod
    def of_stored(cls, stored: SparseTensor, pruned: bool) -> MaskedWeight:
        """The form of a weight that was read."""
        return cls(torch.from_numpy(stored.mask))
