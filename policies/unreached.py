"""Parts of a network that its forward pass does not reach in evaluation mode, as auxiliary heads, and their stand-ins."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Unreached(nn.Module):
    """In the place of a module that only training reached: what comes in goes out."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return next(iter((*inputs, *named.values())), None)


def unreached_parts(model: nn.Module, example: Tensor) -> tuple[str, ...]:
    """What no operator of the forward pass reads on an example (1, C, H, W).

    Names of the largest modules that hold tensors none of which is read, and of such parameters and stored buffers of
    other modules; the tensors of layers and norms go with these.
    """
    read = tensors_read(model, example)
    parts: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{part}.") for part in parts):
            continue
        tensors = [*module.parameters(), *module.buffers()]
        if name and tensors and not any(id(tensor) in read for tensor in tensors):
            parts.append(name)
        elif not isinstance(module, (nn.Conv2d, nn.Linear, _BatchNorm, nn.LayerNorm, nn.GroupNorm)):
            parts += [f"{name}.{leaf}" if name else leaf for leaf, x in _own(module).items() if id(x) not in read]
    return tuple(parts)


def tensors_read(model: nn.Module, example: Tensor) -> set[int]:
    """The ``id`` of each of the network's tensors that an operator reads in the forward pass on an example (1, C, H, W)."""
    mode = _Reads(model)
    with torch.no_grad(), mode:
        model(example.clone())
    return mode.read


def left_out(model: nn.Module, names: Sequence[str], example: Tensor) -> tuple[str, ...]:
    """Take these parts out, in place: a stand-in for a module, ``None`` for a tensor.

    Returns
    -------
    tuple
        Names of the parts that are gone: those without which the network does not run, or not train, are kept.
    """
    batch = torch.cat([example, example.flip(-1)])
    modes = [training for training in (False, True) if names and _runs(model, batch, training)]
    gone = []
    for name in names:
        place, _, leaf = name.rpartition(".")
        owner = model.get_submodule(place)
        tables: tuple[dict[str, Any], ...] = (owner._modules, owner._parameters, owner._buffers)
        table = next(table for table in tables if leaf in table)
        part = table[leaf]
        table[leaf] = Unreached().train(model.training) if isinstance(part, nn.Module) else None
        if all(_runs(model, batch, training) for training in modes):
            gone.append(name)
        else:
            table[leaf] = part
    return tuple(gone)


class _Reads(TorchDispatchMode):
    """Notes which tensors of a network any operator reads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
        self.read: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.read.update(id(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and id(x) in self.tensors)
        return func(*args, **kwargs)


def _own(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and stored buffers."""
    passing = module._non_persistent_buffers_set
    named = {**module._parameters, **{leaf: x for leaf, x in module._buffers.items() if leaf not in passing}}
    return {leaf: tensor for leaf, tensor in named.items() if tensor is not None}


def _runs(model: nn.Module, batch: Tensor, training: bool) -> bool:
    """Whether the forward pass runs, on a copy."""
    trial = copy.deepcopy(model)
    trial.train(training)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trial(batch.clone())
    # The user's own code, which may raise anything.
    except Exception:
        return False
    return True
