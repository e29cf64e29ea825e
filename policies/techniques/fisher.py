"""The diagonal empirical Fisher information of a layer's weights, from its inputs and the gradients of its output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from .. import forms
from ..errors import PolicyError
from .base import Calibration

# Gradients of all pictures of a batch are held at once, one of the weights' size for each.
HELD_VALUES = 2**23


def weight_fisher(module: nn.Module, layers: Sequence[nn.Module], calibration: Calibration | None) -> list[Tensor]:
    """Mean over pictures of the squared gradient of each weight, ``F_w = 1/N sum_n (d L_n / d w)^2`` (1801.05787, eq. 5).

    Parameters
    ----------
    module
        What stands in the layer's place: itself, or the layers that it was split into.
    layers
        Weighted layers inside the module.
    calibration
        Inputs (N, ...) of the module and gradients of the loss with respect to its output; a picture's gradient is the sum
        over its calls.

    Returns
    -------
    list
        Of the effective weight's shape, float32, for each layer.

    Raises
    ------
    PolicyError
        Without inputs or gradients, or where they do not belong together.
    """
    if calibration is None or calibration.gradients is None or calibration.inputs.numel() == 0:
        raise PolicyError("Fisher information needs calibration inputs and output gradients of the layer, got none")
    inputs = [call.inputs for call in calibration.calls]
    gradients = [call.gradients for call in calibration.calls if call.gradients is not None]
    lengths = {len(tensor) for tensor in (*inputs, *gradients)}
    if len(lengths) != 1 or len(gradients) != len(inputs):
        counts = [" + ".join(str(len(tensor)) for tensor in tensors) for tensors in (gradients, inputs)]
        raise PolicyError(f"expected as many gradients as inputs, got {counts[0]} and {counts[1]}; record both")
    plain = forms.plain(module)
    names = [name for name, layer in module.named_modules() if any(layer is one for one in layers)]
    places = [f"{name}.weight" if name else "weight" for name in names]
    tensors = {name: parameter.detach() for name, parameter in plain.named_parameters()}
    free = {place: tensors.pop(place) for place in places}

    def product(weights: dict[str, Tensor], calls: list[Tensor], slopes: list[Tensor]) -> Tensor:
        outputs = [functional_call(plain, {**tensors, **weights}, (x[None],))[0] for x in calls]
        return cast(Tensor, sum((output * slope).sum() for output, slope in zip(outputs, slopes)))

    of_each = vmap(grad(product), in_dims=(None, 0, 0))
    totals = {place: torch.zeros_like(weight) for place, weight in free.items()}
    size = max(1, HELD_VALUES // max(1, sum(weight.numel() for weight in free.values())))
    (count,) = lengths
    for start in range(0, count, size):
        parts = [[x[start : start + size] for x in values] for values in (inputs, gradients)]
        for place, found in of_each(free, *parts).items():
            totals[place] += found.detach().square().sum(0)
    by_layer = {id(module.get_submodule(name)): totals[place] / count for name, place in zip(names, places)}
    return [by_layer[id(layer)] for layer in layers]
