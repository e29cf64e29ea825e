"""Several networks that teach as one (Ba 2014, 1312.6184, section 2.2; Hinton 2015, 1503.02531, section 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


class Ensemble(nn.Module):
    """Networks of the same outputs; their mean logits (N, K).

    Parameters
    ----------
    networks
        At least one.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([network(x) for network in self.networks]).mean(0)


def as_one(networks: Sequence[nn.Module]) -> nn.Module:
    """A single network as it is, several as an ensemble."""
    return networks[0] if len(networks) == 1 else Ensemble(networks)


def members(teacher: nn.Module) -> tuple[nn.Module, ...]:
    """The networks that a teacher is made of."""
    return tuple(teacher.networks) if isinstance(teacher, Ensemble) else (teacher,)


def softened(teacher: nn.Module, x: Tensor, temperature: float) -> Tensor:
    """Logarithm of ``softmax(z / tau)`` (N, K), or of its mean over the members: of probabilities, not of logits."""
    each = [functional.log_softmax(network(x) / temperature, 1) for network in members(teacher)]
    return torch.logsumexp(torch.stack(each), 0) - math.log(len(each)) if len(each) > 1 else each[0]
