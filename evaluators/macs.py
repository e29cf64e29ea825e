"""Multiply-accumulates, parameters and peak activation memory of a network, counted operation by operation."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# Operations that multiply and accumulate nothing: they move, select, compare, scale or average.
_WITHOUT_MACS = frozenset(
    {
        "_adaptive_avg_pool2d",
        "_log_softmax",
        "_native_batch_norm_legit_no_training",
        "_prelu_kernel",
        "_reshape_alias",
        "_safe_softmax",
        "_softmax",
        "_to_copy",
        "_unsafe_view",
        "_upsample_nearest_exact2d",
        "abs",
        "adaptive_avg_pool2d",
        "adaptive_max_pool2d",
        "add",
        "add_",
        "affine_grid_generator",
        "alias",
        "amax",
        "any",
        "arange",
        "argmax",
        "argmin",
        "as_strided",
        "as_strided_",
        "avg_pool2d",
        "avg_pool3d",
        "batch_norm",
        "bernoulli_",
        "bitwise_and",
        "bitwise_not",
        "cat",
        "ceil",
        "celu",
        "channel_shuffle",
        "clamp",
        "clamp_",
        "clamp_max",
        "clamp_min",
        "clone",
        "constant_pad_nd",
        "contiguous",
        "copy_",
        "cos",
        "cudnn_batch_norm",
        "cumsum",
        "detach",
        "div",
        "div_",
        "dropout",
        "elu",
        "empty",
        "empty_like",
        "eq",
        "erf",
        "exp",
        "expand",
        "expm1",
        "fill_",
        "flatten",
        "flip",
        "floor",
        "floor_divide",
        "full",
        "gather",
        "ge",
        "gelu",
        "glu",
        "gt",
        "hardshrink",
        "hardsigmoid",
        "hardsigmoid_",
        "hardswish",
        "hardswish_",
        "hardtanh",
        "hardtanh_",
        "index",
        "index_select",
        "le",
        "leaky_relu",
        "leaky_relu_",
        "lift_fresh",
        "linalg_vector_norm",
        "log",
        "log1p",
        "log_sigmoid_forward",
        "logsumexp",
        "lt",
        "masked_fill",
        "max",
        "max_pool2d",
        "max_pool2d_with_indices",
        "maximum",
        "mean",
        "min",
        "minimum",
        "mish",
        "mul",
        "mul_",
        "native_batch_norm",
        "native_dropout",
        "native_group_norm",
        "native_layer_norm",
        "ne",
        "neg",
        "new_empty",
        "new_zeros",
        "ones",
        "ones_like",
        "permute",
        "pixel_shuffle",
        "pixel_unshuffle",
        "pow",
        "reciprocal",
        "reflection_pad2d",
        "relu",
        "relu_",
        "repeat",
        "replication_pad2d",
        "reshape",
        "roll",
        "round",
        "rrelu_with_noise",
        "rsqrt",
        "rsub",
        "scalar_tensor",
        "select",
        "sigmoid",
        "sigmoid_",
        "sign",
        "silu",
        "silu_",
        "sin",
        "slice",
        "softplus",
        "softshrink",
        "sort",
        "split",
        "split_with_sizes",
        "sqrt",
        "squeeze",
        "stack",
        "std",
        "sub",
        "sub_",
        "sum",
        "t",
        "tanh",
        "tanh_",
        "threshold",
        "topk",
        "transpose",
        "trunc",
        "unbind",
        "unfold",
        "unsqueeze",
        "upsample_bicubic2d",
        "upsample_bilinear2d",
        "upsample_nearest2d",
        "var",
        "var_mean",
        "view",
        "where",
        "zeros",
        "zeros_like",
    }
)


@dataclass(frozen=True)
class Profile:
    """What one forward pass of one picture takes.

    Parameters
    ----------
    macs
        Multiply-accumulates, those of 8-bit layers included.
    int8_macs
        Multiply-accumulates of the layers that compute on 8-bit integers.
    params
        Parameters that are not zero; all of them where there are no weights yet.
    activations
        Numbers written by all operations, those of pooling's indices left out: no deployed kernel writes them.
    peak_memory_bytes
        Largest sum of activations alive at one time, float32.
    unknown_operations
        Operations whose cost is not known; never counted as 0 in silence.
    """

    macs: int
    int8_macs: int
    params: int
    activations: int
    peak_memory_bytes: int
    unknown_operations: tuple[str, ...]


def profile(model: nn.Module, example: Tensor, int8_layers: Collection[str] = ()) -> Profile:
    """Count one forward pass in evaluation mode.

    Parameters
    ----------
    model
        Plain network (effective weights). One on torch's ``meta`` device, which has no weights yet, is counted from its
        shapes without computing anything: a network of any size in milliseconds.
    example
        (1, C, H, W), on the network's device.
    int8_layers
        Names of the layers that the exported file computes in 8 bit.
    """
    counter = _Counter()
    counter.ignore(example, *model.parameters(), *model.buffers())
    with torch.no_grad(), _watching(model, int8_layers, counter), counter:
        model(example)
    unknown = tuple(sorted(counter.unknown))
    params = nonzero_parameters(model)
    return Profile(counter.macs, counter.int8_macs, params, counter.written, counter.peak, unknown)


def nonzero_parameters(model: nn.Module) -> int:
    """Parameters that are not zero."""
    return sum(_present(parameter) for parameter in model.parameters())


@dataclass
class _Counter(TorchDispatchMode):
    macs: int = 0
    int8_macs: int = 0
    written: int = 0
    live: int = 0
    peak: int = 0
    depth: int = 0
    unknown: set[str] = field(default_factory=set)
    _seen: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in flop_registry:
            macs = int(flop_registry[packet](*args, **(kwargs or {}), out_val=out)) // 2
            self.macs += macs
            self.int8_macs += macs if self.depth else 0
        elif packet.__name__ == "_scaled_dot_product_flash_attention_for_cpu":
            self.macs += _attention_macs(*args[:3])
        elif packet.__name__ not in _WITHOUT_MACS:
            self.unknown.add(packet.__name__)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self._track(tensor)
        return out

    def ignore(self, *tensors: Tensor) -> None:
        """Leave the input and the network's own tensors out of the activations."""
        for tensor in tensors:
            self._seen.add(tensor.untyped_storage()._cdata)

    def _track(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        self.written += tensor.numel()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


def _present(parameter: Tensor) -> int:
    return parameter.numel() if parameter.is_meta else int(torch.count_nonzero(parameter))


def _attention_macs(query: Tensor, key: Tensor, value: Tensor) -> int:
    """Of the two products of attention: ``(..., L, E) (..., S, E)^T`` and ``(..., L, S) (..., S, V)``."""
    return query.numel() * key.shape[-2] + query.numel() // query.shape[-1] * value.shape[-2] * value.shape[-1]


@contextmanager
def _watching(model: nn.Module, names: Collection[str], counter: _Counter) -> Iterator[None]:
    def enter(*_: Any) -> None:
        counter.depth += 1

    def leave(*_: Any) -> None:
        counter.depth -= 1

    handles = []
    for name in names:
        module = model.get_submodule(name)
        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
