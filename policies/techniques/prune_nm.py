"""Pruning to n of every m inputs."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Literal, cast, get_args

from torch import Tensor, nn

from .. import forms
from ..errors import PolicyError
from ..group_sparsity import highest_in_groups, kept_inputs, prune_groups
from .base import About, Calibration, LayerCost, LayerInfo, Phase
from .hessians import hessian_reason, layer_hessians, set_weight

Saliency = Literal["magnitude", "second_order"]


@dataclass(frozen=True)
class PruneNM:
    """Keep n of every m consecutive inputs of each output (Mishra 2021, 2104.08378, section 3: 2 of 4).

    Groups run along the input channels, in a convolution for each place of the kernel; a last, smaller group keeps up to n.
    It saves size alone: a dense kernel multiplies by the zeros.

    Parameters
    ----------
    n, m
        Kept weights and size of a group, 1 <= n < m <= 64.
    saliency
        ``magnitude`` keeps the largest weights; ``second_order`` those that the outputs miss most, the kept ones making up
        for the others (2208.11580, eq. 3).
    """

    n: int = 2
    m: int = 4
    saliency: Saliency = "magnitude"

    name: ClassVar[str] = "prune_nm"
    about: ClassVar[About] = About(
        ("P11",),
        "keep n of every m inputs",
        "convolutions and linear layers; by the Hessian: of one group",
        ("stored bytes",),
        "float32 with the effective weights",
        "Mishra 2021, 2104.08378",
    )
    phase: ClassVar[Phase] = Phase.PRUNE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in (self.n, self.m))
        if not whole or not 1 <= self.n < self.m <= 64:
            raise PolicyError(
                f"{self.name}: expected whole numbers 1 <= n < m <= 64, got n {self.n!r} and m {self.m!r}"
            )
        if self.saliency not in get_args(Saliency):
            known = " or ".join(get_args(Saliency))
            raise PolicyError(f"{self.name}: expected saliency {known}, got {self.saliency!r}")
        # The need depends on a hyper-parameter: the instance's answer stands before the class's.
        object.__setattr__(self, "needs_calibration", self.second_order)

    @property
    def second_order(self) -> bool:
        """Whether it wants the layer's Hessian."""
        return self.saliency == "second_order"

    def check(self, layer: LayerInfo) -> str | None:
        return hessian_reason(layer) if self.second_order else None

    def is_identity(self, layer: LayerInfo) -> bool:
        return self._kept(layer.weight_shape) == layer.weights

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        layers = [layer for _, layer in forms.weighted_modules(module)]
        if not layers:
            raise PolicyError(f"{self.name}: expected a convolution or linear layer, got {type(module).__name__}")
        layers = [layer for layer in layers if self._prunes(cast(Tensor, layer.weight))]
        if not layers or not self.second_order:
            for layer in layers:
                magnitude = cast(Tensor, layer.weight).detach().abs()
                forms.set_form(layer, forms.MaskedWeight(highest_in_groups(magnitude, self.n, self.m)))
            return module
        for layer, hessian in zip(layers, layer_hessians(self.name, module, layers, calibration)):
            mask, solved = prune_groups(cast(Tensor, layer.weight), hessian, self.n, self.m)
            set_weight(layer, solved)
            forms.set_form(layer, forms.MaskedWeight(mask))
        return module

    def cost(self, layer: LayerInfo) -> LayerCost:
        return LayerCost(layer.macs, 32.0 * self._kept(layer.weight_shape))

    def _prunes(self, weight: Tensor) -> bool:
        return self._kept(tuple(weight.shape)) < weight.numel()

    def _kept(self, shape: tuple[int, ...]) -> int:
        return shape[0] * kept_inputs(shape[1], self.n, self.m) * prod(shape[2:])
