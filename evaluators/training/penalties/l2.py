"""The sum of squares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import effective_weights, require_strength


@dataclass(frozen=True)
class L2:
    """``strength * sum w^2`` over all weights (Han 2015, 1506.02626, section 3.1).

    Its slope ``2 w`` is nothing at 0: weights become small but hardly any becomes 0. Unlike the recipe's ``weight_decay``
    it is part of the loss, and so passes through the step sizes of an adaptive optimizer (1711.05101).

    Parameters
    ----------
    strength
        Factor of the term, at least 0.
    """

    name: ClassVar[str] = "l2"

    strength: float

    def __post_init__(self) -> None:
        require_strength(self.name, self.strength)

    def start(self, model: nn.Module) -> None:
        pass

    def value(self, model: nn.Module) -> Tensor:
        return self.strength * torch.stack([weight.square().sum() for weight in effective_weights(model)]).sum()

    def finish(self, model: nn.Module) -> None:
        pass
