"""Penalties of the training loss: one file each, behind the contract in ``base``. To add one: its file, and its row."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from ....policies.errors import ConfigError
from .base import Penalty
from .binary import Binary
from .l1 import L1
from .l2 import L2
from .neurons import NeuronsIn, NeuronsOut

PENALTIES: dict[str, Callable[[float], Penalty]] = {
    "l1": L1,
    "l2": L2,
    "neurons_in": NeuronsIn,
    "neurons_out": NeuronsOut,
    "binary": Binary,
}

__all__ = ["PENALTIES", "Penalty", "make_penalty"]


def make_penalty(name: str, strength: float) -> Penalty:
    """The penalty of a name in a configuration.

    Raises
    ------
    ConfigError
        Where the name is unknown or the strength out of range.
    """
    if name not in PENALTIES:
        near = difflib.get_close_matches(name, PENALTIES, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(PENALTIES)}"
        raise ConfigError(f"unknown penalty '{name}'; {hint}")
    return PENALTIES[name](strength)
