"""Symmetric uniform quantization of weights, and of a layer's input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from .. import forms
from ..errors import PolicyError
from ..second_order import round_with_feedback
from .adaptive_rounding import round_adaptively
from .base import ADDED_LATER, About, Calibration, LayerCost, LayerInfo, Phase
from .hessians import hessian_reason, layer_hessians, require_rounding, set_weight
from .input_ranges import RangeMethod, input_ranges

Activations = Literal["float32", "int8"]
QuantizeRounding = Literal["nearest", "second_order", "adaptive"]

CLIPPING_SHARES = torch.linspace(1.0, 0.1, 37).tolist()


@dataclass(frozen=True)
class QuantizeUniform:
    """Weights as integer codes times a scale per output channel (Jacob 2018, 1712.05877, eq. 1 with a zero point of 0).

    At 8 bit the scale is ``max|w| / 127``; below, weights are clipped where that lowers the channel's squared error.
    Weights that were pruned stay zero.

    Parameters
    ----------
    bits
        Width of a weight's code, 2 to 8.
    activations
        ``int8`` computes on 8-bit inputs too, over the range that the calibration inputs take; ``float32`` leaves them.
    rounding
        ``nearest``, or ``second_order``: the error of each rounded weight is made up for by those that follow, by the
        layer's Hessian on calibration inputs (GPTQ, 2210.17323); or ``adaptive``: up or down as it is learned to change the
        layer's outputs least (AdaRound, 2004.10568).
    calibration
        Which range 8-bit inputs have, see ``input_ranges``: ``minmax`` of the calibration inputs, ``percentile`` or ``mse``.
    """

    bits: int = 8
    activations: Activations = "float32"
    rounding: QuantizeRounding = "nearest"
    calibration: RangeMethod = field(default="minmax", metadata=ADDED_LATER)

    name: ClassVar[str] = "quantize"
    about: ClassVar[About] = About(
        (
            "Q1",
            "Q16",
        ),
        "integer codes of 2 to 8 bit with a scale per channel",
        "convolutions and linear layers",
        (
            "stored bytes",
            "deployed bytes",
            "latency",
        ),
        "8-bit layers where inputs are 8 bit too, else float32 with the effective weights",
        "Jacob 2018, 1712.05877",
    )
    phase: ClassVar[Phase] = Phase.QUANTIZE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise PolicyError(f"{self.name}: expected bits as a whole number from 2 to 8, got {self.bits!r}")
        if self.activations not in get_args(Activations):
            known = " or ".join(get_args(Activations))
            raise PolicyError(f"{self.name}: expected activations {known}, got {self.activations!r}")
        require_rounding(self.name, self.rounding, get_args(QuantizeRounding))
        if self.calibration not in get_args(RangeMethod):
            known = " or ".join(get_args(RangeMethod))
            raise PolicyError(f"{self.name}: expected calibration {known}, got {self.calibration!r}")
        if self.calibration != "minmax" and self.activations != "int8":
            raise PolicyError(
                f"{self.name}: calibration {self.calibration} is of 8-bit inputs; give activations: int8, or leave it out"
            )
        # The need depends on hyper-parameters: the instance's answer stands before the class's.
        object.__setattr__(self, "needs_calibration", self.activations == "int8" or self.second_order)

    @property
    def second_order(self) -> bool:
        """Whether it wants the layer's Hessian."""
        return self.rounding != "nearest"

    def check(self, layer: LayerInfo) -> str | None:
        return hessian_reason(layer) if self.second_order else None

    def is_identity(self, layer: LayerInfo) -> bool:
        return False

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        layers = [layer for _, layer in forms.weighted_modules(module)]
        if not layers:
            raise PolicyError(f"{self.name}: expected a convolution or linear layer, got {type(module).__name__}")
        hessians: list[Tensor] | list[None] = [None] * len(layers)
        if self.second_order:
            hessians = layer_hessians(self.name, module, layers, calibration)
        for layer, hessian in zip(layers, hessians):
            self._quantize(layer, hessian)
        if self.activations == "int8":
            for layer, low, high in input_ranges(self.name, module, layers, calibration, self.calibration):
                forms.set_input_range(layer, low, high)
        return module

    def cost(self, layer: LayerInfo) -> LayerCost:
        return LayerCost(layer.macs, float(self.bits * layer.weights))

    def _quantize(self, layer: nn.Module, hessian: Tensor | None) -> None:
        weight, mask = cast(Tensor, layer.weight).detach(), forms.mask_of(layer)
        form = forms.UniformWeight(channel_scales(weight, self.bits), self.bits, mask)
        if hessian is not None:
            scale, limit = form.scale.double(), 2 ** (self.bits - 1) - 1

            def project(values: Tensor, _: int) -> Tensor:
                return (values / scale).round().clamp(-limit, limit) * scale

            if self.rounding == "adaptive":
                set_weight(layer, round_adaptively(weight, hessian, form.scale, limit, mask))
            else:
                set_weight(layer, round_with_feedback(weight, hessian, project, mask))
        forms.set_form(layer, form)


def channel_scales(weight: Tensor, bits: int) -> Tensor:
    """The scale of each output channel.

    Parameters
    ----------
    weight
        (out, ...).
    bits
        At 8 the scale is ``max|w| / 127``; below, the one of least squared error among 37 shares (1 down to 0.1) of
        ``max|w| / (2^(bits-1) - 1)``.

    Returns
    -------
    Tensor
        (out,) float32, positive; 1 for a channel of zeros.
    """
    flat = weight.detach().float().flatten(1)
    limit = 2 ** (bits - 1) - 1
    widest = flat.abs().amax(1) / limit
    widest = torch.where(widest >= torch.finfo(torch.float32).tiny, widest, torch.ones_like(widest))
    if bits == 8:
        return widest
    best, least = widest, torch.full_like(widest, torch.inf)
    for share in CLIPPING_SHARES:
        scale = widest * share
        column = scale[:, None]
        error = torch.linalg.vector_norm((flat / column).round_().clamp_(-limit, limit).mul_(column).sub_(flat), dim=1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best
