"""What the rewrites share: small layers in a row fitted to one layer's weight or to its outputs, their cost, what is refused.

Between the small layers stands neither a batch norm nor a nonlinearity, so that all of them together are one convolution
and fitting them is a problem of least squares; what the layer had behind it stays behind them.

Symbols
-------
n, d
    Outputs of the layer, and inputs of each output, ``in * kh * kw``.
W, W'
    (n, d) the layer's weight, and that of the one convolution which the small layers are.
C
    (d, d) damped mean of ``x x^T`` over what the weights multiply; the identity where only the weights count.
f
    The factors: the small layers' weights. W' is linear in each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from ..errors import CandidateError, PolicyError
from ..regression import regressed
from ..second_order import damped
from .base import Calibration, LayerCost, LayerInfo, Phase
from .factors import FLOAT_BITS
from .hessians import SecondOrder, layer_hessians

Fit = Literal["outputs", "weights"]
Compose = Callable[..., Tensor]
"""From the factors to the weight (out, in, kh, kw) of the one convolution that they are."""

SWEEPS = 12
STEPS = 6
"""Of conjugate gradients on a factor in each sweep."""
MOST_OPERATIONS = 1e11
"""Multiply-accumulates with C that a fit may take; layers of thousands of inputs get fewer sweeps, one at least."""
TOLERANCE = 1e-5
"""Of the error a sweep must take away as much, or it was the last."""


@dataclass(frozen=True)
class Rewrite:
    """What every rewrite has beside its own hyper-parameters.

    Parameters
    ----------
    fit
        ``outputs``: those on the calibration inputs err least; ``weights``: the weights alone decide.

    Raises
    ------
    PolicyError
        Where the kind of fit is unknown.
    """

    fit: Fit = field(default="outputs", kw_only=True)

    name: ClassVar[str]
    phase: ClassVar[Phase] = Phase.FACTORIZE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.fit not in get_args(Fit):
            raise PolicyError(f"{self.name}: expected fit {' or '.join(get_args(Fit))}, got {self.fit!r}")
        # The need depends on a hyper-parameter: the instance's answer stands before the class's.
        object.__setattr__(self, "needs_calibration", self.second_order)

    @property
    def second_order(self) -> bool:
        """Whether it wants the inputs' second moment."""
        return self.fit == "outputs"

    def is_identity(self, layer: LayerInfo) -> bool:
        """Never: another form is what was asked for."""
        return False


def require_count(technique: str, parameter: str, value: object, low: int) -> None:
    """Refuse a count that is no whole number from ``low`` on.

    Raises
    ------
    PolicyError
        Naming the technique and the parameter.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise PolicyError(f"{technique}: expected {parameter} as a whole number of at least {low}, got {value!r}")


def depthwise_clash(technique: str, other: object) -> str | None:
    """Why what follows cannot have the Hessian of a rewrite's depthwise layers, or ``None``."""
    if isinstance(other, SecondOrder) and other.second_order:
        return f"{technique} leaves depthwise layers, of which each channel has a Hessian of its own"
    return None


def between(layer: LayerInfo | nn.Conv2d, width: int) -> int:
    """Channels between two layers: ``width``, or for 0 as many as the fewer of those that come in and go out."""
    if isinstance(layer, LayerInfo):
        return width or min(layer.weight_shape[0], layer.weight_shape[1] * layer.groups)
    return width or min(layer.out_channels, layer.in_channels)


def row_cost(parts: Sequence[tuple[int, Sequence[int]]]) -> LayerCost:
    """Of layers that have so many weights each and give maps of such a size."""
    macs = sum(weights * math.prod(size) for weights, size in parts)
    return LayerCost(macs, float(FLOAT_BITS * sum(weights for weights, _ in parts)))


def fitted(compose: Compose, start: Sequence[Tensor], weight: Tensor, moment: Tensor | None) -> list[Tensor]:
    """Factors whose composition is nearest to a weight: ``tr((W' - W) C (W' - W)^T)`` is small (least squares, alternating).

    With the others fixed, ``W' = A f`` for each factor, and its optimum solves ``A^T(A(f) C) = A^T(W C)``. That system is
    never formed: sweep by sweep each factor takes a few steps of conjugate gradients from where it stands, none of which
    raises the error.

    Parameters
    ----------
    compose
        Linear in each factor.
    start
        Factors to start from, of any type.
    weight
        (out, in, kh, kw).
    moment
        (d, d) mean of ``x x^T``, or ``None`` for the weights alone.

    Returns
    -------
    list
        Factors of the weight's type.

    Raises
    ------
    CandidateError
        Where weights are not finite.
    """
    target = weight.detach().double()
    if not bool(target.isfinite().all()):
        raise CandidateError("expected finite weights, got nan or inf; check the network")
    size = target.norm().clamp_min(torch.finfo(torch.float64).tiny)
    scored = _scoring(moment)
    factors = [factor.detach().double() / size ** (1 / len(start)) for factor in start]
    target = target / size
    last = float("inf")
    for _ in range(_sweeps(target, moment, len(factors))):
        for place in range(len(factors)):
            error = _descend(compose, factors, place, target, scored)
        if last - error <= TOLERANCE * error:
            break
        last = error
    return [(factor * size ** (1 / len(factors))).to(weight.dtype) for factor in factors]


