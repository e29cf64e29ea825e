"""Importing torchvision where its compiled operators do not load.

Beside a torch of another build, ``import torchvision`` (so ``import timm``) ends in "operator torchvision::nms does not
exist". Classifiers and data set descriptions need none of these operators, so their registration is left out, and only
theirs. Whatever imports timm or torchvision, or unpickles one of their networks in a new process, calls
``import_torchvision`` first.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch


def import_torchvision() -> ModuleType:
    """The torchvision package, imported on the first call; plainly so where its compiled operators are whole.

    Raises
    ------
    ImportError
        Where torchvision is not installed.
    """
    if "torchvision" in sys.modules:
        return sys.modules["torchvision"]
    with _tolerate_missing_operators():
        return importlib.import_module("torchvision")


@contextmanager
def _tolerate_missing_operators() -> Iterator[None]:
    register = torch.library.register_fake
    torch.library.register_fake = _tolerant(register)
    try:
        yield
    finally:
        torch.library.register_fake = register


def _tolerant(register: Callable[..., Any]) -> Callable[..., Any]:
    """``register_fake`` that leaves a function alone whose ``torchvision::`` operator does not exist."""

    def register_fake(op: Any, *args: Any, **kwargs: Any) -> Any:
        decorate = register(op, *args, **kwargs)
        if not (isinstance(op, str) and op.startswith("torchvision::") and callable(decorate)):
            return decorate

        def decorator(function: Any) -> Any:
            try:
                return decorate(function)
            except RuntimeError as error:
                if "does not exist" not in str(error):
                    raise
                return function

        return decorator

    return register_fake


@dataclass(frozen=True)
class Guard:
    """Imports torchvision safely while it is unpickled: to be pickled before what may need it."""

    needed: bool

    @classmethod
    def here(cls) -> Guard:
        """For what is pickled in this process."""
        return cls("torchvision" in sys.modules)

    def __reduce__(self) -> tuple[Any, ...]:
        return _guarded, (self.needed,)


def _guarded(needed: bool) -> Guard:
    if needed:
        import_torchvision()
    return Guard(needed)
