"""Product quantization of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from .base import About, Calibration, LayerCost, LayerInfo, Phase
from .vectors import Codebooks, require_vectors, set_vectors, vector_cost, vector_reason


@dataclass(frozen=True)
class ProductQuantize:
    """The weight matrix is cut into sub-matrices of a few columns, and the rows of each are replaced by the nearest of k
    codewords: ``min sum_z ||w_z^i - c_j^i||^2`` (Gong 2014, 1412.6115, section 3.2.2, eq. 5).

    A convolution's weight is taken as (out, in * kh * kw). Weights that were pruned stay zero. The codewords train.

    Parameters
    ----------
    clusters
        k, codewords of a codebook; no more than there are sub-vectors for it.
    dimension
        Columns of a sub-matrix, 1 to 4096.
    codebooks
        ``each`` sub-matrix has its own, as in the paper; ``shared`` is smaller where a layer has few rows.
    """

    clusters: int
    dimension: int = 4
    codebooks: Codebooks = "each"

    name: ClassVar[str] = "product_quantize"
    about: ClassVar[About] = About(
        ("Q13",),
        "sub-vectors of rows share k codewords",
        "convolutions and linear layers for which codes and codebooks are smaller than the weights",
        ("stored bytes",),
        "float32 with the effective weights",
        "Gong 2014, 1412.6115",
    )
    phase: ClassVar[Phase] = Phase.QUANTIZE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_vectors(self.name, self.clusters, self.dimension, self.codebooks)

    def check(self, layer: LayerInfo) -> str | None:
        return vector_reason(layer, self.cost(layer).weight_bits)

    def is_identity(self, layer: LayerInfo) -> bool:
        return False

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        set_vectors(module, self.name, self.clusters, self.dimension, self.codebooks, 1)
        return module

    def cost(self, layer: LayerInfo) -> LayerCost:
        return vector_cost(layer, self.clusters, self.dimension, self.codebooks, 1)
