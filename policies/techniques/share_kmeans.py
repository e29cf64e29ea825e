"""Weight sharing by k-means."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from .. import forms
from ..errors import PolicyError
from ..second_order import round_with_feedback
from .base import ADDED_LATER, About, Calibration, LayerCost, LayerInfo, Phase
from .clustering import Initial, entropy_constrained_1d, kmeans_1d
from .fisher import weight_fisher
from .hessians import Rounding, hessian_reason, layer_hessians, require_rounding

Weighting = Literal["none", "fisher"]

LEAST_FISHER = 1e-3
"""Share of the mean that every weight's importance is raised by: some never saw a gradient, and must not become anything."""


@dataclass(frozen=True)
class ShareKMeans:
    """Weights take one of k shared values, found by k-means (Han 2016, 1510.00149, section 3).

    Each weight tensor has its own codebook; weights that were pruned stay zero and take no part.

    Parameters
    ----------
    clusters
        Shared values of a weight tensor, 2 to 256; a tensor with fewer distinct values gets as many as it has.
    rounding
        ``nearest``: every weight takes its nearest shared value; ``second_order``: the error of each is made up for by
        those that follow, by the layer's Hessian on calibration inputs (GPTQ, 2210.17323).
    initial
        Where centroids start: ``linear`` (evenly between the least and the greatest weight), ``density`` (at even steps of
        the distribution function) or ``random`` (at weights drawn with a fixed seed); 1510.00149, section 3.2.
    weighting
        ``fisher``: k-means on ``sum h_ii (w_i - c_j)^2`` with the diagonal empirical Fisher information for ``h_ii``
        (Choi 2017, 1612.01543, eq. 8).
    entropy
        Above 0, what a bit of the codes' ideal length costs, in units of the (weighted) mean square of the weights about
        their mean: ``h_i (w_i - c_j)^2 - entropy * scale * log2 p_j`` is minimized (entropy-constrained scalar quantization,
        1612.01543, section 5.2); 0.003 to 0.1 are sensible, and fewer than ``clusters`` values may remain.
    """

    clusters: int
    rounding: Rounding = "nearest"
    initial: Initial = field(default="linear", metadata=ADDED_LATER)
    weighting: Weighting = field(default="none", metadata=ADDED_LATER)
    entropy: float = field(default=0.0, metadata=ADDED_LATER)

    name: ClassVar[str] = "share"
    about: ClassVar[About] = About(
        ("Q9", "Q10", "Q11"),
        "weights share k values",
        "convolutions and linear layers",
        ("stored bytes",),
        "float32 with the effective weights",
        "Han 2016, 1510.00149",
    )
    phase: ClassVar[Phase] = Phase.QUANTIZE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.clusters, int) or not 2 <= self.clusters <= 256:
            raise PolicyError(f"{self.name}: expected clusters as a whole number from 2 to 256, got {self.clusters!r}")
        require_rounding(self.name, self.rounding)
        for what, kinds in (("initial", Initial), ("weighting", Weighting)):
            if getattr(self, what) not in get_args(kinds):
                known = ", ".join(get_args(kinds))
                raise PolicyError(f"{self.name}: expected {what} as one of {known}, got {getattr(self, what)!r}")
        if not 0 <= self.entropy < math.inf:
            raise PolicyError(f"{self.name}: expected entropy of at least 0 (0 is off), got {self.entropy!r}")
        if self.entropy and self.second_order:
            raise PolicyError(f"{self.name}: second_order rounding takes no account of entropy; leave one of them out")
        # The need depends on hyper-parameters: the instance's answer stands before the class's.
        object.__setattr__(self, "needs_gradients", self.weighting == "fisher")
        object.__setattr__(self, "needs_calibration", self.second_order or self.needs_gradients)

    @property
    def second_order(self) -> bool:
        """Whether it wants the layer's Hessian."""
        return self.rounding == "second_order"

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
        fishers = weight_fisher(module, layers, calibration) if self.needs_gradients else [None] * len(layers)
        for layer, hessian, fisher in zip(layers, hessians, fishers):
            forms.set_form(layer, self._form(layer, hessian, fisher))
        return module

    def cost(self, layer: LayerInfo) -> LayerCost:
        return LayerCost(layer.macs, math.log2(self.clusters) * layer.weights)

    def _form(self, layer: nn.Module, hessian: Tensor | None, fisher: Tensor | None) -> forms.SharedWeight:
        weight, mask = cast(Tensor, layer.weight).detach(), forms.mask_of(layer)
        kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
        flat = weight[kept].cpu().numpy()
        importance = None
        if fisher is not None:
            some = fisher[kept].double()
            importance = (some + LEAST_FISHER * some.mean()).cpu().numpy()
        if self.entropy:
            centroids, found = entropy_constrained_1d(flat, self.clusters, self.entropy, self.initial, importance)
        else:
            centroids, found = kmeans_1d(flat, self.clusters, self.initial, importance)
        values = torch.from_numpy(centroids)
        codes = torch.zeros(weight.shape, dtype=torch.int32, device=weight.device)
        if hessian is None:
            codes[kept] = torch.from_numpy(found).to(codes)
        else:
            shared = round_with_feedback(weight.double(), hessian, lambda x, _: values[_nearest(x, values)], mask)
            codes[kept] = _nearest(shared[kept], values).to(codes)
        return forms.SharedWeight(codes, values.to(weight), mask)


def _nearest(values: Tensor, centroids: Tensor) -> Tensor:
    """Index (N,) of the nearest of the ascending centroids (k,)."""
    return torch.bucketize(values, (centroids[1:] + centroids[:-1]) / 2)
