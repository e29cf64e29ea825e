"""FitNets: a student's inner layer learns from a teacher's before its outputs do (Romero 2015, 1412.6550).

=====  ==============================================================  ====================================
``v``  what the student's layer computes, ``v_g(x)`` in the paper      (N, C_s, H_s, W_s) or (N, C_s)
``u``  what the teacher's layer computes, ``u_h(x)``, the hint         (N, C_t, H_t, W_t) or (N, C_t)
``r``  the regressor from the one's channels to the other's            (N, C_t, H, W), H = min(H_s, H_t), or (N, C_t)
=====  ==============================================================  ====================================
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...policies.branches import Nothing
from ...policies.errors import CandidateError, ModelError
from ...policies.own_network import into_evaluation
from ..data import DataSet
from .distillation import SoftTargets
from .ensemble import members
from .inner import output_of
from .loop import Loss, Recipe
from .teaching import Stage

ROWS = 16_384
"""Values of a channel by which the regressor is fitted before it is trained."""
RIDGE = 0.1
"""Of the mean variance of the student's channels: large weights of the regressor would only multiply what the student learns."""


@dataclass(frozen=True)
class Hint:
    """Which layer learns from which.

    Parameters
    ----------
    student, guide
        Names of the student's layer and of the teacher's that guides it; of an ensemble, the first network's.
    share
        Of the epochs, in (0, 1): so much for the hint, at least one epoch of two; of a single epoch, so much of its pictures.
    """

    student: str
    guide: str
    share: float = 0.3


@dataclass(frozen=True)
class Hints:
    """First ``1/2 ||u_h(x) - r(v_g(x))||^2`` for the layers up to the hint, then soft targets for all of them.

    The regressor ``r`` starts at the least-squares solution, so that a student that is near its teacher already is not led
    astray by one that knows nothing; it is trained together with the student's layers and then thrown away. The paper trains
    with RMSProp; of a recipe's optimizers ``adamw`` is the one that bears the steep loss of a student that knows nothing. A
    student that has lost the layer learns from soft targets alone.

    Parameters
    ----------
    hint
        Which layers.
    soft
        The second stage.
    """

    hint: Hint
    soft: SoftTargets

    def loss(self, teacher: nn.Module, label_smoothing: float = 0.0) -> Loss:
        return self.soft.loss(teacher, label_smoothing)

    def stages(self, student: nn.Module, teacher: nn.Module, data: DataSet, recipe: Recipe) -> tuple[Stage, ...]:
        guide = into_evaluation(copy.deepcopy(members(teacher)[0]))
        examples = _examples(student, guide, self.hint, data)
        if examples is None:
            return self.soft.stages(student, teacher, data, recipe)
        (early, first), (late, second) = _divided(data, recipe, self.hint.share)
        came, hint = examples
        regressor = fitted_regressor(came, hint)
        scale = float(hint.square().mean().clamp_min(torch.finfo(hint.dtype).tiny))
        guided = Guided(student, self.hint.student, regressor)
        guidance = Stage(guided, early, first, hint_loss(guide, self.hint.guide, regressor.size, scale))
        return guidance, *self.soft.stages(student, teacher, late, second)


class Regressor(nn.Module):
    """From the student's activations to the teacher's: a 1x1 convolution of maps, a linear layer of vectors.

    A convolution of this size is what the paper's becomes where the maps are equally large (section 2.2); larger ones are
    averaged down to the smaller first.

    Parameters
    ----------
    weight, bias
        (C_t, C_s) and (C_t,), where it starts.
    size
        (H, W) of the maps that are compared; ``None`` for vectors.
    """

    def __init__(self, weight: Tensor, bias: Tensor, size: tuple[int, int] | None) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(weight if size is None else weight[:, :, None, None])
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.size is None:
            return functional.linear(x, self.weight, self.bias)
        return functional.conv2d(pooled(x, self.size), self.weight, self.bias)


class Guided(nn.Module):
    """The student up to its hinted layer, and the regressor: ``r(v_g(x))``."""

    def __init__(self, student: nn.Module, layer: str, regressor: nn.Module) -> None:
        super().__init__()
        self.student, self.regressor, self.layer = student, regressor, layer

    def forward(self, x: Tensor) -> Tensor:
        return self.regressor(output_of(self.student, self.layer, x))


