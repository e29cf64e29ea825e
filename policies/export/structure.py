"""What a trace depends on beside the values of the tensors: two networks alike in it have the same traced graph."""

from __future__ import annotations

import enum
import functools
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import fields, is_dataclass
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any

import torch
from torch import Tensor, nn

from ..state import to_bytes

# Attributes that count channels: the tensors' shapes say the same.
COUNTS = frozenset(
    {"in_channels", "out_channels", "in_features", "out_features", "num_features", "num_channels", "num_parameters"}
)
# Attributes of every module that no forward pass reads.
UNREAD = frozenset(
    {
        "_parameters",
        "_buffers",
        "_modules",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
    }
)
PLAIN = (NoneType, bool, int, float, complex, str, bytes, type, FunctionType, BuiltinFunctionType)
OPAQUE = (*PLAIN, torch.dtype, torch.device, torch.layout, torch.memory_format, enum.Enum)


def structure(model: nn.Module) -> Hashable | None:
    """Modules, their settings and the names of their tensors, without channel counts; ``None`` where it is not known."""
    try:
        return tuple(_modules(model))
    except _UnknownSettingError:
        return None


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers in the order of ``state_dict``; of several names for one, the first."""
    found: dict[int, tuple[str, Tensor]] = {}
    for prefix, module in model.named_modules():
        passing = module._non_persistent_buffers_set
        kept = {leaf: buffer for leaf, buffer in module._buffers.items() if leaf not in passing}
        for leaf, tensor in [*module._parameters.items(), *kept.items()]:
            if tensor is not None:
                found.setdefault(id(tensor), (f"{prefix}.{leaf}" if prefix else leaf, tensor))
    return dict(found.values())


class _UnknownSettingError(Exception):
    """An attribute that cannot be compared."""


def _modules(model: nn.Module) -> Iterator[Hashable]:
    seen: dict[int, int] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        first = seen.setdefault(id(module), len(seen))
        settings = [
            (key, _frozen(value)) for key, value in vars(module).items() if key not in UNREAD and key not in COUNTS
        ]
        yield name, first, type(module), tuple(settings)
        yield from _tensors(module, seen)


def _tensors(module: nn.Module, seen: dict[int, int]) -> Iterator[Hashable]:
    for leaf, tensor in [*module._parameters.items(), *module._buffers.items()]:
        if tensor is None:
            yield leaf, None
        elif leaf in module._non_persistent_buffers_set:
            # Traced as a constant.
            yield leaf, _frozen(tensor)
        else:
            yield leaf, seen.setdefault(id(tensor), len(seen)), tensor.dtype, tensor.ndim


def _frozen(value: Any) -> Hashable:
    """The value in a form that can be compared and hashed."""
    kind = type(value)
    if isinstance(value, OPAQUE):
        return kind, value
    if isinstance(value, Tensor):
        return kind, value.dtype, tuple(value.shape), to_bytes(value)
    if kind in (dict, OrderedDict):
        return kind, tuple((key, _frozen(entry)) for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return kind, tuple(map(_frozen, value))
    if kind in (set, frozenset):
        return kind, frozenset(map(_frozen, value))
    if kind is functools.partial:
        return kind, value.func, _frozen(value.args), _frozen(value.keywords)
    if is_dataclass(value):
        return kind, tuple(_frozen(getattr(value, entry.name)) for entry in fields(value))
    raise _UnknownSettingError
