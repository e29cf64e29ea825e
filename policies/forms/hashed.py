"""Weights that share values by a hash of their place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..coding.tensors import HashedTensor, StoredTensor, hashed_places
from .base import as_numpy, masked


class HashedWeight(nn.Module):
    """``weight[i] = sign(i) * values[hash(i)]`` (Chen 2015, 1504.04788, eq. 7), zero where the mask is not set.

    The trained tensor is the values (K,): a value's gradient is the signed sum over the places that share it (eq. 12). Which
    places do is computed, not stored.
    """

    codes: Tensor
    signs: Tensor
    mask: Tensor | None

    def __init__(self, values: Tensor, shape: tuple[int, ...], seed: int, mask: Tensor | None) -> None:
        super().__init__()
        codes, signs = hashed_places(shape, len(values), seed)
        self.register_buffer("codes", torch.from_numpy(codes).to(values.device), persistent=False)
        self.register_buffer("signs", torch.from_numpy(signs).to(values.device), persistent=False)
        self.register_buffer("mask", None if mask is None else mask.bool())
        self.seed = seed
        self._values = values.detach().float().clone()

    def forward(self, values: Tensor) -> Tensor:
        return masked(values[self.codes] * self.signs, self.mask)

    def right_inverse(self, _: Tensor) -> Tensor:
        return self._values

    def stored(self, original: Tensor) -> StoredTensor:
        mask = None if self.mask is None else as_numpy(self.mask)
        return HashedTensor(mask, as_numpy(original), self.seed, tuple(self.codes.shape))

    @classmethod
    def of_stored(cls, stored: HashedTensor, pruned: bool) -> HashedWeight:
        """The form of a weight that was read."""
        mask = None if stored.mask is None else torch.from_numpy(stored.mask)
        return cls(torch.from_numpy(stored.values.copy()), stored.shape, stored.seed, mask)
