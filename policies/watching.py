"""Inputs of a network's layers, seen while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

Key = TypeVar("Key")


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
