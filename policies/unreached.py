"""Parts of a network that its forward pass does not reach in evaluation mode, as auxiliary heads, and their stand-ins."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Unreached(nn.Module):
    """In the place of a module that only training reached: what comes in goes out."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return next(iter((*inputs, *named.values())), None)


def unreached_modules(model: nn.Module, example: Tensor) -> tuple[str, ...]:
    """The largest modules that hold tensors none of which the forward pass reads on an example (1, C, H, W)."""
    read = tensors_read(model, example)
    top: list[str] = []
    for name, module in model.named_modules():
        tensors = [*module.parameters(), *module.buffers()]
        inside = any(name.startswith(f"{other}.") for other in top)
        if name and tensors and not inside and not any(id(tensor) in read for tensor in tensors):
            top.append(name)
    return tuple(top)


def tensors_read(model: nn.Module, example: Tensor) -> set[int]:
    """The ``id`` of each of the network's tensors that an operator reads in the forward pass on an example (1, C, H, W)."""
    mode = _Reads(model)
    with torch.no_grad(), mode:
        model(example.clone())
    return mode.read


def left_out(model: nn.Module, names: Sequence[str], example: Tensor) -> tuple[str, ...]:
    """Put stand-ins in the place of these modules, in place; those without which the network does not train are kept.

    Returns
    -------
    tuple
        Names of the modules that are gone.
    """
    batch = torch.cat([example, example.flip(-1)])
    could_train = _trains(model, batch)
    gone = []
    for name in names:
        parent, _, child = name.rpartition(".")
        owner = model.get_submodule(parent)
        module = owner._modules[child]
        owner._modules[child] = Unreached().train(model.training)
        if could_train and not _trains(model, batch):
            owner._modules[child] = module
        else:
            gone.append(name)
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


def _trains(model: nn.Module, batch: Tensor) -> bool:
    """Whether the forward pass runs in training mode."""
    trial = copy.deepcopy(model)
    trial.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            trial(batch)
    # The user's own code, which may raise anything.
    except Exception:
        return False
    return True
