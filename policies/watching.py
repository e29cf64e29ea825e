"""Inputs of a network's layers, seen while it runs: of every call, where a forward pass calls a layer more than once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Key = TypeVar("Key")
"""What a module is known by: its name, or itself."""


@contextmanager
def watching(modules: Mapping[Key, nn.Module], see: Callable[[Key, Tensor], None]) -> Iterator[None]:
    """Tell ``see`` a module's key and its first input whenever it is called."""

    def tell(key: Key, _: nn.Module, arguments: tuple[Any, ...]) -> None:
        see(key, arguments[0])

    handles = [module.register_forward_pre_hook(partial(tell, key)) for key, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def feature_means(
    model: nn.Module, pictures: Tensor, names: Collection[str], of: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """Average something of each input feature (in,) of the named layers over pictures, positions and calls.

    Parameters
    ----------
    pictures
        (N, C, H, W), run in one pass.
    of
        From a call's features (in, positions) to what is averaged, of the same shape.
    """
    layers = {name: model.get_submodule(name) for name in names}
    means: dict[str, list[Tensor]] = {name: [] for name in layers}
    positions: dict[str, list[int]] = {name: [] for name in layers}

    def record(name: str, x: Tensor) -> None:
        features = x.transpose(0, 1 if isinstance(layers[name], nn.Conv2d) else -1).flatten(1)
        means[name].append(of(features).mean(1))
        positions[name].append(features.shape[1])

    with watching(layers, record), torch.no_grad():
        model(pictures)
    return {name: _weighted(calls, positions[name]) for name, calls in means.items() if calls}


def _weighted(means: list[Tensor], counts: list[int]) -> Tensor:
    """The mean of all from the means of parts of so many."""
    if len(means) == 1:
        return means[0]
    shares = torch.tensor(counts, dtype=torch.float64) / sum(counts)
    return (torch.stack(means).double() * shares[:, None]).sum(0).to(means[0].dtype)
