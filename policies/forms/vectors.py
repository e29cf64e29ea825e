"""Weights whose rows are sums of codewords."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from ..coding.tensors import StoredTensor, VectorTensor
from .base import as_numpy, masked


class VectorWeight(nn.Module):
    """``w_rb = sum_s codebooks[s, b, codes[s, r, b]]`` for sub-vector b of row r (1412.6115), zero where the mask is not set.

    The trained tensor is the codebooks (stages, parts, k, d): a codeword's gradient is the sum over the sub-vectors that use
    it. Rows are those of the weight as a matrix (out, in * kh * kw).
    """

    codes: Tensor
    mask: Tensor | None

    def __init__(self, codes: Tensor, codebooks: Tensor, shape: tuple[int, ...], mask: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("codes", codes.to(torch.int32))
        self.register_buffer("mask", None if mask is None else mask.bool())
        self.shape = shape
        self._codebooks = codebooks.detach().float().clone()

    def forward(self, codebooks: Tensor) -> Tensor:
        _, rows, blocks = self.codes.shape
        parts = torch.arange(blocks, device=codebooks.device) % codebooks.shape[1]
        total = torch.zeros(rows, blocks, codebooks.shape[3], dtype=codebooks.dtype, device=codebooks.device)
        # Stage after stage, as the decoder adds: sums in another order differ in the last bit.
        for codes, codewords in zip(self.codes, codebooks):
            total = total + codewords[parts, codes.long()]
        columns = math.prod(self.shape[1:])
        return masked(total.reshape(rows, -1)[:, :columns].reshape(self.shape), self.mask)

    def right_inverse(self, _: Tensor) -> Tensor:
        return self._codebooks

    def stored(self, original: Tensor) -> StoredTensor:
        mask = None if self.mask is None else as_numpy(self.mask)
        return VectorTensor(mask, as_numpy(self.codes), as_numpy(original), tuple(self.shape))

    @classmethod
    def of_stored(cls, stored: VectorTensor, pruned: bool) -> VectorWeight:
        """The form of a weight that was read."""
        mask = None if stored.mask is None else torch.from_numpy(stored.mask)
        codes = torch.from_numpy(stored.codes.astype(np.int32))
        return cls(codes, torch.from_numpy(np.array(stored.codebooks)), stored.shape, mask)
