"""Soft targets: learning from a teacher's softened outputs (Hinton 2015, 1503.02531)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...policies.own_network import into_evaluation
from ..data import DataSet
from .ensemble import softened
from .loop import Loss, Recipe
from .teaching import Stage


@dataclass(frozen=True)
class SoftTargets:
    """``distillation`` as a way of teaching.

    Parameters
    ----------
    temperature, teacher_weight
        tau and a.
    """

    temperature: float = 4.0
    teacher_weight: float = 0.7

    def loss(self, teacher: nn.Module, label_smoothing: float = 0.0) -> Loss:
        return distillation(teacher, self.temperature, self.teacher_weight, label_smoothing)

    def stages(self, student: nn.Module, teacher: nn.Module, data: DataSet, recipe: Recipe) -> tuple[Stage, ...]:
        return (Stage(student, data, recipe, self.loss(teacher, recipe.label_smoothing)),)


def distillation(teacher: nn.Module, temperature: float, teacher_weight: float, label_smoothing: float = 0.0) -> Loss:
    """``(1 - a) H(y, P_S) + a tau^2 KL(P_T^tau || P_S^tau)``.

    The factor tau^2 keeps the gradients of the soft part on the scale of the hard part (section 2 of the paper).

    Parameters
    ----------
    teacher
        A network or an ensemble; its weights are not changed.
    temperature
        tau, softens both sets of outputs.
    teacher_weight
        a, in [0, 1].
    """
    teacher = into_evaluation(copy.deepcopy(teacher))

    def of_labels(_: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)

    def loss(x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = softened(teacher, x, temperature)
        soft = functional.kl_div(
            functional.log_softmax(logits / temperature, 1), target, reduction="batchmean", log_target=True
        )
        hard = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        return (1 - teacher_weight) * hard + teacher_weight * temperature**2 * soft

    # A teacher without a say need not be run.
    return loss if teacher_weight else of_labels
