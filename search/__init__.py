"""The search. The package can be called: ``paretopress.search(model, ...)`` is ``paretopress.search.api.search``."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    """A package and a function of one name: importing any module in it binds ``paretopress.search`` to the package."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from .api import search

        return search(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
