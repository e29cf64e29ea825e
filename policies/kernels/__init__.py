"""Kernels for compressed layers that no runtime has: numpy arrays in and out, compiled by numba where one is called."""

from __future__ import annotations

from .sparse_pointwise import SparseWeight, pack_sparse_weight, sparse_pointwise
from .xnor import BinaryWeight, pack_binary_weight, xnor_conv2d

__all__ = [
    "BinaryWeight",
    "SparseWeight",
    "pack_binary_weight",
    "pack_sparse_weight",
    "sparse_pointwise",
    "xnor_conv2d",
]
