"""What the factorizing techniques share: truncated SVD, layers made from factors, why a layer cannot be factorized."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, ClassVar, Literal, Protocol, TypeVar, cast, get_args

import torch
from torch import Tensor, nn

from ..errors import PolicyError
from ..second_order import damped
from .base import Calibration, LayerCost, LayerInfo
from .hessians import layer_hessians

FLOAT_BITS = 32

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)
Whitening = Literal["none", "activations"]


class Factorization(Protocol):
    """A dataclass of one rank or several, whole numbers all of them, that tells what its factors cost."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def is_identity(self, layer: LayerInfo) -> bool: ...

    def cost(self, layer: LayerInfo) -> LayerCost: ...


def require_rank(technique: str, parameter: str, rank: object) -> None:
    """Refuse a rank that is no whole number of at least 1.

    Raises
    ------
    PolicyError
        Naming the technique and the parameter.
    """
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise PolicyError(f"{technique}: expected {parameter} as a whole number of at least 1, got {rank!r}")


def require_whitening(technique: str, whitening: object) -> None:
    """Refuse an unknown kind of whitening.

    Raises
    ------
    PolicyError
        Naming the technique and the kinds.
    """
    if whitening not in get_args(Whitening):
        raise PolicyError(f"{technique}: expected whitening {' or '.join(get_args(Whitening))}, got {whitening!r}")


def require_plain(technique: str, module: nn.Module, expected: type[Layer]) -> Layer:
    """The module as a layer of the expected type, with that type's own forward pass.

    Raises
    ------
    PolicyError
        Where it is something else, or computes more than the layer does (as a convolution that pads its input itself).
    """
    if not isinstance(module, expected) or not _computes_as(module, expected):
        found = type(module).__name__
        if found == expected.__name__:
            found = f"{type(module).__module__}.{found}"
        raise PolicyError(
            f"{technique}: expected a torch {expected.__name__}, got {found}; leave it out for this layer"
        )
    return module


def _computes_as(module: nn.Module, expected: type[nn.Module]) -> bool:
    """Whether the forward pass is the expected type's: the same function, or for a linear layer one that gives the same."""
    if type(module).forward is expected.forward:
        return True
    if not isinstance(module, nn.Linear):
        return False
    probe = torch.linspace(-1, 1, 2 * module.in_features).view(2, -1).to(module.weight)
    with torch.no_grad():
        return torch.equal(module(probe), nn.Linear.forward(module, probe))


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


