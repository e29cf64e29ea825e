"""Soft weight-sharing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import Tensor, nn

from .. import forms
from ..errors import PolicyError
from ..mixture import start
from .base import About, Calibration, LayerCost, LayerInfo, Phase


@dataclass(frozen=True)
class ShareSoft:
    """Weights are drawn to zero and to k shared values by a mixture prior that is learned with them while the network trains
    (Ullrich 2017, 1702.04008).

    The layer is pruned and shared by what its weights are nearest to in the end; before any training, by a fit to the weights
    as they are. Weights that were pruned before stay zero and take no part.

    Parameters
    ----------
    clusters
        k, components beside the one at zero, 2 to 256.
    zero
        ``pi_0``, the prior share of zeros, above 0 and below 1.
    strength
        Of the prior beside the mean loss of a picture: the paper's ``tau / N``, 0.005 over 60,000 pictures. The shorter the
        training and the smaller the network, the more it takes: 1e-3 for a few hundred weights and steps.
    """

    clusters: int
    zero: float = 0.9
    strength: float = 1e-6

    name: ClassVar[str] = "share_soft"
    about: ClassVar[About] = About(
        ("Q12",),
        "a learned mixture draws weights to zero and k values",
        "convolutions and linear layers",
        ("stored bytes",),
        "float32 with the effective weights",
        "Ullrich 2017, 1702.04008",
    )
    phase: ClassVar[Phase] = Phase.QUANTIZE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    trains_more_than_it_stores: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 2 <= self.clusters <= 256:
            raise PolicyError(f"{self.name}: expected clusters as a whole number from 2 to 256, got {self.clusters!r}")
        if not 0 < self.zero < 1:
            raise PolicyError(f"{self.name}: expected 0 < zero < 1, got {self.zero!r}")
        if not 0 < self.strength < math.inf:
            raise PolicyError(f"{self.name}: expected a strength above 0, got {self.strength!r}")

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
            trainable = any(parameter.requires_grad for parameter in layer.parameters())
            kept = weight.flatten() if mask is None else weight[mask]
            mixture, prior = start(kept.float().cpu(), self.clusters, self.zero)
            form = forms.SoftSharedWeight(mixture, prior, self.strength, mask).to(weight.device)
            forms.set_form(layer, form.requires_grad_(trainable))
        return module

    def cost(self, layer: LayerInfo) -> LayerCost:
        """At most, where no weight is drawn to zero: which ones are, training tells."""
        return LayerCost(layer.macs, math.log2(self.clusters) * layer.weights)
