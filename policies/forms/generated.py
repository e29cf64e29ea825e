"""Weights that are made from few parameters."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ..coding.generated import GENERATORS
from ..coding.tensors import GeneratedTensor, StoredTensor
from .base import as_numpy


class GeneratedWeight(nn.Module):
    """A circulant, Toeplitz or Fastfood weight, see ``coding.generated``; what trains are its parameters (count,).

    The effective weight is a dense one, which the forward pass multiplies by.
    """

    mask: Tensor | None = None

    def __init__(self, kind: str, values: Tensor, shape: tuple[int, ...], block: int, seed: int) -> None:
        super().__init__()
        self.kind, self.shape, self.block, self.seed = kind, tuple(shape), block, seed
        constants = GENERATORS[kind].constants(self.shape, block, seed)
        self._names = tuple(f"constant{i}" for i in range(len(constants)))
        for name, array in zip(self._names, constants):
            self.register_buffer(name, torch.from_numpy(array), persistent=False)
        self._values = values.detach().float().clone()

    def forward(self, values: Tensor) -> Tensor:
        constants = [getattr(self, name) for name in self._names]
        return cast(Tensor, GENERATORS[self.kind].combine(values, constants, self.shape, torch.stack))

    def right_inverse(self, _: Tensor) -> Tensor:
        return self._values

    def stored(self, original: Tensor) -> StoredTensor:
        return GeneratedTensor(self.kind, as_numpy(original), self.shape, self.block, self.seed)

    @classmethod
    def of_stored(cls, stored: GeneratedTensor, pruned: bool) -> GeneratedWeight:
        """The form of a weight that was read."""
        return cls(stored.kind, torch.from_numpy(stored.values.copy()), stored.shape, stored.block, stored.seed)
