"""A layer compressed in one way, and networks of such layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn

from ..policies.techniques import Technique
from .cutting import Cuts

Key = tuple[str, Cuts, tuple[Technique, ...]]
"""A layer, the groups that lose channels in it, what is done to it by itself."""
_V = TypeVar("_V")


@dataclass(frozen=True)
class Variant:
    """A layer compressed in one way.

    Parameters
    ----------
    digest
        Of the layer's name, its cuts and what is done to it: the name of its file.
    module
        Its weights carry forms (see ``policies.forms``).
    plain
        Ordinary layers with the effective weights: what is swapped into the network.
    norms
        Batch norms that follow it, by name.
    stored_bytes
        Of its weights alone, entropy-coded.
    relative_error
        Squared error of its output over the output's squares, on calibration inputs; 0 for the dense layer.
    weighted_error
        The same error weighted by the squared gradients of the loss (empirical Fisher): about what the loss rises by.
    """

    digest: str
    module: nn.Module
    plain: nn.Module
    norms: Mapping[str, nn.Module]
    stored_bytes: int
    relative_error: float
    weighted_error: float


@dataclass(frozen=True)
class Stitch:
    """A candidate as the modules that differ from the dense network's.

    Parameters
    ----------
    modules
        Name -> module.
    variants
        The compressed layers among them.
    stored_bytes
        Of the whole network as it ships: the sum of its layers' coded weights and all other tensors. Biases and batch
        norms count as those of the dense network's channels.
    kept
        Batch norm -> indices of the channels that are left, where some are cut.
    """

    modules: Mapping[str, nn.Module]
    variants: Mapping[str, Variant]
    stored_bytes: int
    kept: Mapping[str, Tensor]


class Recent(Generic[_V]):
    """Values by key; what was not used for longest is forgotten where all together are too large."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes, self._bytes = limit_bytes, 0
        self._values: OrderedDict[Key, tuple[_V, int]] = OrderedDict()

    def get(self, key: Key) -> _V | None:
        """The value, now the one used last; ``None`` where there is none."""
        if key not in self._values:
            return None
        self._values.move_to_end(key)
        return self._values[key][0]

    def put(self, key: Key, value: _V, size_bytes: int) -> None:
        """Keep a value of so many bytes."""
        self._values[key] = value, size_bytes
        self._bytes += size_bytes
        while self._bytes > self._limit_bytes and len(self._values) > 1:
            _, (_, freed) = self._values.popitem(last=False)
            self._bytes -= freed
