"""Weight sharing by k-means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from .. import forms
from ..errors import PolicyError
from ..second_order import round_with_feedback
from .base import About, Calibration, LayerCost, LayerInfo, Phase
from .hessians import Rounding, hessian_reason, layer_hessians, require_rounding

MAX_SWEEPS = 1000


@dataclass(frozen=True)
class ShareKMeans:
    """Weights take one of k shared values: k-means from linear initial centroids (Han 2016, 1510.00149, section 3).

    Each weight tensor has its own codebook; weights that were pruned stay zero and take no part.

    Parameters
    ----------
    clusters
        Shared values of a weight tensor, 2 to 256; a tensor with fewer distinct values gets as many as it has.
    rounding
        ``nearest``: every weight takes its nearest shared value; ``second_order``: the error of each is made up for by
        those that follow, by the layer's Hessian on calibration inputs (GPTQ, 2210.17323).
    """

    clusters: int
    rounding: Rounding = "nearest"

    name: ClassVar[str] = "share"
    about: ClassVar[About] = About(
        (
            "Q9",
            "Q10",
        ),
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
        # The need depends on a hyper-parameter: the instance's answer stands before the class's.
        object.__setattr__(self, "needs_calibration", self.second_order)

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
        for layer, hessian in zip(layers, hessians):
            forms.set_form(layer, self._form(layer, hessian))
        return module

    def cost(self, layer: LayerInfo) -> LayerCost:
        return LayerCost(layer.macs, math.log2(self.clusters) * layer.weights)

    def _form(self, layer: nn.Module, hessian: Tensor | None) -> forms.SharedWeight:
        weight, mask = cast(Tensor, layer.weight).detach(), forms.mask_of(layer)
        kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
        centroids, found = kmeans_1d(weight[kept].cpu().numpy(), self.clusters)
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


def kmeans_1d(values: np.ndarray, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means in one dimension, from centroids that are evenly spaced between the least and the greatest value.

    Parameters
    ----------
    values
        (N,) float32.
    clusters
        k, at most; fewer distinct values are their own centroids, and no value at all gives the one centroid 0.

    Returns
    -------
    tuple
        Centroids (k,), ascending, and the index of the nearest one for each value (N,) int64.
    """
    ordered = np.sort(values).astype(np.float64)
    centroids = ordered[np.diff(ordered, prepend=-np.inf) > 0]
    if len(centroids) > clusters:
        centroids = _lloyd(ordered, np.linspace(ordered[0], ordered[-1], clusters))
    elif len(centroids) == 0:
        centroids = np.zeros(1)
    return centroids, np.searchsorted(_borders(centroids), values.astype(np.float64), side="right")


class _Runs:
    """Clusters of sorted values (N,) as runs between edges (k + 1,): prefix sums give means and losses in O(k)."""

    def __init__(self, ordered: np.ndarray) -> None:
        self.ordered = ordered
        self._sums = np.concatenate(([0.0], np.cumsum(ordered)))
        self._squares = np.concatenate(([0.0], np.cumsum(ordered**2)))

    def nearest(self, centroids: np.ndarray) -> np.ndarray:
        """Edges of the runs of values that are nearest to each centroid; a run may be empty."""
        inner = np.searchsorted(self.ordered, _borders(centroids))
        return np.concatenate(([0], inner, [len(self.ordered)]))

    def means(self, edges: np.ndarray) -> np.ndarray:
        return np.diff(self._sums[edges]) / np.diff(edges)

    def filled(self, edges: np.ndarray) -> np.ndarray:
        """As many runs, none empty: in place of each empty one, the run of largest squared error is cut at its mean."""
        clusters, edges = len(edges) - 1, np.unique(edges)
        while len(edges) <= clusters:
            counts, means = np.diff(edges), self.means(edges)
            losses = np.where(counts > 1, np.diff(self._squares[edges]) - counts * means**2, -np.inf)
            worst = int(np.argmax(losses))
            cut = np.searchsorted(self.ordered, means[worst])
            edges = np.insert(edges, worst + 1, np.clip(cut, edges[worst] + 1, edges[worst + 1] - 1))
        return edges


def _lloyd(ordered: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Lloyd's sweeps over sorted values (N,) until no value changes its cluster."""
    runs = _Runs(ordered)
    edges = np.empty(0, np.int64)
    for _ in range(MAX_SWEEPS):
        moved = runs.filled(runs.nearest(centroids))
        if np.array_equal(moved, edges):
            break
        edges, centroids = moved, runs.means(moved)
    return centroids


def _borders(centroids: np.ndarray) -> np.ndarray:
    return (centroids[1:] + centroids[:-1]) / 2
