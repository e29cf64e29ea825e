"""What the factorizing techniques share: truncated SVD, layers made from factors, why a layer cannot be factorized."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..errors import PolicyError
from .base import LayerInfo

FLOAT_BITS = 32

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def require_rank(technique: str, parameter: str, rank: object) -> None:
    """Refuse a rank that is no whole number of at least 1.

    Raises
    ------
    PolicyError
        Naming the technique and the parameter.
    """
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise PolicyError(f"{technique}: expected {parameter} as a whole number of at least 1, got {rank!r}")


def require_plain(technique: str, module: nn.Module, expected: type[Layer]) -> Layer:
    """The module as a layer of the expected type, with that type's own forward pass.

    Raises
    ------
    PolicyError
        Where it is something else, or computes more than the layer does (as a convolution that pads its input itself).
    """
    if not isinstance(module, expected) or type(module).forward is not expected.forward:
        found = type(module).__name__
        raise PolicyError(
            f"{technique}: expected a torch {expected.__name__}, got {found}; leave it out for this layer"
        )
    return module


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of a given rank (Eckart-Young), singular values split evenly between the factors.

    Parameters
    ----------
    matrix
        (m, n).

    Returns
    -------
    tuple
        ``left`` (m, rank) and ``right`` (rank, n) of the matrix's dtype, ``left @ right`` being the approximation.
    """
    work = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
    u, s, vh = torch.linalg.svd(work, full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(matrix.dtype), (root[:, None] * vh[:rank]).to(matrix.dtype)


def linear_factor(weight: Tensor, like: nn.Linear, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer with this weight (out, in), trainable and in training mode as ``like`` is."""
    out_features, in_features = weight.shape
    return _filled(nn.Linear(in_features, out_features, bias=False, device="meta"), weight, like, bias)


def conv_factor(weight: Tensor, like: nn.Conv2d, bias: Tensor | None = None, **geometry: Any) -> nn.Conv2d:
    """A convolution with this weight (out, in, kh, kw) and ``like``'s padding mode, trainable as ``like`` is."""
    out_channels, in_channels, *kernel = weight.shape
    size = (kernel[0], kernel[1])
    layer = nn.Conv2d(
        in_channels, out_channels, size, bias=False, padding_mode=like.padding_mode, device="meta", **geometry
    )
    return _filled(layer, weight, like, bias)


def _filled(layer: Layer, weight: Tensor, like: Layer, bias: Tensor | None) -> Layer:
    # Made on the meta device first, so that no initial weights are drawn: the caller's random state is not touched.
    layer.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=like.weight.requires_grad)
    layer.register_parameter("bias", cast("nn.Parameter | None", bias))
    return layer.train(like.training)


def conv_reason(layer: LayerInfo) -> str | None:
    """Why a layer is no dense k x k convolution that can be split into factors, or ``None``."""
    if layer.kind != "conv2d":
        return f"'{layer.name}' is a {layer.kind} layer; only convolutions can be split this way"
    if layer.groups != 1:
        return f"'{layer.name}' has {layer.groups} groups; only ungrouped convolutions can be split this way"
    if layer.weight_shape[2:] == (1, 1):
        return f"'{layer.name}' has a 1 x 1 kernel; there is no kernel to split"
    if tuple(_output_sizes(layer)) != layer.output_shape[1:]:
        return f"'{layer.name}' pads its input in a way that its stride, padding and dilation do not tell"
    return None


def _output_sizes(layer: LayerInfo) -> Iterator[int]:
    for axis in (0, 1):
        reach = layer.dilation[axis] * (layer.weight_shape[2 + axis] - 1)
        padded = (
            (reach if layer.padding == "same" else 0) if isinstance(layer.padding, str) else 2 * layer.padding[axis]
        )
        yield (layer.input_shape[1 + axis] + padded - reach - 1) // layer.stride[axis] + 1
