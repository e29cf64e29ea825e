"""The dense network before it was trained, and others drawn like it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..policies.architectures.shapes import network_of
from ..policies.errors import CandidateError
from ..policies.own_network import into_evaluation
from ..policies.policy import Scalar
from .models import build_model
from .training.loop import Recipe


@dataclass(frozen=True)
class Untrained:
    """How networks like the dense one begin, and how they are trained.

    Parameters
    ----------
    recipe
        Of the dense network's training.
    name, arguments
        Of the dense network, as ``build_model`` takes them; ``None`` for a network that was handed over.
    num_classes, in_channels
        Its outputs (``None``: its own) and the pictures' channels.
    seed
        That its weights were drawn with before its training; ``None`` where they are not known.
    early
        Its state after the first epochs, where tickets are set back to them.
    """

    recipe: Recipe
    name: str | None
    num_classes: int | None
    in_channels: int
    arguments: Mapping[str, Scalar] = field(default_factory=dict)
    seed: int | None = None
    early: Mapping[str, Tensor] | None = None

    def drawn(self, seed: int, dense: nn.Module, shape: Mapping[str, Scalar]) -> nn.Module:
        """A network with new random weights: of the shape that a policy sets, or of the dense network's structure.

        Raises
        ------
        CandidateError
            Where a network that was handed over has a module that cannot draw its weights anew.
        """
        if shape:
            assert self.num_classes is not None, "shapes are searched on data with classes"
            classes = self.num_classes
            return _seeded(seed, lambda: network_of(shape, classes, self.in_channels)).eval()
        if self.name is None:
            return _seeded(seed, lambda: into_evaluation(redrawn(dense)))
        return self._built(self.name, seed)

    def initial(self) -> nn.Module:
        """The dense network as it was before its training."""
        assert self.name is not None and self.seed is not None, "asked for where the weights are known"
        return self._built(self.name, self.seed)

    def _built(self, name: str, seed: int) -> nn.Module:
        # As for the dense network: three channels are what a network takes unasked.
        channels = self.in_channels if self.in_channels != 3 else None
        built = build_model(name, num_classes=self.num_classes, in_channels=channels, seed=seed, **self.arguments)
        return into_evaluation(built)


def redrawn(model: nn.Module) -> nn.Module:
    """A copy in which each module has drawn its weights anew by its own ``reset_parameters``.

    Raises
    ------
    CandidateError
        Where a module with weights of its own has no such method.
    """
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if not list(module.parameters(recurse=False)):
            continue
        reset = getattr(module, "reset_parameters", None)
        if reset is None:
            kind = type(module).__name__
            raise CandidateError(
                f"module '{name}' ({kind}) has weights but no reset_parameters() to draw them anew; give it one, or the"
                " network by its name"
            )
        reset()
    return model


def _seeded(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
