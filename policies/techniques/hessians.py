"""What the techniques that use a layer's Hessian share: which layers have one, measuring it, setting what was solved for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, cast, get_args, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from .. import forms
from ..errors import PolicyError
from ..second_order import Pruning, hessian_of_calls
from ..watching import watching
from .base import Calibration, LayerInfo

Rounding = Literal["nearest", "second_order"]


@runtime_checkable
class SecondOrder(Protocol):
    """A technique that may want the layer's Hessian, for which a single batch of inputs is too little."""

    @property
    def second_order(self) -> bool:
        """Whether it does."""
        ...


def require_rounding(technique: str, rounding: object, known: Sequence[str] = get_args(Rounding)) -> None:
    """Refuse an unknown kind of rounding.

    Raises
    ------
    PolicyError
        Naming the technique and the kinds.
    """
    if rounding not in known:
        raise PolicyError(f"{technique}: expected rounding {' or '.join(known)}, got {rounding!r}")


def hessian_reason(layer: LayerInfo) -> str | None:
    """Why a layer has no single Hessian that its inputs tell, or ``None``."""
    if layer.groups != 1:
        return f"'{layer.name}' has {layer.groups} groups, each with inputs and a Hessian of its own"
    if layer.kind == "conv2d" and _output_shape(layer) != layer.output_shape:
        return f"'{layer.name}' pads its input in a way that its stride, padding and dilation do not tell"
    return None


def layer_hessians(
    technique: str, module: nn.Module, layers: Sequence[nn.Module], calibration: Calibration | None
) -> list[Tensor]:
    """The Hessian (d, d) of each of the module's layers while the calibration inputs (N, ...) pass through the module.

    Raises
    ------
    PolicyError
        Without inputs, for grouped convolutions, and for layers that do more than torch's own.
    """
    if calibration is None or calibration.inputs.numel() == 0:
        raise PolicyError(f"{technique}: second-order work needs calibration inputs of the layer, got none")
    inputs: dict[nn.Module, list[Tensor]] = {layer: [] for layer in layers}

    def record(layer: nn.Module, x: Tensor) -> None:
        inputs[layer].append(x)

    for layer in layers:
        if type(layer).forward not in (nn.Conv2d.forward, nn.Linear.forward):
            kind = type(layer).__name__
            raise PolicyError(
                f"{technique}: expected a torch Conv2d or Linear, got {kind}; leave it out for this layer"
            )
    with watching({layer: layer for layer in layers}, record), torch.no_grad():
        for call in calibration.calls:
            module(call.inputs)
    return [_remembered(layer, tuple(inputs[layer])) for layer in layers]


# Tensors compare element by element, so that only their identity can be a key.
_known: Any = WeakIdKeyDictionary()


def _remembered(layer: nn.Module, calls: tuple[Tensor, ...]) -> Tensor:
    """The Hessian, measured once for the inputs of the calls as long as the first's are kept: a bank asks for each variant."""
    geometry = [getattr(layer, name, None) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")]
    known = _known.setdefault(calls[0], {})
    key = (type(layer), *geometry, *map(id, calls[1:]))
    if key not in known:
        # The later calls' tensors are held, so that their ids stay theirs.
        known[key] = calls[1:], hessian_of_calls(layer, calls)
    hessian: Tensor = known[key][1]
    return hessian


# Of the layer that was pruned last alone: a bank makes one layer's variants after the other.
_pruning: list[tuple[Tensor, Pruning]] = []


def pruned(weight: Tensor, hessian: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Mask and weights as ``second_order.prune`` has them; its steps are taken once for all variants of a layer."""
    if not (_pruning and _pruning[0][0] is hessian and _pruning[0][1].is_of(weight)):
        _pruning[:] = [(hessian, Pruning(weight, hessian))]
    return _pruning[0][1].to(keep)


def set_weight(layer: nn.Module, weight: Tensor) -> None:
    """Give the layer an ordinary weight of these values, in place of the form it may have."""
    forms.drop_form(layer)
    # A new parameter: the old one may be shared with the network that the layer was copied from.
    layer.weight = nn.Parameter(weight, requires_grad=cast(Tensor, layer.weight).requires_grad)


def _output_shape(layer: LayerInfo) -> tuple[int, ...]:
    sizes = []
    for axis in (0, 1):
        reach = layer.dilation[axis] * (layer.weight_shape[2 + axis] - 1)
        same = reach if layer.padding == "same" else 0
        padded = same if isinstance(layer.padding, str) else 2 * layer.padding[axis]
        sizes.append((layer.input_shape[1 + axis] + padded - reach - 1) // layer.stride[axis] + 1)
    return (layer.weight_shape[0], *sizes)
