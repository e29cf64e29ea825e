"""What a form of a weight is, and the forms of a network's layers.

Each form is a parametrization (``torch.nn.utils.parametrize``) of a layer's ``weight``: the layer's forward pass computes
with the effective weight, gradients reach only what is free (kept weights, centroids, latent values), so zeros stay zero
and shared weights stay shared under any optimizer. ``stored`` gives the same values, bit for bit, as they are stored, and
``of_stored`` the form again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, autograd, nn
from torch.nn.utils import parametrize

from ..coding.tensors import DenseTensor, StoredTensor
from ..copying import sharing_copy
from .input_range import drop_input_range

WEIGHTED = (nn.Conv2d, nn.Linear)
BFLOAT16_BITS = 8
"""Significant bits of bfloat16."""


class Form(Protocol):
    """A parametrization of a weight."""

    mask: Tensor | None

    def stored(self, original: Tensor) -> StoredTensor:
        """The form on disk, from the tensor that is trained."""
        ...


def weighted_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The convolutions and linear layers in a module (itself included, under the name ``""``)."""
    for name, child in module.named_modules():
        if isinstance(child, WEIGHTED):
            yield name, child


def form_of(module: nn.Module) -> Form | None:
    """The form of the module's weight, or ``None`` for an ordinary one."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    parametrizations = cast(Any, module.parametrizations)
    return cast(Form, parametrizations.weight[0])


def mask_of(module: nn.Module) -> Tensor | None:
    """Which weights are kept (bool, the weight's shape), or ``None`` where all are."""
    form = form_of(module)
    return None if form is None else form.mask


def set_form(module: nn.Module, form: nn.Module) -> None:
    """Give the module's weight a form, in place of the one it has; the effective weight is the starting point."""
    drop_form(module)
    parametrize.register_parametrization(module, "weight", form, unsafe=True)
    cast(Any, module.parametrizations).train(module.training)


def drop_form(module: nn.Module) -> None:
    """Make the weight an ordinary parameter with its effective value."""
    if form_of(module) is not None:
        # Some forms draw their values while they train; the effective weight is that of evaluation.
        cast(Any, module.parametrizations).eval()
        value = cast(Tensor, module.weight).detach().clone()
        trainable = cast(Any, module.parametrizations).weight.original.requires_grad
        # A deep copy has its original's class, from which `remove_parametrizations` would take the property for both.
        module.__class__ = module.__class__.__bases__[0]
        del module.parametrizations
        module.weight = nn.Parameter(value, requires_grad=trainable)
        # The weight stands first again: networks of one structure have their tensors in one order.
        for name in [name for name in module._parameters if name != "weight"]:
            module._parameters[name] = module._parameters.pop(name)


def stored_weight(module: nn.Module) -> StoredTensor:
    """The module's weight as it is stored; ``decode()`` equals the effective weight bit for bit."""
    form = form_of(module)
    if form is None:
        return DenseTensor(as_numpy(cast(Tensor, module.weight)))
    return form.stored(cast(Tensor, cast(Any, module.parametrizations).weight.original))


def plain(model: nn.Module) -> nn.Module:
    """A copy with ordinary layers that hold the effective weights and float inputs: what is exported.

    Tensors that no form changes are the model's own: neither network may be trained while both are used.
    """
    model = sharing_copy(model)
    for _, module in weighted_modules(model):
        drop_form(module)
        drop_input_range(module)
    return model


def round_through(x: Tensor, drawn: bool = False) -> Tensor:
    """Rounded to whole numbers; the gradient passes unchanged (straight-through, 1308.3432).

    Where it is ``drawn`` whether a value goes up or down, the probability of either is such that the mean is the value.
    """
    return cast(Tensor, _StraightThrough.apply(x, drawn))


def masked(weight: Tensor, mask: Tensor | None) -> Tensor:
    """Zero where the mask is not set."""
    # Not a product with the mask: that would leave -0 for negative weights, which is stored as 0.
    return weight if mask is None else weight.masked_fill(~mask, 0.0)


def per_channel(scale: Tensor, weight: Tensor) -> Tensor:
    """The scale of each output channel (out,) in a shape that multiplies the weight (out, ...)."""
    return scale.view(-1, *(1,) * (weight.ndim - 1))


def significant(values: Tensor, bits: int) -> Tensor:
    """The nearest numbers of so many significant bits, of two the even one."""
    if bits == BFLOAT16_BITS:
        return values.bfloat16().float()
    mantissa, exponent = torch.frexp(values)
    return torch.ldexp((mantissa * 2**bits).round() / 2**bits, exponent)


def as_numpy(x: Tensor) -> np.ndarray:
    """A copy of the values."""
    return x.detach().cpu().contiguous().numpy().copy()


class _StraightThrough(autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor, drawn: bool) -> Tensor:
        return (x + torch.rand_like(x)).floor() if drawn else x.round()

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
