"""Layers that a network looks into beside calling them: several layers in their place do not have what it looks for."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class _StandIn(nn.Sequential):
    """A layer behind one that has none of its attributes; which the network asks for is noted."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.read: dict[str, None] = {}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # While it is made it has no layer yet.
            if "read" not in vars(self):
                raise
            found = getattr(self[0], name)
        self.read[name] = None
        return found


def attributes_read(model: nn.Module, example: Tensor, names: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    """Layer -> attributes that the network's forward pass reads of it, of those that a sequence of layers lacks.

    Parameters
    ----------
    model
        In evaluation mode; it is not changed.
    example
        (1, C, H, W).
    names
        Of its layers.
    """
    tensors = (*model.parameters(), *model.buffers())
    trial = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    layers = {trial.get_submodule(name): name for name in names if name}
    stand_ins = {layer: _StandIn(layer) for layer in layers}
    for place, module in list(trial.named_modules(remove_duplicate=False)):
        if module in stand_ins:
            parent, _, child = place.rpartition(".")
            setattr(trial.get_submodule(parent), child, stand_ins[module])
    # A network may refuse a layer by its type, in any way; what it has read until then is known.
    with torch.no_grad(), contextlib.suppress(Exception):
        trial(example)
    return {name: tuple(stand_ins[layer].read) for layer, name in layers.items()}
