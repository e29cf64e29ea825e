"""Residual quantization of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from .base import About, Calibration, LayerCost, LayerInfo, Phase
from .vectors import Codebooks, require_vectors, set_vectors, vector_cost, vector_reason


@dataclass(frozen=True)
class ResidualQuantize:
    """Sub-vectors of rows are sums of codewords, ``w = c_1 + ... + c_t``: k-means, then k-means on what is left (Gong 2014,
    1412.6115, section 3.2.3, eq. 7).

    The paper takes whole rows, whose codebooks are as large as many layers; here sub-vectors may be shorter. A convolution's
    weight is taken as (out, in * kh * kw). Weights that were pruned stay zero. The codewords train.

    Parameters
    ----------
    clusters
        k, codewords of each stage; no more than there are sub-vectors for a codebook.
    stages
        t, 1 to 8.
    dimension
        Values of a sub-vector, 1 to 4096.
    codebooks
        ``shared`` by all sub-vectors, or one for ``each`` column of them.
    """

    clusters: int
    stages: int = 2
    dimension: int = 4
    codebooks: Codebooks = "shared"

    name: ClassVar[str] = "residual_quantize"
    about: ClassVar[About] = About(
        ("Q14",),
        "sub-vectors of rows are sums of codewords",
        "convolutions and linear layers for which codes and codebooks are smaller than the weights",
        ("stored bytes",),
        "float32 with the effective weights",
        "Gong 2014, 1412.6115",
    )
    phase: ClassVar[Phase] = Phase.QUANTIZE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_vectors(self.name, self.clusters, self.dimension, self.codebooks, self.stages)

    def check(self, layer: LayerInfo) -> str | None:
        return vector_reason(layer, self.cost(layer).weight_bits)

    def is_identity(self, layer: LayerInfo) -> bool:
        return False

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        set_vectors(module, self.name, self.clusters, self.dimension, self.codebooks, self.stages)
        return module

    def cost(self, layer: LayerInfo) -> LayerCost:
        return vector_cost(layer, self.clusters, self.dimension, self.codebooks, self.stages)
