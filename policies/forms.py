"""Weights that keep their structure while they train: pruned, shared or uniformly quantized.

Each form is a parametrization (``torch.nn.utils.parametrize``) of a layer's ``weight``: the layer's forward pass computes
with the effective weight, gradients reach only what is free (kept weights, centroids, latent values), so zeros stay zero
and shared weights stay shared under any optimizer. ``stored`` gives the same values, bit for bit, as they are stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .coding.tensors import CodebookTensor, DenseTensor, SparseTensor, StoredTensor, UniformTensor
from .copying import sharing_copy

WEIGHTED = (nn.Conv2d, nn.Linear)
INPUT_RANGE = ("input_scale", "input_zero_point")


class Form(Protocol):
    """A parametrization of a weight."""

    mask: Tensor | None

    def stored(self, original: Tensor) -> StoredTensor:
        """The form on disk, from the tensor that is trained."""
        ...


class MaskedWeight(nn.Module):
    """``weight = original * mask``."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.bool())

    def forward(self, original: Tensor) -> Tensor:
        return _masked(original, self.mask)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return _masked(weight, self.mask)

    def stored(self, original: Tensor) -> StoredTensor:
        mask, values = _numpy(self.mask), _numpy(original)
        return SparseTensor(mask, values[mask])


class SharedWeight(nn.Module):
    """``weight[i] = centroids[codes[i]]``, zero where the mask is not set (1510.00149, section 3).

    The trained tensor is the codebook (k,), so the gradient of a centroid is the sum over the weights that share it.
    """

    codes: Tensor
    mask: Tensor | None

    def __init__(self, codes: Tensor, centroids: Tensor, mask: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("codes", codes.to(torch.int32))
        self.register_buffer("mask", None if mask is None else mask.bool())
        self._centroids = centroids.detach().float().clone()

    def forward(self, centroids: Tensor) -> Tensor:
        weight = centroids[self.codes]
        return _masked(weight, self.mask)

    def right_inverse(self, _: Tensor) -> Tensor:
        return self._centroids

    def stored(self, original: Tensor) -> StoredTensor:
        mask = None if self.mask is None else _numpy(self.mask)
        codes = _numpy(self.codes)
        kept = codes.reshape(-1) if mask is None else codes[mask]
        return CodebookTensor(mask, kept, _numpy(original), tuple(codes.shape))


class UniformWeight(nn.Module):
    """``weight = clamp(round(original / scale)) * scale``, a scale per output channel, symmetric, 2 to 8 bit.

    The gradient passes the rounding unchanged (straight-through, 1308.3432) and is zero where the clamp holds.
    """

    scale: Tensor
    mask: Tensor | None

    def __init__(self, scale: Tensor, bits: int, mask: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("scale", scale.detach().float())
        self.register_buffer("mask", None if mask is None else mask.bool())
        self.bits = bits

    def codes(self, original: Tensor) -> Tensor:
        """Integer-valued float codes, the weight's shape."""
        limit = 2 ** (self.bits - 1) - 1
        codes = _round(original / _per_channel(self.scale, original)).clamp(-limit, limit)
        # Integers have no negative zero: adding 0 turns -0 into 0.
        return _masked(codes, self.mask) + 0.0

    def forward(self, original: Tensor) -> Tensor:
        return self.codes(original) * _per_channel(self.scale, original)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight

    def stored(self, original: Tensor) -> StoredTensor:
        return UniformTensor(_numpy(self.codes(original)).astype(np.int8), _numpy(self.scale), self.bits)


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


def drop_form(module: nn.Module) -> None:
    """Make the weight an ordinary parameter with its effective value."""
    if form_of(module) is not None:
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
        return DenseTensor(_numpy(cast(Tensor, module.weight)))
    return form.stored(cast(Tensor, cast(Any, module.parametrizations).weight.original))


def set_input_range(module: nn.Module, low: float, high: float) -> None:
    """Quantize the module's input to unsigned 8 bit over a range that is widened to hold 0 (1712.05877, section 2.1)."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255.0, 1e-8)
    if not is_input_quantized(module):
        module.register_forward_pre_hook(_quantize_input)
    module.register_buffer("input_scale", torch.tensor(scale))
    module.register_buffer("input_zero_point", torch.tensor(round(-low / scale), dtype=torch.int32))


def drop_input_range(module: nn.Module) -> None:
    """Make the module compute on float inputs again."""
    if is_input_quantized(module):
        del module.input_scale, module.input_zero_point
        hooks = module._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if hook is _quantize_input]:
            del hooks[key]


def is_input_quantized(module: nn.Module) -> bool:
    """Whether the module computes on 8-bit inputs."""
    return hasattr(module, "input_scale")


def plain(model: nn.Module) -> nn.Module:
    """A copy with ordinary layers that hold the effective weights and float inputs: what is exported.

    Tensors that no form changes are the model's own: neither network may be trained while both are used.
    """
    model = sharing_copy(model)
    for _, module in weighted_modules(model):
        drop_form(module)
        drop_input_range(module)
    return model


def _quantize_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    scale, zero_point = cast(Tensor, module.input_scale), cast(Tensor, module.input_zero_point)
    return (_QuantizeInput.apply(inputs[0], float(scale), int(zero_point)), *inputs[1:])


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(_: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _QuantizeInput(torch.autograd.Function):
    """Rounds to the grid of unsigned 8 bit; the gradient passes inside the range.

    A few times faster than ``torch.fake_quantize_per_tensor_affine``, which dominated the training of small networks.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, zero_point: int) -> Tensor:
        low, high = -zero_point * scale, (255 - zero_point) * scale
        ctx.save_for_backward(x)
        ctx.range = (low, high)
        return x.mul(1 / scale).round_().clamp_(-zero_point, 255 - zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        low, high = ctx.range
        return grads[0] * ((x >= low) & (x <= high)), None, None


def _round(x: Tensor) -> Tensor:
    return cast(Tensor, _StraightThrough.apply(x))


def _masked(weight: Tensor, mask: Tensor | None) -> Tensor:
    # Not a product with the mask: that would leave -0 for negative weights, which is stored as 0.
    return weight if mask is None else weight.masked_fill(~mask, 0.0)


def _per_channel(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *(1,) * (weight.ndim - 1))


def _numpy(x: Tensor) -> np.ndarray:
    return x.detach().cpu().contiguous().numpy().copy()
