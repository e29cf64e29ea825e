"""Architectures that are learned by back-propagation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from ...evaluators.training.gates import Kind
from ...evaluators.training.learned import Learning
from ...evaluators.training.penalties.architecture import Architecture
from .base import Positive
from .training import TrainConfig


class LearnedConfig(TrainConfig):
    """Trainings with switches on neurons, one for each kind and lambda (1511.05497); none without lambdas."""

    kinds: tuple[Kind, ...] = Field(
        ("conv_fc",), min_length=1, description="whose neurons may go: conv, fc or conv_fc; each with every lambda"
    )
    lambdas: tuple[Positive, ...] = Field(
        (),
        description="what a neuron costs, added to the loss: lambda3 of the paper; the larger, the fewer neurons are left",
    )
    layers: float = Field(
        0.0, ge=0, description="what a layer's ReLU costs, in neurons (lambda4 / lambda3); 0 leaves all ReLUs"
    )
    binary: float = Field(
        4.0,
        ge=0,
        description="pull of the switches to 0 or 1 at its full strength (lambda1 / lambda3, lambda2 / lambda4)",
    )
    compare: bool = Field(
        False, description="try beside each the dense network pruned by one magnitude threshold to as many parameters"
    )
    epochs: int = Field(3, ge=1, description="of each training, which starts from the dense network")
    optimizer: Literal["adamw"] = Field("adamw", description="switches and weights need paces of their own")
    lr: Positive = 1e-3
    weight_decay: float = Field(0.0, ge=0)

    def learnings(self) -> tuple[Learning, ...]:
        """The trainings, each once."""
        recipe = self.recipe()
        found = [
            Learning(kind, Architecture(price, self.layers * price, self.binary), recipe)
            for kind in self.kinds
            for price in self.lambdas
        ]
        return tuple(dict.fromkeys(found))
