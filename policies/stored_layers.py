"""Compressed layers on disk: the stored form of each weight, and a layer made from it again without compressing anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from . import forms
from .coding.press import decode, encode
from .coding.tensors import (
    CodebookTensor,
    DenseTensor,
    GeneratedTensor,
    HashedTensor,
    SparseTensor,
    StoredTensor,
    UniformTensor,
    VectorTensor,
)
from .errors import FormatError

_GRIDS: Mapping[int, Any] = {1: forms.BinaryWeight}
"""Forms of uniform codes of a width of their own."""

FORMS: Mapping[type[StoredTensor], Callable[[Any, bool], nn.Module]] = {
    SparseTensor: forms.MaskedWeight.of_stored,
    CodebookTensor: forms.SharedWeight.of_stored,
    UniformTensor: lambda stored, pruned: _GRIDS.get(stored.bits, forms.UniformWeight).of_stored(stored, pruned),
    GeneratedTensor: forms.GeneratedWeight.of_stored,
    VectorTensor: forms.VectorWeight.of_stored,
    HashedTensor: forms.HashedWeight.of_stored,
}
"""The form of a weight that is stored so, from the tensor and whether the layer was pruned; the others are ordinary."""


def write_layer(module: nn.Module) -> bytes:
    """The weights and biases of a compressed layer, or of the layers that stand in its place, as a press file."""
    return encode(layer_tensors(module), {})


def layer_tensors(module: nn.Module) -> dict[str, StoredTensor]:
    """The same in their stored form."""
    tensors: dict[str, StoredTensor] = {}
    for name, layer in forms.weighted_modules(module):
        tensors[f"{name}.weight"] = forms.stored_weight(layer)
        if layer.bias is not None:
            tensors[f"{name}.bias"] = DenseTensor(cast(Tensor, layer.bias).detach().numpy().copy())
    return tensors


def read_layer(data: bytes, into: nn.Module, pruned: bool) -> None:
    """Give a layer of the same shape the weights that were written, see ``set_tensors``.

    Raises
    ------
    FormatError
        Where the file does not fit the layer.
    """
    set_tensors(decode(data).tensors, into, pruned)


def set_tensors(tensors: Mapping[str, StoredTensor], into: nn.Module, pruned: bool) -> None:
    """Give a layer of the same shape the weights of ``layer_tensors``, with their forms, in place.

    Parameters
    ----------
    pruned
        Whether zeros among integer codes are pruned weights, which stay zero in training.

    Raises
    ------
    FormatError
        Where they do not fit the layer.
    """
    for name, layer in forms.weighted_modules(into):
        stored = tensors.get(f"{name}.weight")
        shape = tuple(cast(Tensor, layer.weight).shape)
        if stored is None or stored.decode().shape != shape:
            found = None if stored is None else stored.decode().shape
            raise FormatError(f"expected a weight of shape {shape} for '{name}', the file has {found}")
        _set_weight(layer, stored, pruned)
        bias = tensors.get(f"{name}.bias")
        if bias is not None:
            layer.bias = nn.Parameter(torch.from_numpy(np.array(bias.decode())))


def _set_weight(layer: nn.Module, stored: StoredTensor, pruned: bool) -> None:
    forms.drop_form(layer)
    layer.weight = nn.Parameter(torch.from_numpy(np.array(stored.decode())))
    rebuild = FORMS.get(type(stored))
    if rebuild is not None:
        forms.set_form(layer, rebuild(stored, pruned))
