"""Layers with a forward pass of their own: whether they compute what they say, and the plain layer that computes the same."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

# Root mean square difference over the outputs' spread: the same products, summed in another order.
TOLERANCE = 5e-6
ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
"""Of torch's convolution and linear function, in their order."""


@dataclass
class Call:
    """One call of a layer.

    Parameters
    ----------
    inputs
        Its arguments.
    output
        What came out.
    products
        The arguments, by name, of each convolution and linear function that it called.
    """

    inputs: tuple[Any, ...]
    output: Any = None
    products: list[Mapping[str, Any]] = field(default_factory=list)


class PaddedConv2d(nn.Conv2d):
    """A convolution that first pads its input by ``pads`` zeros (left, right, top, bottom), not the same on both sides."""

    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, self.pads))


def has_own_forward(module: nn.Module) -> bool:
    """Whether a convolution or linear layer may compute something else than torch's."""
    kind = nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear
    names = [name for name in ("forward", "_conv_forward") if hasattr(kind, name)]
    own = any(getattr(type(module), name) is not getattr(kind, name) or name in vars(module) for name in names)
    hooked = bool(module._forward_pre_hooks or module._forward_hooks)
    return own or hooked or not _has_own_weight(module)


def calls_of(model: nn.Module, layers: Mapping[str, nn.Module], pictures: Tensor) -> dict[str, list[Call]]:
    """The calls of these layers while the network runs on pictures (N, C, H, W), each picture alone."""
    calls: dict[str, list[Call]] = {name: [] for name in layers}
    mode = _Products()

    def opened(name: str, _: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        # Copies: an activation behind the layer may overwrite what it gives or takes.
        inputs = (*arguments, *keywords.values())
        calls[name].append(Call(tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)))
        mode.open.append(calls[name][-1])

    def closed(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        mode.open.pop().output = output.clone() if isinstance(output, Tensor) else output

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.enter_context(_hooked(layer, partial(opened, name), closed))
        stack.enter_context(torch.no_grad())
        for picture in pictures.split(1):
            with mode:
                model(picture.clone())
    return calls


@contextmanager
def _hooked(layer: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> Iterator[None]:
    # Around hooks that the layer has: they are part of what it computes.
    handles = [
        layer.register_forward_pre_hook(before, prepend=True, with_kwargs=True),
        layer.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Products(TorchFunctionMode):
    """Notes the convolutions and linear functions that the calls which are under way make."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[Call] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.open and func in (functional.conv2d, functional.linear):
            told = {**dict(zip(ARGUMENTS, args)), **kwargs}
            self.open[-1].products.append({**told, "input": told["input"].clone()})
        return func(*args, **kwargs)


def why_left_alone(module: nn.Module, calls: Collection[Call]) -> str | None:
    """Why a layer cannot be compressed as what it says it is; ``None`` where it computes that, padding of its own aside."""
    if not all(_is_simple(call) for call in calls):
        return f"{_kind(module)} is called with more than one tensor"
    if not _has_own_weight(module):
        return f"the weight of {_kind(module)} is computed"
    if all(_is_same(_torch_forward(module, call.inputs[0]), call.output) for call in calls):
        return None
    if all(_multiplies_own_weight(module, call) for call in calls):
        return None
    return f"{_kind(module)} computes something else than a {_torch_kind(module).__name__} with its weight and bias"


def plain_layer(module: nn.Module, calls: Collection[Call]) -> nn.Module | None:
    """The layer of torch's own that computes the same in evaluation mode, or ``None``."""
    if not calls or not all(_is_simple(call) for call in calls):
        return None
    for layer in _candidates(module, next(iter(calls))):
        if all(_is_same(_output(layer, call.inputs[0]), call.output) for call in calls):
            return layer.train(module.training)
    return None


def _candidates(module: nn.Module, call: Call) -> Iterator[nn.Module]:
    trainable = any(parameter.requires_grad for parameter in module.parameters())
    if len(call.products) == 1:
        product = call.products[0]
        weight, bias = product["weight"].detach(), product.get("bias")
        layers = _convolutions(module, call) if isinstance(module, nn.Conv2d) else [_linear(weight)]
        for layer in layers:
            yield _filled(layer, weight, bias, trainable)
    if isinstance(module, nn.Linear):
        weight, bias = _affine(module, call)
        yield _filled(_linear(weight), weight, bias, trainable)


def _convolutions(module: nn.Conv2d, call: Call) -> Iterator[nn.Conv2d]:
    """Convolutions without weights that may have made the call: as the layer says, as it called torch's, and padded first."""
    product, x = call.products[0], call.inputs[0]
    weight, groups = product["weight"], product.get("groups", 1)
    sizes: dict[str, Any] = {
        "in_channels": weight.shape[1] * groups,
        "out_channels": len(weight),
        "kernel_size": tuple(weight.shape[2:]),
        "groups": groups,
        "device": "meta",
    }
    told: dict[str, Any] = {name: getattr(module, name) for name in ("stride", "padding", "dilation", "padding_mode")}
    yield nn.Conv2d(**sizes, **told)
    called: dict[str, Any] = {"stride": product.get("stride", 1), "dilation": product.get("dilation", 1)}
    padding = product.get("padding", 0)
    yield nn.Conv2d(**sizes, **called, padding=padding)
    pads = _pads(x, product["input"])
    if pads is None or isinstance(padding, str):
        return
    left, right, top, bottom = pads
    own_y, own_x = padding if isinstance(padding, tuple | list) else (padding, padding)
    if (left, top) == (right, bottom):
        yield nn.Conv2d(**sizes, **called, padding=(own_y + top, own_x + left))
    else:
        padded = PaddedConv2d(**sizes, **called, padding=padding)
        padded.pads = pads
        yield padded


def _pads(x: Tensor, padded: Tensor) -> tuple[int, int, int, int] | None:
    """How many places stand (left, right, top, bottom) of a map ``x`` in ``padded``; ``None`` where it is not so."""
    if x.ndim != 4 or padded.shape[:2] != x.shape[:2]:
        return None
    height, width = x.shape[2:]
    more_y, more_x = padded.shape[2] - height, padded.shape[3] - width
    for top in range(more_y + 1):
        for left in range(more_x + 1):
            if torch.equal(padded[:, :, top : top + height, left : left + width], x):
                return left, more_x - left, top, more_y - top
    return None


def _linear(weight: Tensor) -> nn.Linear:
    return nn.Linear(weight.shape[1], len(weight), device="meta")


def _affine(module: nn.Linear, call: Call) -> tuple[Tensor, Tensor]:
    """Weight (out, in) and bias (out,) that tell what a layer makes of zeros and of each feature alone, if it is affine."""
    size = call.inputs[0].shape[-1]
    with torch.no_grad():
        bias = module(torch.zeros(1, size))[0]
        weight = torch.stack([row - bias for part in torch.eye(size).split(256) for row in module(part)], 1)
    return weight, bias


def _filled(layer: nn.Module, weight: Tensor, bias: Tensor | None, trainable: bool) -> nn.Module:
    values = {"weight": weight, "bias": bias}
    for name, value in values.items():
        made = None if value is None else nn.Parameter(value.detach().clone(), requires_grad=trainable)
        layer.register_parameter(name, made)
    return layer


def _is_simple(call: Call) -> bool:
    return len(call.inputs) == 1 and isinstance(call.inputs[0], Tensor) and isinstance(call.output, Tensor)


def _multiplies_own_weight(module: nn.Module, call: Call) -> bool:
    """Whether the output is the one product of the layer's weight and bias with its input, padded by itself or not."""
    if len(call.products) != 1 or not isinstance(module, nn.Conv2d):
        return False
    product = call.products[0]
    own = product["weight"] is module.weight and product.get("bias") is module.bias
    geometry = (product.get("stride", 1), product.get("dilation", 1), product.get("groups", 1))
    as_told = geometry == (module.stride, module.dilation, module.groups)
    if not own or not as_told or _pads(call.inputs[0], product["input"]) is None:
        return False
    return _is_same(_tried(lambda x: functional.conv2d(**{**product, "input": x}), product["input"]), call.output)


def _torch_forward(module: nn.Module, x: Tensor) -> Tensor | None:
    return _tried(partial(_torch_kind(module).forward, module), x)


def _output(layer: nn.Module, x: Tensor) -> Tensor | None:
    return _tried(layer, x)


def _tried(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor | None:
    try:
        with torch.no_grad():
            return function(x)
    # Shapes that do not fit, in any of torch's words.
    except Exception:
        return None


def _is_same(value: Tensor | None, expected: Tensor) -> bool:
    if value is None or value.shape != expected.shape:
        return False
    spread = float(expected.std(correction=0)) if expected.numel() else 0.0
    return float((value - expected).square().mean().sqrt()) <= TOLERANCE * spread or torch.equal(value, expected)


def _has_own_weight(module: nn.Module) -> bool:
    """Whether the weight is a parameter and not computed from others."""
    return not parametrize.is_parametrized(module) and module._parameters.get("weight") is not None


def _torch_kind(module: nn.Module) -> type[nn.Module]:
    return nn.Conv2d if isinstance(module, nn.Conv2d) else nn.Linear


def _kind(module: nn.Module) -> str:
    kind = type(module)
    name = f"{kind.__module__}.{kind.__qualname__}" if kind.__qualname__ in ("Conv2d", "Linear") else kind.__qualname__
    return f"{name} with its hooks" if module._forward_pre_hooks or module._forward_hooks else name
