"""Weights of one bit each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from .. import forms
from ..errors import PolicyError
from .base import About, Calibration, LayerCost, LayerInfo, Phase
from .fisher import weight_fisher
from .hessians import hessian_reason

Method = Literal["sign", "mean", "xnor", "loss_aware", "connect", "connect_stochastic"]
_UNSCALED = ("sign", "connect", "connect_stochastic")


@dataclass(frozen=True)
class Binarize:
    """Each weight becomes ``+scale`` or ``-scale`` by its sign; weights that were pruned stay zero.

    Parameters
    ----------
    method
        Where the scale comes from, and what training does:

        - ``sign``: one scale for the layer, ``mean|W|``, and nothing else (Gong 2014, 1412.6115, section 3.2.1): what binary
          weights cost where no care is taken.
        - ``mean``: ``mean|W|`` of each output channel, which minimises ``||W - scale * sign(W)||`` (Rastegari 2016,
          1603.05279, eq. 6: binary-weight networks); it moves with the latent weights in training.
        - ``xnor``: as ``mean``, and the layer computes on the signs of its inputs with the map of their scales (eq. 11).
        - ``loss_aware``: ``||d * W||_1 / ||d||_1`` of each output channel with the Fisher information ``d`` of the weights (Hou
          2017, 1611.01600, proposition 3.1).
        - ``connect``: latent weights in [-1, 1] learn by the gradient of the binary ones (Courbariaux 2015, 1511.00363);
          ``connect_stochastic`` draws the signs in training, +1 with probability ``clip((w + 1) / 2, 0, 1)``. Both are the
          sign at evaluation. The scale of each channel stays at ``mean|W|``.
    scaled
        ``False`` leaves the weights at -1 and +1, for the methods that can do without a scale: sign and connect.
    """

    method: Method = "mean"
    scaled: bool = True

    name: ClassVar[str] = "binarize"
    about: ClassVar[About] = About(
        ("Q4", "Q6", "Q7", "Q8"),
        "weights of one bit and a scale per channel",
        "convolutions and linear layers; on the signs of inputs only convolutions of one group without dilation",
        ("stored bytes",),
        "float32 with the effective weights; signs of inputs as Sign and AveragePool in front of the float32 layer",
        "Rastegari 2016, 1603.05279",
    )
    phase: ClassVar[Phase] = Phase.QUANTIZE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise PolicyError(f"{self.name}: expected method {', '.join(get_args(Method))}, got {self.method!r}")
        if not self.scaled and self.method not in _UNSCALED:
            raise PolicyError(
                f"{self.name}: the method {self.method} is its scale; scaled: false goes with {', '.join(_UNSCALED)}"
            )
        # The need depends on hyper-parameters: the instance's answer stands before the class's.
        object.__setattr__(self, "needs_gradients", self.method == "loss_aware")

    @property
    def binary_inputs(self) -> bool:
        """Whether the layer computes on the signs of its inputs."""
        return self.method == "xnor"

    def check(self, layer: LayerInfo) -> str | None:
        if not self.binary_inputs:
            return None
        if layer.dilation != (1, 1):
            return f"'{layer.name}' is dilated, and the box filter of the inputs' scales has no dilation"
        return hessian_reason(layer)

    def is_identity(self, layer: LayerInfo) -> bool:
        return False

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        layers = self._layers(module)
        curvatures: list[Tensor] | list[None] = [None] * len(layers)
        if self.method == "loss_aware":
            curvatures = weight_fisher(module, layers, calibration)
        for layer, curvature in zip(layers, curvatures):
            self._binarize(layer, curvature)
        return module

    def resume(self, module: nn.Module) -> None:
        """Give layers whose weights are binary already what the technique gives beside them: how they go on training.

        Raises
        ------
        PolicyError
            As ``apply``.
        """
        for layer in self._layers(module):
            flat = torch.ones_like(cast(Tensor, layer.weight)) if self.method == "loss_aware" else None
            self._binarize(layer, flat)

    def cost(self, layer: LayerInfo) -> LayerCost:
        return LayerCost(layer.macs, float(layer.weights))

    def _layers(self, module: nn.Module) -> list[nn.Module]:
        layers = [layer for _, layer in forms.weighted_modules(module)]
        if not layers:
            raise PolicyError(f"{self.name}: expected a convolution or linear layer, got {type(module).__name__}")
        return layers

    def _binarize(self, layer: nn.Module, curvature: Tensor | None) -> None:
        mask = forms.mask_of(layer)
        if self.binary_inputs:
            forms.drop_form(layer)
            forms.set_binary_input(layer)
        weight = cast(Tensor, layer.weight).detach()
        if curvature is not None:
            form = forms.BinaryWeight("curvature", mask, curvature=curvature)
        elif self.method in ("mean", "xnor"):
            form = forms.BinaryWeight("mean", mask)
        else:
            scale = fixed_scales(weight, mask, whole=self.method == "sign") if self.scaled else torch.ones(len(weight))
            form = forms.BinaryWeight("fixed", mask, scale=scale, stochastic=self.method == "connect_stochastic")
        forms.set_form(layer, form)


def fixed_scales(weight: Tensor, mask: Tensor | None, *, whole: bool) -> Tensor:
    """``mean|w|`` of the weights kept, (out,) float32: of each output channel, or of the whole layer, the same for all.

    A channel without weights has the scale 0.
    """
    if not whole:
        return forms.weighted_scales(weight, None, mask)
    of_all = forms.weighted_scales(weight[None], None, None if mask is None else mask[None])
    return of_all.expand(len(weight)).clone()