def _scoring(moment: Tensor | None) -> Callable[[Tensor], Tensor]:
    """From a change of the weight to its product with C, which is scaled to a mean diagonal of 1."""
    if moment is None:
        return lambda change: change
    c = damped(moment)
    c = c / c.diagonal().mean()
    return lambda change: (change.flatten(1) @ c).view_as(change)


def _sweeps(target: Tensor, moment: Tensor | None, factors: int) -> int:
    products = target.numel() * target[0].numel() * factors * (STEPS + 1)
    return SWEEPS if moment is None else max(1, min(SWEEPS, int(MOST_OPERATIONS / products)))


def _descend(
    compose: Compose, factors: list[Tensor], place: int, target: Tensor, scored: Callable[[Tensor], Tensor]
) -> float:
    """Steps of conjugate gradients on one factor, in place; the squared error that is left."""

    def forward(factor: Tensor) -> Tensor:
        return compose(*factors[:place], factor, *factors[place + 1 :])

    now, pull = cast(Any, torch.func.vjp)(forward, factors[place])
    change = now - target
    weighted = scored(change)
    (gradient,) = pull(-weighted)
    direction, squared = gradient, gradient.square().sum()
    for _ in range(STEPS):
        moved = forward(direction)
        felt = scored(moved)
        curvature = (moved * felt).sum()
        if not float(curvature) > 0:
            break
        step = squared / curvature
        factors[place] = factors[place] + step * direction
        change, weighted = change + step * moved, weighted + step * felt
        (gradient,) = pull(-weighted)
        before, squared = squared, gradient.square().sum()
        direction = gradient + squared / before * direction
    return float((change * weighted).sum())


def rewritten(
    technique: str,
    layer: nn.Conv2d,
    calibration: Calibration | None,
    fit: Fit,
    compose: Compose,
    start: Sequence[Tensor],
    build: Callable[[Sequence[Tensor]], nn.Sequential],
) -> nn.Sequential:
    """The layers of the fitted factors; to the outputs, they are settled on the real ones (see ``settle``).

    Raises
    ------
    PolicyError
        Where outputs are asked for without calibration inputs.
    """
    if fit == "weights":
        return build(fitted(compose, start, layer.weight, None))
    moment = layer_hessians(technique, layer, [layer], calibration)[0]
    parts = build(fitted(compose, start, layer.weight, moment))
    assert calibration is not None
    settle(parts, layer, [call.inputs for call in calibration.calls])
    return parts


def settle(parts: nn.Sequential, layer: nn.Conv2d | nn.Linear, inputs: Sequence[Tensor]) -> None:
    """Give the last part its least squares on what the parts before really make of each call's inputs, in place.

    This knows what one convolution in place of all does not: maps that are padded in between, and the outputs' mean. Of a
    depthwise last part the bias alone is set.
    """
    last = cast("nn.Conv2d | nn.Linear", parts[-1])
    with torch.no_grad():
        seen = [parts[:-1](x) for x in inputs]
        wanted = [layer(x) for x in inputs]
        if getattr(last, "groups", 1) == 1:
            weight, bias = regressed(last, seen, wanted)
            last.weight.copy_(weight)
        elif last.bias is not None:
            lacking = [(y - last(x)).transpose(0, 1).flatten(1) for x, y in zip(seen, wanted)]
            bias = last.bias + torch.cat(lacking, 1).mean(1)
        if last.bias is not None:
            last.bias.copy_(bias)


def own_bias(layer: nn.Conv2d | nn.Linear) -> nn.Parameter | None:
    """A copy of the layer's bias: the one it has may be shared with the network that it was copied from."""
    if layer.bias is None:
        return None
    return nn.Parameter(layer.bias.detach().clone(), requires_grad=layer.bias.requires_grad)
