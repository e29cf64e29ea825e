"""Weights in fixed point."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from .. import forms
from ..errors import PolicyError
from .base import About, Calibration, LayerCost, LayerInfo, Phase
from .hessians import set_weight

Exponents = Literal["tensor", "channel"]
FixedRounding = Literal["nearest", "stochastic"]

_TRIED = 6
"""Exponents from the one without overflow downwards; each halves the largest value."""


@dataclass(frozen=True)
class FixedPoint:
    """Weights as a signed mantissa times a power of two: ``w = m * 2^e`` with ``|m| <= 2^(bits-1) - 1``.

    With one exponent for a tensor it is fixed point, with several dynamic fixed point (Courbariaux 2015, 1412.7024,
    sections 4 and 5). That paper bounds the share of values that overflow; here the exponent is the one of least squared
    error, in which overflow and resolution are weighed. Weights that were pruned stay zero.

    Parameters
    ----------
    bits
        Width of the mantissa with its sign, 2 to 16.
    exponents
        ``tensor`` for one of the whole weight, ``channel`` for one of each output channel.
    rounding
        ``nearest``, or ``stochastic``: up with a probability equal to the fraction, so that the mean is the weight
        (Gupta 2015, 1502.02551, section 3); while it trains, values are drawn anew at each step.
    seed
        Of the stochastic rounding; the same weights and the same seed are rounded alike.
    """

    bits: int = 16
    exponents: Exponents = "tensor"
    rounding: FixedRounding = "nearest"
    seed: int = 0

    name: ClassVar[str] = "fixed_point"
    about: ClassVar[About] = About(
        ("Q2", "Q3"),
        "fixed point of 2 to 16 bit, an exponent for the tensor or for each channel",
        "convolutions and linear layers",
        ("stored bytes",),
        "float32 with the effective weights",
        "Courbariaux 2015, 1412.7024",
    )
    phase: ClassVar[Phase] = Phase.QUANTIZE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 2 <= self.bits <= 16:
            raise PolicyError(f"{self.name}: expected bits as a whole number from 2 to 16, got {self.bits!r}")
        for what, kinds in (("exponents", Exponents), ("rounding", FixedRounding)):
            if getattr(self, what) not in get_args(kinds):
                known = " or ".join(get_args(kinds))
                raise PolicyError(f"{self.name}: expected {what} {known}, got {getattr(self, what)!r}")
        if not isinstance(self.seed, int) or self.seed < 0:
            raise PolicyError(f"{self.name}: expected a seed of at least 0, got {self.seed!r}")

    def check(self, layer: LayerInfo) -> str | None:
        return None

    def is_identity(self, layer: LayerInfo) -> bool:
        return False

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        layers = [layer for _, layer in forms.weighted_modules(module)]
        if not layers:
            raise PolicyError(f"{self.name}: expected a convolution or linear layer, got {type(module).__name__}")
        for layer in layers:
            weight, mask = cast(Tensor, layer.weight).detach(), forms.mask_of(layer)
            scale = power_of_two_scales(weight, self.bits, self.exponents)
            stochastic = self.rounding == "stochastic"
            if stochastic:
                # Latent values on the grid: at evaluation they are rounded to themselves.
                set_weight(layer, stochastically_rounded(weight, scale, self.bits, self.seed))
            forms.set_form(layer, forms.UniformWeight(scale, self.bits, mask, stochastic))
        return module

    def cost(self, layer: LayerInfo) -> LayerCost:
        return LayerCost(layer.macs, float(self.bits * layer.weights))


def power_of_two_scales(weight: Tensor, bits: int, exponents: Exponents) -> Tensor:
    """``2^e`` of least squared error for each output channel; one and the same where the tensor has one exponent.

    Parameters
    ----------
    weight
        (out, ...).
    bits
        Of the mantissa.

    Returns
    -------
    Tensor
        (out,) float32, positive; 1 where all weights are zero.
    """
    flat = weight.detach().double().flatten(1)
    rows = flat.reshape(1, -1) if exponents == "tensor" else flat
    limit = 2 ** (bits - 1) - 1
    largest = rows.abs().amax(1)
    # Below the smallest normal number of float32 a step would not be exact.
    top = (largest.clamp_min(1e-300) / limit).log2().ceil().clamp(-126, 127)
    best, least = top, torch.full_like(top, torch.inf)
    for lower in range(_TRIED):
        exponent = (top - lower).clamp_min(-126)
        step = exponent.exp2()[:, None]
        error = ((rows / step).round().clamp(-limit, limit) * step - rows).square().sum(1)
        best = torch.where(error < least, exponent, best)
        least = torch.minimum(error, least)
    return torch.where(largest > 0, best.exp2(), 1.0).float().expand(len(weight)).clone()


def stochastically_rounded(weight: Tensor, scale: Tensor, bits: int, seed: int) -> Tensor:
    """Weights (out, ...) on the grid of scales (out,), up with a probability equal to the fraction that is left.

    The draws depend on the seed and on the weights, so that layers do not share them.
    """
    limit, step = 2 ** (bits - 1) - 1, forms.per_channel(scale, weight)
    # Torch's generator takes no more than 32 bits of a seed.
    generator = torch.Generator().manual_seed(zlib.crc32(forms.as_numpy(weight).tobytes(), seed % 2**32))
    drawn = torch.rand(weight.shape, generator=generator, dtype=torch.float64)
    return ((weight.double() / step + drawn).floor().clamp(-limit, limit) * step).to(weight)
