"""What a penalty of the training loss is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar, Protocol, cast

from torch import Tensor, nn

from ....policies.errors import ConfigError
from ....policies.forms import weighted_modules


class Penalty(Protocol):
    """A term of the training loss that depends on the weights alone: a frozen dataclass of its hyper-parameters.

    The first hyper-parameter is its strength, the factor of the whole term; the constructor raises ``ConfigError`` for one
    out of range. A penalty is a value and holds no state: tensors that are learned with the network stand in the network
    from ``start`` to ``finish``.
    """

    name: ClassVar[str]

    def start(self, model: nn.Module) -> None:
        """Prepare the network, in place, before its parameters are given to the optimizer."""
        ...

    def value(self, model: nn.Module) -> Tensor:
        """The term (a scalar) that is added to the loss of each step."""
        ...

    def finish(self, model: nn.Module) -> None:
        """End the training, in place: take out what ``start`` put in, round where the penalty pulls to fixed values."""
        ...


def require_strength(name: str, strength: float) -> None:
    """Refuse a strength that is negative or not finite.

    Raises
    ------
    ConfigError
        Naming the penalty.
    """
    if not (math.isfinite(strength) and strength >= 0):
        raise ConfigError(f"penalty {name}: expected a finite strength of at least 0, got {strength!r}")


def effective_weights(model: nn.Module) -> Iterator[Tensor]:
    """Weights of convolutions (out, in / groups, kh, kw) and linear layers (out, in), as their forward pass takes them.

    Biases and batch norms are left out: they cost next to nothing, and pulling on them only shifts the outputs.
    """
    for _, module in weighted_modules(model):
        yield cast(Tensor, module.weight)
