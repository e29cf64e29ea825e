"""Neurons that are alike, merged without data (Srinivas 2015, "Data-free Parameter Pruning", arXiv 1507.06149). Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from .coupling import ChannelGroup


def own_weights(layer: nn.Module) -> Tensor:
    """Weight set (out, d) of each neuron or filter, its bias the last."""
    rows = cast(Tensor, layer.weight).detach().flatten(1)
    bias = cast(Tensor | None, layer.bias)
    return rows if bias is None else torch.cat([rows, bias.detach()[:, None]], 1)


def outgoing_energy(model: nn.Module, group: ChannelGroup) -> Tensor:
    """``a_j^2`` (channels,): squared outgoing weights of each channel, over all that read it."""
    total = torch.zeros(group.channels)
    for slot in group.slots:
        if slot.axis == "in":
            weight = cast(Tensor, model.get_submodule(slot.module).weight).detach()
            columns = weight.transpose(0, 1).flatten(1).square().sum(1)
            total += columns[list(slot.index)].reshape(group.channels, -1).sum(1)
    return total


def merge_alike(weights: Tensor, energy: Tensor, count: int) -> dict[int, int]:
    """Merge so many neurons, each time the pair of least saliency ``s_ij = a_j^2 |W_i - W_j|^2`` (eq. 5, algorithm 1).

    Parameters
    ----------
    weights
        (n, d) weight sets.
    energy
        (n,) squared outgoing weights ``a_j^2``. Neuron i that takes j over gets ``a_i + a_j``; the squares are taken to add
        up, which is exact where the two point apart by a right angle.
    count
        How many go, less than n.

    Returns
    -------
    dict
        Neuron that goes -> neuron that is kept in the end: where that one goes later, both are handed on.
    """
    distance = torch.cdist(weights.double(), weights.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    distance.fill_diagonal_(torch.inf)
    squares, nearest = energy.double().clone(), distance.argmin(1)
    alive = torch.ones(len(weights), dtype=torch.bool)
    into: dict[int, int] = {}
    for _ in range(count):
        saliency = torch.where(alive, squares * distance[torch.arange(len(weights)), nearest], torch.inf)
        gone = int(saliency.argmin())
        kept = int(nearest[gone])
        into[gone] = kept
        alive[gone] = False
        squares[kept] += squares[gone]
        distance[:, gone] = torch.inf
        orphans = (alive & (nearest == gone)).nonzero()[:, 0]
        nearest[orphans] = distance[orphans].argmin(1)
    return {gone: _last(gone, into) for gone in into}


def _last(neuron: int, into: Mapping[int, int]) -> int:
    while neuron in into:
        neuron = into[neuron]
    return neuron
