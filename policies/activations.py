"""The ReLUs that stand between two layers and nowhere else: those that can be left out one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Activation:
    """A ReLU between two layers.

    Parameters
    ----------
    module
        Name of the ``nn.ReLU``, which one forward pass calls once.
    layer
        The layer whose outputs it takes as they are.
    reader
        The layer that takes its outputs as they are; empty where there is none, as behind a pooling or a flatten.
    """

    module: str
    layer: str
    reader: str = ""


def find_activations(model: nn.Module, example: Tensor, layers: Collection[str]) -> tuple[Activation, ...]:
    """The ReLUs behind these layers, in the order of the forward pass; the network is run once on an example (1, C, H, W).

    A tensor is known by its identity, so that what a function does in between is never overlooked.
    """
    seen = _Seen()
    modules = {name: model.get_submodule(name) for name in layers}
    relus = {name: module for name, module in model.named_modules() if type(module) is nn.ReLU}
    hooks = [module.register_forward_hook(seen.layer(name), with_kwargs=False) for name, module in modules.items()]
    hooks += [module.register_forward_pre_hook(seen.reader(name)) for name, module in modules.items()]
    for name, module in relus.items():
        hooks += [module.register_forward_pre_hook(seen.before(name)), module.register_forward_hook(seen.after(name))]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(
        Activation(name, made, seen.read.get(name, ""))
        for name, made in seen.made.items()
        if seen.calls[name] == 1 and seen.calls[made] == 1
    )


class _Seen:
    """Who made and who read each tensor of a forward pass; tensors are held, so that no two have one identity."""

    def __init__(self) -> None:
        self.held: list[Tensor] = []
        self.maker: dict[int, str] = {}
        self.activated: dict[int, str] = {}
        self.calls: Counter[str] = Counter()
        self.made: dict[str, str] = {}
        self.read: dict[str, str] = {}

    def layer(self, name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            self.calls[name] += 1
            self.held.append(output)
            self.maker[id(output)] = name

        return hook

    def reader(self, name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            relu = self.activated.get(id(arguments[0])) if arguments else None
            if relu is not None:
                # With two readers it stands between no two layers.
                self.read[relu] = "" if relu in self.read else name

        return hook

    def before(self, name: str) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            self.calls[name] += 1
            made = self.maker.get(id(arguments[0])) if arguments else None
            if made is not None:
                self.made[name] = made

        return hook

    def after(self, name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            self.held.append(output)
            # In place, the layer's own tensor is the activation's from now on.
            self.maker.pop(id(output), None)
            self.activated[id(output)] = name

        return hook
