"""Layers that compute on the signs of their inputs."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, autograd, nn
from torch.nn import functional

from ..errors import PolicyError


def set_binary_input(module: nn.Module) -> None:
    """Make an ordinary layer compute on the signs of its inputs, in place (XNOR-Net, 1603.05279, eq. 11).

    Raises
    ------
    PolicyError
        For a layer that is no convolution or linear layer of torch's own.
    """
    if is_input_binary(module):
        return
    kind = _BINARY.get(type(module))
    if kind is None:
        raise PolicyError(
            f"binary inputs: expected a torch Conv2d or Linear, got {type(module).__name__}; leave it out for this layer"
        )
    module.__class__ = kind


def is_input_binary(module: nn.Module) -> bool:
    """Whether the module computes on the signs of its inputs."""
    return isinstance(module, BinaryInputLinear | BinaryInputConv2d)


class BinaryInputLinear(nn.Linear):
    """``y = (sign(x) W^T) K + b`` with ``K = mean|x|`` over the features; the sign of 0 is 0, as in the authors' code."""

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().mean(-1, keepdim=True)
        y = functional.linear(_sign(x), self.weight) * scale
        return y if self.bias is None else y + self.bias


class BinaryInputConv2d(nn.Conv2d):
    """``y = (sign(x) * W) K + b``, where ``K`` is the mean of ``|x|`` over the channels and the kernel's window.

    ``K`` has the geometry of the convolution: its stride and its padding, of which zeros count as zeros.
    """

    def forward(self, x: Tensor) -> Tensor:
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        pads = self._reversed_padding_repeated_twice
        sizes = x.abs().mean(1, keepdim=True)
        if any(pads):
            sizes = functional.pad(sizes, pads, mode)
        stride = cast(tuple[int, int], self.stride)
        scale = functional.avg_pool2d(sizes, cast(tuple[int, int], self.kernel_size), stride)
        y = self._conv_forward(_sign(x), self.weight, None) * scale
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)


_BINARY: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: BinaryInputLinear, nn.Conv2d: BinaryInputConv2d}


def _sign(x: Tensor) -> Tensor:
    # The exporter knows the sign, but no function with a gradient of its own.
    return x.sign() if torch.onnx.is_in_onnx_export() else cast(Tensor, _SignThrough.apply(x))


class _SignThrough(autograd.Function):
    """The sign; the gradient passes where ``|x| <= 1`` (1603.05279, section 3.1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * (x.abs() <= 1)
