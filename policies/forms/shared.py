"""Weights that share values through a codebook."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..coding.tensors import CodebookTensor, StoredTensor
from .base import as_numpy, masked


class SharedWeight(nn.Module):
    """``weight[i] = centroids[codes[i]]``, zero where the mask is not set (1510.00149, section 3).

    The trained tensor is the codebook (k,), so the gradient of a centroid is the sum over the weights that share it.
    """

    codes: Tensor
    mask: Tensor | None

    def __init__(self, codes: Tensor, centroids: Tensor, mask: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("codes", codes.to(torch.int32))
        self.register_buffer("mask", None if mask is None else mask.bool())
        self._centroids = centroids.detach().float().clone()

    def forward(self, centroids: Tensor) -> Tensor:
        weight = centroids[self.codes]
        return masked(weight, self.mask)

    def right_inverse(self, _: Tensor) -> Tensor:
        return self._centroids

    def stored(self, original: Tensor) -> StoredTensor:
        mask = None if self.mask is None else as_numpy(self.mask)
        codes = as_numpy(self.codes)
        kept = codes.reshape(-1) if mask is None else codes[mask]
        return CodebookTensor(mask, kept, as_numpy(original), tuple(codes.shape))

    @classmethod
    def of_stored(cls, stored: CodebookTensor, pruned: bool) -> SharedWeight:
        """The form of a weight that was read."""
        placed = np.ones(stored.shape, bool) if stored.mask is None else stored.mask
        codes = np.zeros(stored.shape, np.int32)
        codes[placed] = stored.codes
        kept = None if stored.mask is None else torch.from_numpy(stored.mask)
        return cls(torch.from_numpy(codes), torch.from_numpy(np.array(stored.codebook)), kept)
