"""Regression to a teacher's logits (Ba 2014, 1312.6184)."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...policies.own_network import into_evaluation
from ..data import DataSet
from .loop import Loss, Recipe
from .teaching import Stage


@dataclass(frozen=True)
class LogitRegression:
    """``regression`` as a way of teaching.

    Parameters
    ----------
    teacher_weight
        a; the paper learns from the teacher alone, a = 1.
    """

    teacher_weight: float = 0.7

    def loss(self, teacher: nn.Module, label_smoothing: float = 0.0) -> Loss:
        return regression(teacher, self.teacher_weight, label_smoothing)

    def stages(self, student: nn.Module, teacher: nn.Module, data: DataSet, recipe: Recipe) -> tuple[Stage, ...]:
        return (Stage(student, data, recipe, self.loss(teacher, recipe.label_smoothing)),)


def regression(teacher: nn.Module, teacher_weight: float, label_smoothing: float = 0.0) -> Loss:
    """``(1 - a) H(y, P_S) + a / (2 K) ||z_S - z_T||^2``, the mean over the pictures (equation 1 of the paper).

    The paper's term is divided by the K classes: it is then what soft targets come to at a high temperature (1503.02531,
    section 2.1), and learning rates that suit those suit it.

    Parameters
    ----------
    teacher
        A network or an ensemble; its weights are not changed.
    teacher_weight
        a, in [0, 1].
    """
    teacher = into_evaluation(copy.deepcopy(teacher))

    def loss(x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            target = teacher(x).detach()
        hard = functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)
        return (1 - teacher_weight) * hard + teacher_weight * functional.mse_loss(logits, target) / 2

    return loss
