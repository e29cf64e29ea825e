"""What a file says of a tensor before its values."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np


@dataclass(frozen=True)
class Entry:
    """What a file says of a tensor before its values.

    Parameters
    ----------
    name, form, shape
        ``form`` is the number of its kind, its place in ``kinds.KINDS``.
    dtype
        Of the values (dense) or of the codes (codebook), where its kind has several; ``None`` for the others.
    bits
        Width of a code, where its kind has several; 0 for the others.
    table
        Number of shared values or of scales.
    """

    name: str
    form: int
    shape: tuple[int, ...]
    dtype: np.dtype | None = None
    bits: int = 0
    table: int = 0

    @property
    def count(self) -> int:
        return prod(self.shape)

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, columns) of the tensor as a matrix: output channels and the rest; a vector is one row."""
        if len(self.shape) < 2 or not self.count:
            return 1, self.count
        return self.shape[0], self.count // self.shape[0]
