"""Two layers with nothing between them as one (Srinivas 2015, 1511.05497, layers with ``d = 1``).

Symbols: ``o`` outputs of the second layer, ``m`` channels between the two, ``i`` inputs of the first, ``u v`` kernel positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from .activations import Activation
from .copying import put_in_place
from .techniques.base import LayerInfo

_POINT = (1, 1)


@dataclass(frozen=True)
class Collapsed:
    """A ReLU that goes.

    Parameters
    ----------
    activation
        Which, and the layers before and behind it.
    merge
        Whether these two become one, under the second one's name.
    """

    activation: Activation
    merge: bool


def why_not_merged(first: LayerInfo, second: LayerInfo) -> str | None:
    """Why the product of two layers is none, or ``None``.

    A convolution has one with a 1 x 1 layer behind it, and a 1 x 1 layer with a convolution behind it where its bias is the
    same at every place: not in front of a padding, which it would have to reach.
    """
    if any(layer.read or layer.calls > 1 for layer in (first, second)):
        return "the network looks into one of them or runs it more than once"
    if first.kind == "linear" and second.kind == "linear":
        return None
    if first.kind != second.kind or first.groups > 1 or second.groups > 1:
        return "they are no two linear layers and no two convolutions without groups"
    if second.weight_shape[2:] == _POINT and second.stride == _POINT and not _is_padded(second):
        return None
    if first.weight_shape[2:] == _POINT and first.stride == _POINT and not _is_padded(first):
        bias_is_even = not first.has_bias or not _is_padded(second)
        return None if bias_is_even else "the bias of the first would not be the same at the second one's padded border"
    return "neither of the two convolutions is 1 x 1 of stride 1 without padding"


def merged_info(first: LayerInfo, second: LayerInfo) -> LayerInfo:
    """What the layer is that ``merge_layers`` makes of two such layers."""
    wide = first if second.weight_shape[2:] == _POINT else second
    shape = (second.weight_shape[0], first.weight_shape[1], *wide.weight_shape[2:])
    return replace(
        second,
        weight_shape=shape,
        input_shape=first.input_shape,
        has_bias=first.has_bias or second.has_bias,
        stride=wide.stride,
        padding=wide.padding,
        dilation=wide.dilation,
    )


def merge_layers(first: nn.Module, second: nn.Module) -> nn.Module:
    """One layer that computes ``second(first(x))``, of two that ``why_not_merged`` has nothing against."""
    one, two = (cast(Tensor, layer.weight).detach().double() for layer in (first, second))
    if isinstance(first, nn.Linear):
        weight = two @ one
    elif two.shape[2:] == _POINT:
        weight = torch.einsum("om,miuv->oiuv", two[:, :, 0, 0], one)
    else:
        weight = torch.einsum("omuv,mi->oiuv", two, one[:, :, 0, 0])
    bias = _bias(second) + two.flatten(2).sum(2) @ _bias(first) if two.ndim > 2 else _bias(second) + two @ _bias(first)
    has_bias = first.bias is not None or second.bias is not None
    made = _empty(first, second, weight, has_bias)
    with torch.no_grad():
        cast(Tensor, made.weight).copy_(weight)
        if has_bias:
            cast(Tensor, made.bias).copy_(bias)
    return made


def collapse(model: nn.Module, collapsed: Sequence[Collapsed]) -> None:
    """Carry it out, in place; they come in the order of the forward pass."""
    for one in collapsed:
        between = one.activation
        put_in_place(model, between.module, nn.Identity())
        if one.merge:
            first, second = model.get_submodule(between.layer), model.get_submodule(between.reader)
            put_in_place(model, between.reader, merge_layers(first, second).train(second.training))
            put_in_place(model, between.layer, nn.Identity())


def _empty(first: nn.Module, second: nn.Module, weight: Tensor, has_bias: bool) -> nn.Module:
    if isinstance(first, nn.Linear):
        return nn.Linear(weight.shape[1], weight.shape[0], has_bias)
    wide: Any = first if cast(Tensor, second.weight).shape[2:] == _POINT else second
    return nn.Conv2d(
        weight.shape[1],
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        wide.stride,
        wide.padding,
        wide.dilation,
        bias=has_bias,
        padding_mode=wide.padding_mode,
    )


def _bias(layer: nn.Module) -> Tensor:
    weight, bias = cast(Tensor, layer.weight), cast(Tensor | None, layer.bias)
    return torch.zeros(len(weight), dtype=torch.float64) if bias is None else bias.detach().double()


def _is_padded(layer: LayerInfo) -> bool:
    return layer.padding not in ("valid", (0, 0))
