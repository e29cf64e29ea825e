"""One network trained for all shapes that it holds: the sandwich rule with in-place distillation (1903.05134)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from ...policies.subnetworks import sliced
from ..supernet import Part, Supernet
from .loop import Loss, Recipe, cross_entropy


@dataclass(frozen=True)
class Sandwich:
    """A loss of the largest network that is the sum over several shapes.

    ``L = H(y, P_largest) + sum_s H(P_largest, P_s)`` over the smallest shape and some random ones (algorithm 1): the
    largest learns from the labels, the others from it, all by the same weights.

    Parameters
    ----------
    supernet
        What is trained.
    parts
        All that are sampled from, in training mode, with the slices of what is learned alone; the first is the smallest and
        takes part in every step. Their batch norms see the batch and keep nothing that is used.
    random
        How many others take part in a step.
    hard
        The largest network's loss.
    """

    supernet: Supernet
    parts: Sequence[Part]
    random: int
    hard: Loss

    @classmethod
    def of(cls, supernet: Supernet, parts: Sequence[Part], random: int, recipe: Recipe) -> Sandwich:
        """With the ordinary loss of a recipe."""
        return cls(supernet, [_learning(part) for part in parts], random, cross_entropy(recipe))

    def __call__(self, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        target = logits.detach().softmax(1)
        weights = dict(self.supernet.model.named_parameters())
        others = 1 + torch.randperm(len(self.parts) - 1)[: self.random]
        total = self.hard(x, logits, labels)
        for part in (self.parts[index] for index in (0, *others.tolist())):
            outputs = functional_call(part.network, sliced(weights, part.slices), (x,))
            total = total + functional.cross_entropy(outputs, target)
        return total


def _learning(part: Part) -> Part:
    learned = {name for name, _ in part.network.named_parameters()}
    slices = {name: index for name, index in part.slices.items() if name in learned}
    return replace(part, network=part.network.train(), slices=slices)
