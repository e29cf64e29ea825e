"""CP decomposition of a convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import CandidateError
from .base import About, Calibration, LayerCost, LayerInfo, Phase
from .factors import FLOAT_BITS, conv_factor, conv_reason, dearer_reason, require_plain, require_rank
from .hessians import SecondOrder

STARTS = (True, False)
"""Whether from singular vectors; the rest is drawn."""
SWEEPS = 60
TOLERANCE = 1e-6
RIDGE = 1e-9
"""Share of the mean of the Gram matrix's diagonal: against components that grow while they cancel each other."""


@dataclass(frozen=True)
class CP:
    """A kh x kw convolution as 1 x 1, depthwise kh x 1, depthwise 1 x kw and 1 x 1 ones (Lebedev 2015, 1412.6553, eq. 4).

    Alternating least squares from a start by SVD and from a random one, the better result of the two. Stride, padding and
    dilation go to the depthwise factor of their axis.

    Parameters
    ----------
    rank
        Terms of the decomposition, the channels between the four layers; at least 1.
    """

    rank: int

    name: ClassVar[str] = "cp"
    about: ClassVar[About] = About(
        ("R2",),
        "1 x 1, two depthwise and 1 x 1 convolutions in place of one",
        "convolutions of one group, larger than 1 x 1",
        ("stored bytes", "deployed bytes", "MACs"),
        "smaller layers",
        "Lebedev 2015, 1412.6553",
    )
    phase: ClassVar[Phase] = Phase.FACTORIZE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_rank(self.name, "rank", self.rank)

    def check(self, layer: LayerInfo) -> str | None:
        return conv_reason(layer) or dearer_reason(self, layer)

    def clash(self, other: object) -> str | None:
        """Depthwise factors have no single Hessian."""
        if isinstance(other, SecondOrder) and other.second_order:
            return "cp leaves depthwise layers, of which each channel has a Hessian of its own"
        return None

    def is_identity(self, layer: LayerInfo) -> bool:
        return False

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        layer = require_plain(self.name, module, nn.Conv2d)
        return _four_layers(layer, cp_factors(layer.weight, self.rank))

    def outline(self, module: nn.Module) -> nn.Module:
        """The layers that ``apply`` makes, their weights of no account."""
        layer = require_plain(self.name, module, nn.Conv2d)
        return _four_layers(layer, [layer.weight.new_zeros(size, self.rank) for size in layer.weight.shape])

    def cost(self, layer: LayerInfo) -> LayerCost:
        out_channels, in_channels, kernel_y, kernel_x = layer.weight_shape
        _, height_in, width_in = layer.input_shape
        _, height, width = layer.output_shape
        positions = in_channels * height_in * width_in + kernel_y * height * width_in
        positions += (kernel_x + out_channels) * height * width
        return LayerCost(self.rank * positions, float(FLOAT_BITS * self.rank * sum(layer.weight_shape)))


def cp_factors(weight: Tensor, rank: int) -> list[Tensor]:
    """Factors (out, rank), (in, rank), (kh, rank) and (kw, rank) of the weight's type; their norms are alike in each term.

    Parameters
    ----------
    weight
        (out, in, kh, kw).

    Raises
    ------
    CandidateError
        Where weights are not finite or no start leads to finite factors.
    """
    tensor = weight.detach().double()
    if not bool(tensor.isfinite().all()):
        raise CandidateError("cp: expected finite weights, got nan or inf; check the network")
    if not bool(tensor.any()):
        return [weight.new_zeros(side, rank) for side in weight.shape]
    size = tensor.norm()
    found = [descend(tensor / size, _start(tensor / size, rank, singular)) for singular in STARTS]
    finite = [factors for factors in found if all(bool(factor.isfinite().all()) for factor in factors)]
    if not finite:
        raise CandidateError(f"cp: no start led to finite factors of rank {rank}; take another rank or technique")
    best = min(finite, key=lambda factors: float((composed(factors) - tensor / size).norm()))
    norms = torch.stack([factor.norm(dim=0) for factor in best])
    even = (size * norms.prod(0)) ** 0.25
    safe = torch.where(norms > 0, norms, torch.ones_like(norms))
    return [(factor * (even / norm)).to(weight.dtype) for factor, norm in zip(best, safe)]


