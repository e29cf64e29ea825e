"""paretopress: a trained vision network in, a measured Pareto front of compressed networks out.

The names below are the public interface; everything is loaded when it is first used, so that small parts (a policy, the
decoder of the stored form) can be imported without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .policies.version import VERSION

if TYPE_CHECKING:
    from .policies.errors import ParetopressError
    from .policies.loading import load
    from .policies.policy import Policy
    from .search.api import Candidate, Front, open_front, resume, search, slimmable


__version__ = VERSION

__all__ = [
    "Candidate",
    "Front",
    "ParetopressError",
    "Policy",
    "__version__",
    "load",
    "open_front",
    "resume",
    "search",
    "slimmable",
]

_HOMES = {
    "Candidate": ".search.api",
    "Front": ".search.api",
    "ParetopressError": ".policies.errors",
    "Policy": ".policies.policy",
    "load": ".policies.loading",
    "open_front": ".search.api",
    "resume": ".search.api",
    "slimmable": ".search.api",
    "search": ".search",  # the package itself, which can be called
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'paretopress' has no attribute '{name}'; it has {', '.join(__all__)}")
    home = import_module(_HOMES[name], __name__)
    return home if name == "search" else getattr(home, name)
