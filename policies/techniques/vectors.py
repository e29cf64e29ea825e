"""Codebooks of vectors: k-means in many dimensions by faiss, in one stage or in several on what is left."""

from __future__ import annotations

import math
from typing import Literal, cast, get_args

import faiss
import numpy as np
import torch
from torch import Tensor, nn

from .. import forms
from ..errors import PolicyError
from .base import LayerCost, LayerInfo

Codebooks = Literal["each", "shared"]
"""Whether each column of sub-vectors has a codebook, or all share one."""

SWEEPS = 25
MOST_STAGES = 8


def require_vectors(technique: str, clusters: int, dimension: int, codebooks: object, stages: int = 1) -> None:
    """Refuse hyper-parameters out of their range.

    Raises
    ------
    PolicyError
        Naming the technique, what was expected and what came.
    """
    ranges = {"clusters": (clusters, 2, 65536), "dimension": (dimension, 1, 4096), "stages": (stages, 1, MOST_STAGES)}
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise PolicyError(f"{technique}: expected {name} as a whole number from {low} to {high}, got {value!r}")
    if codebooks not in get_args(Codebooks):
        raise PolicyError(f"{technique}: expected codebooks {' or '.join(get_args(Codebooks))}, got {codebooks!r}")


def vector_reason(layer: LayerInfo, bits: float) -> str | None:
    """Why vectors are of no use for a layer, or ``None``."""
    if bits < 32 * layer.weights:
        return None
    return (
        f"'{layer.name}' has {layer.weights} weights, and their codes with the codebooks take {bits / 32:.0f} float32 values;"
        " use fewer clusters, or codebooks shared"
    )


def vector_cost(layer: LayerInfo, clusters: int, dimension: int, codebooks: Codebooks, stages: int) -> LayerCost:
    """Bits of the codes and of the codebooks in float32."""
    rows = layer.weight_shape[0]
    blocks, parts, size = _geometry(rows, layer.weights // rows, clusters, dimension, codebooks)
    bits = stages * (rows * blocks * math.log2(size) + 32 * parts * size * dimension)
    return LayerCost(layer.macs, bits)


def set_vectors(
    module: nn.Module, technique: str, clusters: int, dimension: int, codebooks: Codebooks, stages: int
) -> None:
    """Give every layer of a module its weight in codewords.

    Raises
    ------
    PolicyError
        Where the module has no layer with weights.
    """
    layers = [layer for _, layer in forms.weighted_modules(module)]
    if not layers:
        raise PolicyError(f"{technique}: expected a convolution or linear layer, got {type(module).__name__}")
    for layer in layers:
        weight, mask = cast(Tensor, layer.weight).detach(), forms.mask_of(layer)
        codes, books = quantize_vectors(weight.flatten(1).cpu().numpy(), clusters, dimension, codebooks, stages)
        tensors = (torch.from_numpy(codes).to(weight.device), torch.from_numpy(books).to(weight))
        forms.set_form(layer, forms.VectorWeight(*tensors, tuple(weight.shape), mask))


def quantize_vectors(
    matrix: np.ndarray, clusters: int, dimension: int, codebooks: Codebooks, stages: int
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and codebooks of a matrix's sub-vectors, each stage by k-means on what the earlier ones leave.

    Parameters
    ----------
    matrix
        (rows, columns) float32; the last sub-vector of a row is filled up with zeros.
    clusters
        k, at most: no more than there are vectors for one codebook.
    dimension
        d, values of a sub-vector.
    stages
        t of 1412.6115, section 3.3.

    Returns
    -------
    tuple
        Codes (stages, rows, blocks) int32, codebooks (stages, parts, k, d) float32.
    """
    rows, columns = matrix.shape
    blocks, parts, size = _geometry(rows, columns, clusters, dimension, codebooks)
    filled = np.zeros((rows, blocks * dimension), np.float32)
    filled[:, :columns] = matrix
    left = filled.reshape(rows, blocks, dimension)
    codes = np.zeros((stages, rows, blocks), np.int32)
    books = np.zeros((stages, parts, size, dimension), np.float32)
    for stage in range(stages):
        for part in range(parts):
            chosen = np.s_[:, :] if parts == 1 else np.s_[:, part : part + 1]
            vectors = np.ascontiguousarray(left[chosen]).reshape(-1, dimension)
            books[stage, part], found = _kmeans(vectors, size)
            codes[stage][chosen] = found.reshape(codes[stage][chosen].shape)
        left = left - books[stage][np.arange(blocks) % parts, codes[stage]]
    return codes, books


def _geometry(rows: int, columns: int, clusters: int, dimension: int, codebooks: Codebooks) -> tuple[int, int, int]:
    """Sub-vectors of a row, codebooks, and codewords of each."""
    blocks = -(-columns // dimension)
    shared = codebooks == "shared"
    return blocks, 1 if shared else blocks, min(clusters, rows * blocks if shared else rows)


def _kmeans(vectors: np.ndarray, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Codewords (k, d) and the nearest one of each vector (N, d), with a fixed seed."""
    if len(vectors) <= clusters:
        return vectors, np.arange(len(vectors))
    # Without the bounds faiss draws a sample where there are many vectors, and warns where there are few.
    bounds = {"min_points_per_centroid": 1, "max_points_per_centroid": len(vectors)}
    kmeans = faiss.Kmeans(vectors.shape[1], clusters, niter=SWEEPS, seed=1, **bounds)
    kmeans.train(vectors)
    assert kmeans.centroids is not None
    return kmeans.centroids, kmeans.index.search(vectors, 1)[1][:, 0]