def whitened_svd(matrix: Tensor, second_moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The approximation of a given rank whose outputs err least on inputs of this second moment, evenly split.

    ``tr (W' - W) C (W' - W)^T`` is least for ``W' = U U^T W``, ``U`` being the leading left singular vectors of
    ``W C^(1/2)``, the principal axes of the outputs (Zhang 2016, 1505.06798, eq. 3 and 4; no root is inverted). Since ``C``
    is damped, ``C + a I``, weights on silent inputs stay near, and the outputs never err more than with ``truncated_svd``.

    Parameters
    ----------
    matrix
        (m, n).
    second_moment
        (n, n) mean of ``x x^T``.

    Returns
    -------
    tuple
        As ``truncated_svd``.
    """
    work = matrix.detach().double()
    root = torch.linalg.cholesky(damped(second_moment))
    left = torch.linalg.svd(work @ root, full_matrices=False).U[:, :rank]
    right = left.T @ work
    scale = right.norm(dim=1).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (left * scale).to(matrix.dtype), (right / scale[:, None]).to(matrix.dtype)


def full_rank(layer: LayerInfo) -> int:
    """Of a layer's weight as a matrix (out, in * kh * kw)."""
    out = layer.weight_shape[0]
    return min(out, layer.weights // out)


def factorized(
    technique: str, layer: nn.Conv2d | nn.Linear, rank: int, whitening: Whitening, calibration: Calibration | None
) -> nn.Module:
    """``two_layers`` from the best factors of the layer's weight, for the weight or for the outputs; itself at full rank.

    Raises
    ------
    PolicyError
        Where outputs are asked for without calibration inputs.
    """
    matrix = layer.weight.detach().flatten(1)
    if rank >= min(matrix.shape):
        return layer
    if whitening == "none":
        return two_layers(layer, *truncated_svd(matrix, rank))
    return two_layers(layer, *whitened_svd(matrix, layer_hessians(technique, layer, [layer], calibration)[0], rank))


def unfilled(layer: nn.Conv2d | nn.Linear, rank: int) -> nn.Module:
    """As ``factorized``, with weights of zero."""
    out, inputs = layer.weight.flatten(1).shape
    if rank >= min(out, inputs):
        return layer
    return two_layers(layer, layer.weight.new_zeros(out, rank), layer.weight.new_zeros(rank, inputs))


def factorized_cost(layer: LayerInfo, rank: int) -> LayerCost:
    """What ``factorized`` leaves."""
    weights = layer.weights
    if rank < full_rank(layer):
        weights = rank * (layer.weight_shape[0] + layer.weights // layer.weight_shape[0])
    return LayerCost(layer.macs // layer.weights * weights, float(FLOAT_BITS * weights))


def two_layers(layer: nn.Conv2d | nn.Linear, left: Tensor, right: Tensor) -> nn.Sequential:
    """Layers with the weights ``right`` (rank, in * kh * kw), in the layer's own geometry, and ``left`` (out, rank)."""
    if isinstance(layer, nn.Linear):
        return nn.Sequential(linear_factor(right, layer), linear_factor(left, layer, layer.bias)).train(layer.training)
    geometry: dict[str, Any] = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
    first = conv_factor(right.reshape(-1, *layer.weight.shape[1:]), layer, **geometry)
    return nn.Sequential(first, conv_factor(left[:, :, None, None], layer, layer.bias)).train(layer.training)


def spatial_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Weights (rank, in, kh, 1) and (out, rank, 1, kw) whose composition is nearest to a weight (out, in, kh, kw)."""
    out_channels, in_channels, kernel_y, kernel_x = weight.shape
    matrix = weight.permute(1, 2, 3, 0).reshape(in_channels * kernel_y, kernel_x * out_channels)
    left, right = truncated_svd(matrix, rank)
    vertical = left.T.reshape(-1, in_channels, kernel_y, 1)
    horizontal = right.reshape(-1, kernel_x, out_channels).permute(2, 0, 1).unsqueeze(2)
    return vertical, horizontal


def column_and_row(layer: nn.Conv2d, vertical: Tensor, horizontal: Tensor, bias: Tensor | None) -> nn.Sequential:
    """Layers with the weights (rank, in, kh, 1) and (out, rank, 1, kw), each with the geometry of its own axis."""
    (stride_y, stride_x), (dilation_y, dilation_x) = layer.stride, layer.dilation
    # The words "same" and "valid" mean the same for each axis alone.
    padding = layer.padding
    pad_y, pad_x = (padding, padding) if isinstance(padding, str) else ((padding[0], 0), (0, padding[1]))
    first = conv_factor(vertical, layer, stride=(stride_y, 1), padding=pad_y, dilation=(dilation_y, 1))
    second = conv_factor(horizontal, layer, bias, stride=(1, stride_x), padding=pad_x, dilation=(1, dilation_x))
    return nn.Sequential(first, second).train(layer.training)


def dearer_reason(technique: Factorization, layer: LayerInfo) -> str | None:
    """Why factors make a layer no cheaper: they would multiply as often as it does, or be as many; or ``None``."""
    if technique.is_identity(layer) or _helps(technique, layer):
        return None
    cost, cheaper = technique.cost(layer), _largest_that_helps(technique, layer)
    counts = f"{layer.macs} MACs and its factors would take {cost.macs}"
    if cost.macs < layer.macs:
        counts = f"{layer.weights} weights and its factors would take {round(cost.weight_bits / FLOAT_BITS)}"
    advice = "no rank helps, leave it out" if cheaper is None else f"the largest rank that helps is {cheaper}"
    return f"'{layer.name}' takes {counts}; {advice}"


def _helps(technique: Factorization, layer: LayerInfo) -> bool:
    cost = technique.cost(layer)
    return cost.macs < layer.macs and cost.weight_bits < FLOAT_BITS * layer.weights


def _largest_that_helps(technique: Factorization, layer: LayerInfo) -> str | None:
    """In words; of several ranks, the largest that stand to each other as those that were given."""
    given = {entry.name: getattr(technique, entry.name) for entry in fields(technique) if entry.type == "int"}
    top = max(given.values(), default=0)
    for part in range(top - 1, 0, -1):
        ranks = {name: max(1, rank * part // top) for name, rank in given.items()}
        if _helps(replace(technique, **ranks), layer):
            return ", ".join(str(rank) if name == "rank" else f"{name} {rank}" for name, rank in ranks.items())
    return None


def linear_factor(weight: Tensor, like: nn.Linear, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer with this weight (out, in), trainable and in training mode as ``like`` is."""
    out_features, in_features = weight.shape
    return _filled(nn.Linear(in_features, out_features, bias=False, device="meta"), weight, like, bias)


def conv_factor(weight: Tensor, like: nn.Conv2d, bias: Tensor | None = None, **geometry: Any) -> nn.Conv2d:
    """A convolution with this weight (out, in / groups, kh, kw) and ``like``'s padding mode, trainable as ``like`` is."""
    out_channels, per_group, *kernel = weight.shape
    in_channels = per_group * geometry.get("groups", 1)
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
    if layer.groups == 1 and layer.weight_shape[2:] == (1, 1):
        return f"'{layer.name}' has a 1 x 1 kernel; there is no kernel to split, svd takes it"
    return dense_reason(layer)


def read_reason(layer: LayerInfo) -> str | None:
    """Why several layers cannot stand in the place of one, or ``None``."""
    if not layer.read:
        return None
    return (
        f"the network itself reads {', '.join(layer.read)} of '{layer.name}', which factors do not have; leave it out"
    )


def dense_reason(layer: LayerInfo) -> str | None:
    """Why a convolution's outputs are not all made by one matrix from inputs that its geometry tells, or ``None``."""
    if layer.groups != 1:
        return f"'{layer.name}' has {layer.groups} groups; only ungrouped convolutions can be split this way"
    if tuple(_output_sizes(layer)) != layer.output_shape[1:]:
        return f"'{layer.name}' pads its input in a way that its stride, padding and dilation do not tell"
    return read_reason(layer)


def _output_sizes(layer: LayerInfo) -> Iterator[int]:
    for axis in (0, 1):
        reach = layer.dilation[axis] * (layer.weight_shape[2 + axis] - 1)
        padded = (
            (reach if layer.padding == "same" else 0) if isinstance(layer.padding, str) else 2 * layer.padding[axis]
        )
        yield (layer.input_shape[1 + axis] + padded - reach - 1) // layer.stride[axis] + 1
