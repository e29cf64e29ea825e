"""The forms a weight takes on disk, as numpy data. ``decode`` gives the float32 values that the network computes with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .generated import GENERATORS


@dataclass(frozen=True, eq=False)
class DenseTensor:
    """Every value as it is; float32 weights, biases and statistics, or integer buffers.

    Parameters
    ----------
    values
        Any shape; float32, int64, uint8 or bool.
    """

    values: np.ndarray

    def decode(self) -> np.ndarray:
        return self.values


@dataclass(frozen=True, eq=False)
class SparseTensor:
    """Float32 values where the mask is set, zero elsewhere.

    Parameters
    ----------
    mask
        bool, the tensor's shape.
    values
        (count of True,) float32, in C order.
    """

    mask: np.ndarray
    values: np.ndarray

    def decode(self) -> np.ndarray:
        out = np.zeros(self.mask.shape, np.float32)
        out[self.mask] = self.values
        return out


@dataclass(frozen=True, eq=False)
class CodebookTensor:
    """Values shared through a codebook; zero where the mask is not set.

    Parameters
    ----------
    mask
        bool, the tensor's shape; ``None``: every weight is kept.
    codes
        (count kept,) integer index into the codebook, in C order.
    codebook
        (k,) float32.
    """

    mask: np.ndarray | None
    codes: np.ndarray
    codebook: np.ndarray
    shape: tuple[int, ...]

    def decode(self) -> np.ndarray:
        values = self.codebook[self.codes].astype(np.float32)
        if self.mask is None:
            return values.reshape(self.shape)
        return SparseTensor(self.mask, values).decode()


@dataclass(frozen=True, eq=False)
class UniformTensor:
    """Symmetric uniform quantization, ``codes * scale`` with a scale for each output channel (axis 0).

    Parameters
    ----------
    codes
        int8 up to 8 bit, int16 above, the tensor's shape; within ``[-(2^(bits-1) - 1), 2^(bits-1) - 1]``. At 1 bit they are
        -1 and 1, and 0 where a weight was pruned.
    scales
        (shape[0],) float32.
    bits
        Width of a code, 1 to 16.
    """

    codes: np.ndarray
    scales: np.ndarray
    bits: int

    def decode(self) -> np.ndarray:
        scales = self.scales.reshape(-1, *(1,) * (self.codes.ndim - 1))
        return self.codes.astype(np.float32) * scales


@dataclass(frozen=True, eq=False)
class GeneratedTensor:
    """A weight that is made from few parameters: circulant, Toeplitz or Fastfood, see ``generated``.

    Parameters
    ----------
    kind
        Of ``generated.GENERATORS``.
    values
        (count,) float32, the parameters; as many as the kind wants for this shape.
    shape
        Of the weight, at least two dimensions, none of them 0.
    block
        Size of a block, at least 1; of no account to Fastfood.
    seed
        Of signs and permutations, in [0, 2^31).
    """

    kind: str
    values: np.ndarray
    shape: tuple[int, ...]
    block: int
    seed: int

    def decode(self) -> np.ndarray:
        made = GENERATORS[self.kind]
        weight = made.combine(self.values, made.constants(self.shape, self.block, self.seed), self.shape, np.stack)
        return np.asarray(weight, np.float32)


StoredTensor = DenseTensor | SparseTensor | CodebookTensor | UniformTensor | GeneratedTensor


def uniform_type(bits: int) -> np.dtype:
    """The type that holds uniform codes of a width."""
    return np.dtype(np.int8 if bits <= 8 else np.int16)
