"""The pull towards weights of few values, which are rounded when the training ends."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ....policies.forms import MaskedWeight, form_of, per_channel, weighted_modules
from .base import require_strength

_THRESHOLD = 0.7


@dataclass(frozen=True)
class Binary:
    """``strength * sum u^2 |1 - u^2|`` with ``u = w / scale``: zero where a weight is 0 or plus or minus its channel's scale.

    The binary regulariser ``w^2 (1 - w^2)`` with the weights in units of their channel's scale, since those of a trained
    network are far below 1, and with the magnitude, since it would have no least value beyond 1. The scale is that of
    ternary weight networks (Li 2016, 1605.04711, eqs. 5 and 6): the mean magnitude of the weights above 0.7 times the mean
    magnitude of all. When the training ends each weight takes the nearest of the three values, which ``quantize`` stores
    at 2 bit as they are. Layers whose weights have another structure already are left alone.

    Parameters
    ----------
    strength
        Factor of the term, at least 0.
    """

    name: ClassVar[str] = "binary"

    strength: float

    def __post_init__(self) -> None:
        require_strength(self.name, self.strength)

    def start(self, model: nn.Module) -> None:
        pass

    def value(self, model: nn.Module) -> Tensor:
        terms = [torch.zeros(())]
        for weight in _free_weights(model):
            u = weight / _scales(weight)
            square = u.square()
            terms.append((square * (1 - square).abs()).sum())
        return self.strength * torch.stack(terms).sum()

    def finish(self, model: nn.Module) -> None:
        if not self.strength:
            return
        with torch.no_grad():
            for weight in _free_weights(model):
                scale = _scales(weight)
                # Adding 0 turns -0 into 0.
                weight.copy_((weight / scale).round().clamp(-1, 1) * scale + 0.0)


def _free_weights(model: nn.Module) -> Iterator[Tensor]:
    """The trained tensors of ordinary and of pruned layers; of the latter zeros stay zero."""
    for _, module in weighted_modules(model):
        form = form_of(module)
        if form is None:
            yield cast(Tensor, module.weight)
        elif isinstance(form, MaskedWeight):
            yield cast(Tensor, cast(Any, module.parametrizations).weight.original)


def _scales(weight: Tensor) -> Tensor:
    """The scale of each output channel in a shape that divides the weight (out, ...); 1 for a channel of zeros."""
    sizes = weight.detach().abs().flatten(1)
    large = sizes > _THRESHOLD * sizes.mean(1, keepdim=True)
    mean = (sizes * large).sum(1) / large.sum(1).clamp_min(1)
    return per_channel(torch.where(mean > 0, mean, 1.0), weight)
