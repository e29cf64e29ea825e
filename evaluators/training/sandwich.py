"""One network trained for all shapes that it holds: the sandwich rule with in-place distillation (1903.05134)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from ...policies.policy import Scalar
from ...policies.subnetworks import Slices, sliced
from ..supernet import Supernet
from .loop import Loss, Recipe, cross_entropy

Shape = Mapping[str, Scalar]


@dataclass(frozen=True)
class Sandwich:
    """A loss of the largest network that is the sum over several shapes.

    ``L = H(y, P_largest) + sum_s H(P_largest, P_s)`` over the smallest shape and some random ones (algorithm 1): the
    largest learns from the labels, the others from it, all by the same weights.

    Parameters
    ----------
    supernet
        What is trained.
    shapes
        All that are sampled from; the first is the smallest and takes part in every step.
    random
        How many others take part in a step.
    hard
        The largest network's loss.
    """

    supernet: Supernet
    shapes: Sequence[Shape]
    random: int
    hard: Loss
    _parts: dict[int, tuple[nn.Module, Slices]] = field(default_factory=dict)

    @classmethod
    def of(cls, supernet: Supernet, shapes: Sequence[Shape], random: int, recipe: Recipe) -> Sandwich:
        """With the ordinary loss of a recipe."""
        return cls(supernet, shapes, random, cross_entropy(recipe))

    def __call__(self, x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        target = logits.detach().softmax(1)
        weights = dict(self.supernet.model.named_parameters())
        chosen = [0, *torch.randint(len(self.shapes), (self.random,)).tolist()]
        total = self.hard(x, logits, labels)
        for index in dict.fromkeys(chosen):
            part, slices = self._part(index)
            outputs = functional_call(part, sliced(weights, slices), (x,))
            total = total + functional.cross_entropy(outputs, target)
        return total

    def _part(self, index: int) -> tuple[nn.Module, Slices]:
        """The network of a shape without weights of its own; batch norms see the batch and keep nothing that is used."""
        if index not in self._parts:
            network, slices = self.supernet.part(self.shapes[index])
            learned = {name for name, _ in network.named_parameters()}
            self._parts[index] = network.train(), {name: s for name, s in slices.items() if name in learned}
        return self._parts[index]
