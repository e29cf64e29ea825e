"""Group penalties that empty whole neurons (Pan 2016, "DropNeuron", arXiv 1606.07326)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .base import effective_weights, require_strength


@dataclass(frozen=True)
class NeuronsIn:
    """``strength * sum_l sum_j ||incoming weights of neuron j of layer l||_2`` (1606.07326, section 2.1, ``li``).

    A neuron is an output of a linear layer, its incoming weights a row (in,) of torch's (out, in); or a filter
    (in / groups, kh, kw) of a convolution.

    Parameters
    ----------
    strength
        ``lambda_i``, at least 0.
    """

    name: ClassVar[str] = "neurons_in"

    strength: float

    def __post_init__(self) -> None:
        require_strength(self.name, self.strength)

    def start(self, model: nn.Module) -> None:
        pass

    def value(self, model: nn.Module) -> Tensor:
        return self.strength * _norms(weight.flatten(1) for weight in effective_weights(model))

    def finish(self, model: nn.Module) -> None:
        pass


@dataclass(frozen=True)
class NeuronsOut:
    """``strength * sum_l sum_i ||outgoing weights of neuron i into layer l||_2`` (1606.07326, section 2.1, ``lo``).

    The outgoing weights of an input are a column (out,) of a linear layer's (out, in), or all that a convolution's filters
    multiply with one channel (out, kh, kw).

    Parameters
    ----------
    strength
        ``lambda_o``, at least 0.
    """

    name: ClassVar[str] = "neurons_out"

    strength: float

    def __post_init__(self) -> None:
        require_strength(self.name, self.strength)

    def start(self, model: nn.Module) -> None:
        pass

    def value(self, model: nn.Module) -> Tensor:
        return self.strength * _norms(weight.transpose(0, 1).flatten(1) for weight in effective_weights(model))

    def finish(self, model: nn.Module) -> None:
        pass


def _norms(groups: Iterable[Tensor]) -> Tensor:
    """Sum of the rows' Euclidean norms; at a row of zeros the slope is taken as 0."""
    return torch.stack([torch.linalg.vector_norm(rows, dim=1).sum() for rows in groups]).sum()
