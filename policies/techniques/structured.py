"""What the techniques share that make a layer's weight from few parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from .. import forms
from ..coding.generated import GENERATORS
from ..errors import PolicyError
from .base import LayerCost, LayerInfo, Phase, Technique

LARGEST_SEED = (1 << 31) - 1


def require_whole(technique: str, parameter: str, value: object, low: int) -> None:
    """Refuse a hyper-parameter that is no whole number of [low, 2^31).

    Raises
    ------
    PolicyError
        Naming the technique and the parameter.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= LARGEST_SEED:
        raise PolicyError(f"{technique}: expected {parameter} as a whole number of [{low}, 2^31), got {value!r}")


def count_reason(kind: str, layer: LayerInfo, block: int) -> str | None:
    """Why few parameters are none the fewer here, or ``None``."""
    count = GENERATORS[kind].count(layer.weight_shape, block)
    if count < layer.weights:
        return None
    return f"'{layer.name}' has {layer.weights} weights, which {kind} would make from {count} parameters; leave it out"


def generated_cost(kind: str, layer: LayerInfo, block: int) -> LayerCost:
    """Of the parameters; the exported layer multiplies by a dense weight."""
    return LayerCost(layer.macs, 32.0 * GENERATORS[kind].count(layer.weight_shape, block))


def quantization_clash(technique: str, other: Technique) -> str | None:
    """Why another technique cannot follow, or ``None``."""
    if other.phase != Phase.QUANTIZE:
        return None
    return f"{technique} stores the parameters that the weight is made from, which {other.name} would take apart"


def generate(module: nn.Module, kind: str, block: int, seed: int, fit: Callable[[Tensor], Tensor]) -> nn.Module:
    """Give the module's layers generated weights, where these have fewer parameters.

    Parameters
    ----------
    fit
        Parameters (count,) of a weight.

    Raises
    ------
    PolicyError
        Where there is no such layer or its weights are pruned.
    """
    layers = [layer for _, layer in forms.weighted_modules(module)]
    if not layers:
        raise PolicyError(f"{kind}: expected a convolution or linear layer, got {type(module).__name__}")
    for layer in layers:
        weight = cast(Tensor, layer.weight).detach()
        if forms.form_of(layer) is not None:
            raise PolicyError(
                f"{kind}: expected an ordinary weight, got one with a structure already; keep one of the two"
            )
        if GENERATORS[kind].count(tuple(weight.shape), block) < weight.numel():
            forms.set_form(layer, forms.GeneratedWeight(kind, fit(weight), tuple(weight.shape), block, seed))
    return module


def project(kind: str, weight: Tensor, block: int, seed: int) -> Tensor:
    """The parameters (count,) float32 whose weight is nearest: the mean over the places of each, signs taken off."""
    shape = tuple(weight.shape)
    index, flips = (torch.from_numpy(array) for array in GENERATORS[kind].constants(shape, block, seed))
    count = GENERATORS[kind].count(shape, block)
    total = torch.zeros(count, dtype=torch.float64).index_add_(0, index.flatten(), (weight.double() * flips).flatten())
    return (total / torch.bincount(index.flatten(), minlength=count)).float()