def hint_loss(guide: nn.Module, layer: str, size: tuple[int, int] | None, scale: float) -> Loss:
    """``1/2 ||u_h(x) - r(v_g(x))||^2`` (equation 3 of the paper), the mean over pictures and activations.

    Parameters
    ----------
    guide, layer
        The teacher, in evaluation mode, and the name of its layer.
    size
        Of the maps that are compared.
    scale
        What the sum is divided by beside their number: the hint's mean square, so that no learning rate has to be found for
        each teacher's units.
    """

    def loss(x: Tensor, guessed: Tensor, _: Tensor) -> Tensor:
        with torch.no_grad():
            hint = pooled(output_of(guide, layer, x), size)
        return functional.mse_loss(guessed, hint) / (2 * scale)

    return loss


def fitted_regressor(came: Tensor, hint: Tensor) -> Regressor:
    """The least-squares solution from the student's activations to the teacher's, two of the same pictures.

    Raises
    ------
    CandidateError
        Where the student's activations are not finite.
    """
    size = common_size(came, hint)
    x, y = (_rows(pooled(values, size)) for values in (came, hint))
    if not bool(torch.isfinite(x).all()):
        raise CandidateError("the hinted layer's outputs are not finite; a hint cannot mend that")
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    gram = x.T @ x
    ridge = RIDGE * gram.diagonal().mean() + torch.finfo(x.dtype).eps
    weight = torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=x.dtype), x.T @ y).T
    return Regressor(weight.float().contiguous(), (y_mean - weight @ x_mean).float(), size)


def common_size(came: Tensor, hint: Tensor) -> tuple[int, int] | None:
    """(H, W) to which both are averaged: the smaller of each; ``None`` for vectors."""
    if came.ndim == 2:
        return None
    return min(came.shape[2], hint.shape[2]), min(came.shape[3], hint.shape[3])


def pooled(maps: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Averaged to this size (H, W); vectors, and maps that have it, as they are."""
    return maps if size is None or maps.shape[2:] == size else functional.adaptive_avg_pool2d(maps, size)


def _rows(values: Tensor) -> Tensor:
    """(values of a channel, channels) in double precision."""
    return values.movedim(1, -1).reshape(-1, values.shape[1]).double()


def _examples(student: nn.Module, guide: nn.Module, hint: Hint, data: DataSet) -> tuple[Tensor, Tensor] | None:
    """What both layers compute of some calibration pictures; ``None`` where the student has lost its own.

    A branch that was dropped leaves a zero behind, and a network of another shape may have something else by that name.
    """
    student = into_evaluation(copy.deepcopy(student))
    layer = dict(student.named_modules()).get(hint.student)
    if layer is None or isinstance(layer, Nothing):
        return None
    with torch.no_grad():
        one = output_of(guide, hint.guide, data.preprocess(data.calibration.images[:1]))
        x = data.preprocess(data.calibration.images[: max(1, ROWS // max(1, one[0, 0].numel()))])
        try:
            came = output_of(student, hint.student, x)
        except ModelError:
            return None
        wanted: Tensor = output_of(guide, hint.guide, x)
    return (came, wanted) if isinstance(came, Tensor) and came.ndim == wanted.ndim else None


def _divided(data: DataSet, recipe: Recipe, share: float) -> tuple[tuple[DataSet, Recipe], tuple[DataSet, Recipe]]:
    """The two stages' pictures and recipes; penalties of all weights wait for the stage that trains all of them."""
    if recipe.epochs > 1:
        count = min(recipe.epochs - 1, max(1, round(share * recipe.epochs)))
        first, second = replace(recipe, epochs=count, penalties=()), replace(recipe, epochs=recipe.epochs - count)
        return (data, first), (data, second)
    count = max(1, min(len(data.train) - 1, round(share * len(data.train))))
    early, late = (replace(data, train=data.train.take(part)) for part in (slice(0, count), slice(count, None)))
    return (early, replace(recipe, penalties=())), (late, recipe)