def composed(factors: Sequence[Tensor]) -> Tensor:
    """The weight (out, in, kh, kw) that four factors stand for."""
    return torch.einsum("or,ir,yr,xr->oiyx", *factors)


def descend(tensor: Tensor, factors: list[Tensor]) -> list[Tensor]:
    """Alternating least squares over the four factors, in place, until the squared error falls no more or it diverges.

    Each large side is contracted once a sweep, which makes this a hundred times faster than libraries for any tensor.
    """
    last = float("inf")
    try:
        for _ in range(SWEEPS):
            narrow = torch.einsum("oiyx,ir->oyxr", tensor, factors[1])
            _solve(factors, 0, torch.einsum("oyxr,yr,xr->or", narrow, factors[2], factors[3]))
            _solve(factors, 2, torch.einsum("oyxr,or,xr->yr", narrow, factors[0], factors[3]))
            _solve(factors, 3, torch.einsum("oyxr,or,yr->xr", narrow, factors[0], factors[2]))
            narrow = torch.einsum("oiyx,or->iyxr", tensor, factors[0])
            product = torch.einsum("iyxr,yr,xr->ir", narrow, factors[2], factors[3])
            gram = _solve(factors, 1, product)
            # |T|^2 - 2 <T, T'> + |T'|^2, with |T| = 1.
            error = 1 - 2 * float((product * factors[1]).sum()) + float((gram * (factors[1].T @ factors[1])).sum())
            if not last - error > TOLERANCE:
                break
            last = error
    except torch.linalg.LinAlgError:
        factors[0].fill_(torch.nan)
    return factors


def _solve(factors: list[Tensor], axis: int, product: Tensor) -> Tensor:
    """Give one factor its optimum for the others, ``product`` (size, rank) being the tensor times them; their Gram matrix."""
    grams = [factor.T @ factor for place, factor in enumerate(factors) if place != axis]
    gram = grams[0] * grams[1] * grams[2]
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    factors[axis] = torch.linalg.solve(gram + ridge, product.T).T
    return gram


def _start(tensor: Tensor, rank: int, singular: bool) -> list[Tensor]:
    """Factors (size, rank) of each axis: drawn, the leading columns replaced by singular vectors of the unfolded tensor."""
    generator = torch.Generator().manual_seed(0)
    factors = [torch.randn(size, rank, dtype=torch.float64, generator=generator) for size in tensor.shape]
    for axis, factor in enumerate(factors if singular else []):
        unfolded = tensor.movedim(axis, 0).flatten(1)
        vectors = torch.linalg.eigh(unfolded @ unfolded.T).eigenvectors.flip(1)[:, :rank]
        factor[:, : vectors.shape[1]] = vectors
    return factors


def _four_layers(layer: nn.Conv2d, factors: list[Tensor]) -> nn.Sequential:
    outwards, inwards, vertical, horizontal = factors
    rank = outwards.shape[1]
    (stride_y, stride_x), (dilation_y, dilation_x) = layer.stride, layer.dilation
    # The words "same" and "valid" mean the same for each axis alone.
    padding = layer.padding
    pad_y, pad_x = (padding, padding) if isinstance(padding, str) else ((padding[0], 0), (0, padding[1]))
    down: dict[str, Any] = {"stride": (stride_y, 1), "padding": pad_y, "dilation": (dilation_y, 1), "groups": rank}
    across: dict[str, Any] = {"stride": (1, stride_x), "padding": pad_x, "dilation": (1, dilation_x), "groups": rank}
    return nn.Sequential(
        conv_factor(inwards.T[:, :, None, None], layer),
        conv_factor(vertical.T[:, None, :, None], layer, **down),
        conv_factor(horizontal.T[:, None, None, :], layer, **across),
        conv_factor(outwards[:, :, None, None], layer, layer.bias),
    ).train(layer.training)
