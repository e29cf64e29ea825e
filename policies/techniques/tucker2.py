"""Tucker-2 decomposition of a convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import About, Calibration, LayerCost, LayerInfo, Phase
from .factors import FLOAT_BITS, conv_factor, conv_reason, dearer_reason, require_plain, require_rank

SWEEPS = 3


@dataclass(frozen=True)
class Tucker2:
    """A k x k convolution as 1 x 1, k x k and 1 x 1 ones (Kim 2016, 1511.06530, section 3.1), by HOSVD and HOOI sweeps.

    A side at full rank needs no 1 x 1 layer of its own and gets none.

    Parameters
    ----------
    rank_in, rank_out
        Channels that the k x k convolution takes and gives, at least 1 each; where neither is below the layer's own,
        the layer stays as it is.
    """

    rank_in: int
    rank_out: int

    name: ClassVar[str] = "tucker2"
    about: ClassVar[About] = About(
        ("R2",),
        "two pointwise convolutions around a smaller one",
        "convolutions of one group and more than 1 x 1",
        (
            "stored bytes",
            "deployed bytes",
            "MACs",
        ),
        "smaller layers",
        "Kim 2016, 1511.06530",
    )
    phase: ClassVar[Phase] = Phase.FACTORIZE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_rank(self.name, "rank_in", self.rank_in)
        require_rank(self.name, "rank_out", self.rank_out)

    def check(self, layer: LayerInfo) -> str | None:
        return conv_reason(layer) or dearer_reason(self, layer)

    def is_identity(self, layer: LayerInfo) -> bool:
        return self.rank_out >= layer.weight_shape[0] and self.rank_in >= layer.weight_shape[1]

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        layer = require_plain(self.name, module, nn.Conv2d)
        out_channels, in_channels = layer.weight.shape[:2]
        narrows, widens = self.rank_in < in_channels, self.rank_out < out_channels
        if not narrows and not widens:
            return layer
        inwards, core, outwards = tucker2_factors(layer.weight, self.rank_in, self.rank_out)
        geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        factors = [conv_factor(core, layer, None if widens else layer.bias, **geometry)]
        if narrows:
            factors.insert(0, conv_factor(inwards, layer))
        if widens:
            factors.append(conv_factor(outwards, layer, layer.bias))
        return nn.Sequential(*factors).train(layer.training)

    def cost(self, layer: LayerInfo) -> LayerCost:
        out_channels, in_channels, kernel_y, kernel_x = layer.weight_shape
        rank_in, rank_out = min(self.rank_in, in_channels), min(self.rank_out, out_channels)
        before = in_channels * rank_in if rank_in < in_channels else 0
        after = rank_out * out_channels if rank_out < out_channels else 0
        core = rank_in * rank_out * kernel_y * kernel_x
        _, height_in, width_in = layer.input_shape
        _, height, width = layer.output_shape
        macs = before * height_in * width_in + (core + after) * height * width
        return LayerCost(macs, float(FLOAT_BITS * (before + core + after)))


def tucker2_factors(weight: Tensor, rank_in: int, rank_out: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of the three convolutions; a rank at or above the layer's own gives an identity matrix.

    Parameters
    ----------
    weight
        (out, in, kh, kw).

    Returns
    -------
    tuple
        (rank_in, in, 1, 1), (rank_out, rank_in, kh, kw) and (out, rank_out, 1, 1) of the weight's dtype.
    """
    # Gram matrices square the condition number, hence float64.
    w = weight.detach().double().flatten(2)
    by_in = w.transpose(0, 1)
    outer = _leading(w, rank_out)
    inner = _leading(by_in, rank_in)
    if rank_in < w.shape[1] and rank_out < w.shape[0]:
        for _ in range(SWEEPS):
            inner = _leading(torch.tensordot(by_in, outer, ([1], [0])), rank_in)
            outer = _leading(torch.tensordot(w, inner, ([1], [0])), rank_out)
    core = torch.einsum("oik,or,is->rsk", w, outer, inner).unflatten(2, weight.shape[2:])
    return inner.T[:, :, None, None].to(weight), core.to(weight), outer[:, :, None, None].to(weight)


def _leading(tensor: Tensor, rank: int) -> Tensor:
    """Leading left singular vectors (n, rank) of a tensor (n, ...) unfolded along its first axis."""
    if rank >= len(tensor):
        return torch.eye(len(tensor), dtype=tensor.dtype, device=tensor.device)
    matrix = tensor.flatten(1)
    return torch.linalg.eigh(matrix @ matrix.T).eigenvectors[:, -rank:].flip(1)
