"""The sum of magnitudes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import effective_weights, require_strength


@dataclass(frozen=True)
class L1:
    """``strength * sum |w|`` over all weights (Tibshirani 1996; Han 2015, 1506.02626, section 3.1).

    Its slope does not fade towards 0, so that weights the loss does not hold end at 0 and can be pruned for nothing.

    Parameters
    ----------
    strength
        Factor of the term, at least 0.
    """

    name: ClassVar[str] = "l1"

    strength: float

    def __post_init__(self) -> None:
        require_strength(self.name, self.strength)

    def start(self, model: nn.Module) -> None:
        pass

    def value(self, model: nn.Module) -> Tensor:
        return self.strength * torch.stack([weight.abs().sum() for weight in effective_weights(model)]).sum()

    def finish(self, model: nn.Module) -> None:
        pass
