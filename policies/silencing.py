"""Whether a smaller network is the larger one with the lost channels silenced, read off the outputs.

A channel is silent where the weights of all layers that read it are zero there; where no layer does, as with queries that
meet keys, where what makes it gives zero.
"""

from __future__ import annotations

import copy
from collections.abc import Set
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .copying import sharing_copy
from .slicing import Lost

TOLERANCE = 1e-4
"""Of the outputs' spread. Rounding makes about 1e-6 in a network of 50 layers; a channel in a wrong place made 8e-4 or more."""
SEED = 0


def enliven(model: nn.Module) -> nn.Module:
    """Return a copy in which no layer is switched off by how it was initialised.

    Scales of 0 or 1e-6 at the end of a residual branch hide what goes on in it, and equal numbers hide which is whose. So a
    parameter whose numbers are all the same, and a batch norm's mean and variance, get random numbers of a seed of their own.
    """
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and _is_uniform(parameter):
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None and _is_uniform(module.running_mean):
                module.running_mean.copy_(0.2 * torch.randn(module.running_mean.shape, generator=generator))
                cast(Tensor, module.running_var).copy_(0.5 + torch.rand(module.running_mean.shape, generator=generator))
    return model


def is_silenced(model: nn.Module, small: nn.Module, lost: Lost, unread: Set[str], example: Tensor) -> bool:
    """Whether the smaller network's outputs are those of the larger one in which the lost channels are silent.

    ``True`` where that cannot be told: the network is not the same twice, or its outputs are no numbers or all the same.

    Parameters
    ----------
    lost
        Module and axis -> its channels that the smaller network lost.
    unread
        Modules whose channels no layer reads.
    example
        (1, C, H, W).
    """
    silent = _silence(model, lost, unread)
    with torch.no_grad():
        expected, outputs = silent(example.clone()), small(example.clone())
        if is_near(outputs, expected) or not torch.equal(expected, silent(example.clone())):
            return True
        # Random numbers may make a network that multiplies rounding, which 64 bits tell from what is wrong.
        try:
            exact = (copy.deepcopy(net).double()(example.double()) for net in (small, silent))
            return is_near(*exact)
        # A network may insist on 32 bits anywhere in its own code.
        except RuntimeError:
            return False


def is_near(outputs: Tensor, expected: Tensor) -> bool:
    """Whether outputs are those expected, up to rounding; so are any where those expected have no spread to measure by."""
    spread = float(expected.std())
    return not spread > 0 or bool((outputs - expected).abs().max() <= TOLERANCE * spread)


def _silence(model: nn.Module, lost: Lost, unread: Set[str]) -> nn.Module:
    """Return a copy in which the channels are silent; the model's own tensors stay."""
    silent = sharing_copy(model)
    for (name, axis), places in lost.items():
        module = silent.get_submodule(name)
        if axis == "in":
            _set_zero(module, "weight", (slice(None), sorted(places)))
        elif name in unread:
            for tensor in ("weight", "bias"):
                _set_zero(module, tensor, (sorted(places),))
    return silent


def _set_zero(module: nn.Module, name: str, places: tuple[slice | list[int], ...]) -> None:
    parameter = module._parameters.get(name)
    if parameter is not None:
        values = parameter.detach().clone()
        values[places] = 0
        module._parameters[name] = nn.Parameter(values, requires_grad=parameter.requires_grad)


def _is_uniform(values: Tensor) -> bool:
    return values.numel() > 1 and bool((values == values.flatten()[0]).all())
