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


@dataclass(frozen=True, eq=False)
class VectorTensor:
    """Sub-vectors of rows as sums of codewords (1412.6115): product quantization in one stage, residual in several.

    Parameters
    ----------
    mask
        bool, the tensor's shape: weights that are not zero; ``None``: every weight is kept.
    codes
        (stages, rows, blocks) integer: rows of the tensor as a matrix (shape[0], rest), cut in ``blocks`` sub-vectors of d
        values, the last one filled up.
    codebooks
        (stages, parts, k, d) float32; ``parts`` is the number of blocks, or 1 where they share a codebook.
    shape
        Of the tensor.
    """

    mask: np.ndarray | None
    codes: np.ndarray
    codebooks: np.ndarray
    shape: tuple[int, ...]

    def decode(self) -> np.ndarray:
        rows, columns = self.shape[0], int(np.prod(self.shape[1:], dtype=np.int64))
        parts = np.arange(self.codes.shape[2]) % self.codebooks.shape[1]
        total = np.zeros((*self.codes.shape[1:], self.codebooks.shape[3]), np.float32)
        for codes, codebooks in zip(self.codes, self.codebooks):
            total += codebooks[parts, codes]
        weight = np.ascontiguousarray(total.reshape(rows, -1)[:, :columns]).reshape(self.shape)
        return weight if self.mask is None else np.where(self.mask, weight, np.float32(0))


@dataclass(frozen=True, eq=False)
class HashedTensor:
    """Each place takes one of a few values with a sign, both by a hash of its number (1504.04788, eq. 3 and 7).

    Parameters
    ----------
    mask
        bool, the tensor's shape: weights that are not zero; ``None``: every weight is kept.
    values
        (K,) float32.
    seed
        Of the hash, in [0, 2^31 - 1).
    shape
        Of the tensor.
    """

    mask: np.ndarray | None
    values: np.ndarray
    seed: int
    shape: tuple[int, ...]

    def decode(self) -> np.ndarray:
        codes, signs = hashed_places(self.shape, len(self.values), self.seed)
        weight = self.values[codes] * signs
        return weight if self.mask is None else np.where(self.mask, weight, np.float32(0))


def hashed_places(shape: tuple[int, ...], size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of ``size`` values each place takes, and with which sign; the same on every machine.

    The finalizer of splitmix64 (Steele 2014) turns (seed, place) into 64 bits: the highest is the sign, the lowest 32, scaled
    to the number of values, the value.

    Returns
    -------
    tuple
        (shape) int64 in ``[0, size)``, and (shape) float32 of 1 and -1.
    """
    place = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.uint64)
    x = (place + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + (np.uint64(seed) << np.uint64(32))
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    codes = ((x & np.uint64(0xFFFFFFFF)) * np.uint64(size)) >> np.uint64(32)
    signs = np.where(x >> np.uint64(63), np.float32(-1), np.float32(1))
    return codes.astype(np.int64).reshape(shape), signs.reshape(shape)


StoredTensor = (
    DenseTensor | SparseTensor | CodebookTensor | UniformTensor | GeneratedTensor | VectorTensor | HashedTensor
)


def uniform_type(bits: int) -> np.dtype:
    """The type that holds uniform codes of a width."""
    return np.dtype(np.int8 if bits <= 8 else np.int16)
