"""Copies of a network that share its tensors, and modules put in place of others."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

UNCHANGING = frozenset(
    {NoneType, bool, int, float, complex, str, bytes, type, FunctionType, BuiltinFunctionType, torch.dtype, torch.Size}
)


def sharing_copy(model: nn.Module) -> nn.Module:
    """What ``copy.deepcopy`` makes, except that parameters and buffers are the model's own, in a fraction of the time."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    modules = list(model.modules())
    if not all(_is_copied_by_its_attributes(module) for module in modules):
        return copy.deepcopy(model, memo)
    for module in modules:
        memo[id(module)] = module.__class__.__new__(module.__class__)
    for module in modules:
        attributes = nn.Module.__getstate__(module)
        for name, value in attributes.items():
            if type(value) not in UNCHANGING:
                attributes[name] = _copied(value, memo)
        memo[id(module)].__dict__.update(attributes)
    made: nn.Module = memo[id(model)]
    return made


def private_copy(model: nn.Module) -> nn.Module:
    """What ``copy.deepcopy`` makes, of networks too whose modules hold tensors that were computed with gradients."""
    return copy.deepcopy(model, copies_of_computed(model))


def copies_of_computed(model: nn.Module) -> dict[int, Any]:
    """Return copies by identity, as ``copy.deepcopy`` takes them, of the tensors that a forward pass left in attributes.

    Such are the weights that hooks of ``weight_norm`` and of pruning leave behind. They are part of a graph of autograd, which
    torch does not copy.
    """
    return {id(x): x.detach().clone() for module in model.modules() for x in _computed(vars(module).values())}


def _computed(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Tensors in attributes (also in lists and mappings of them) that autograd computed."""
    for value in values:
        if isinstance(value, torch.Tensor):
            if not value.is_leaf:
                yield value
        elif isinstance(value, Mapping):
            yield from _computed(value.values())
        elif isinstance(value, list | tuple):
            yield from _computed(value)


def _is_copied_by_its_attributes(module: nn.Module) -> bool:
    kind = type(module)
    # A parametrized layer has a class of its own, whose methods for copying do what is done here.
    return _has_no_own_copying(kind.__bases__[0] if parametrize.is_parametrized(module) else kind)


@functools.cache
def _has_no_own_copying(kind: type[nn.Module]) -> bool:
    if kind.__getstate__ is not nn.Module.__getstate__ or hasattr(kind, "__deepcopy__"):
        return False
    if kind.__reduce__ is not object.__reduce__ or kind.__reduce_ex__ is not object.__reduce_ex__:
        return False
    # Torch's own only fill in attributes that old files lack.
    return kind.__setstate__.__module__.startswith("torch.nn.modules.")


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in UNCHANGING:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind is dict or kind is OrderedDict:
        made = memo[id(value)] = kind()
        # Most of a module's tables are hooks that nobody registered.
        if value:
            for name, entry in value.items():
                made[name] = _copied(entry, memo)
        return made
    if kind is list:
        entries = memo[id(value)] = []
        entries.extend(_copied(entry, memo) for entry in value)
        return entries
    if (kind is tuple or kind is set) and UNCHANGING.issuperset(map(type, value)):
        return kind(value)
    return copy.deepcopy(value, memo)


def with_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> nn.Module:
    """A copy with some modules replaced by copies of the given ones.

    Other layers share the network's tensors; batch norms are copied, since their statistics are to be estimated anew.
    """
    own = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)} | dict(modules)
    out = sharing_copy(model)
    places: dict[nn.Module, list[str]] = {}
    for place, found in out.named_modules(remove_duplicate=False):
        places.setdefault(found, []).append(place)
    for name, module in own.items():
        made = copy.deepcopy(module) if isinstance(module, _BatchNorm) else sharing_copy(module)
        for place in places[out.get_submodule(name)] if name else []:
            parent, _, child = place.rpartition(".")
            setattr(out.get_submodule(parent), child, made)
    return out


def put_in_place(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put the module where the named one stands: under every name, since the forward pass may use any of them."""
    old = model.get_submodule(name)
    if module is old:
        return
    for place in [place for place, found in model.named_modules(remove_duplicate=False) if found is old]:
        parent, _, child = place.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
