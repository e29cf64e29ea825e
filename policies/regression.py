"""The affine map of least squares from what a layer's weights multiply to outputs that it should give.

Symbols
-------
n, d
    Outputs of the layer, and inputs of each output: ``in`` or ``in * kh * kw``.
x, r
    (d,) what the weights multiply at a position, and (n,) what the layer's output lacks there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .second_order import MAX_POSITIONS, damped, spread, windows_of

CHUNK_VALUES = 2**21


def regressed(
    layer: nn.Conv2d | nn.Linear, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The layer's weight and bias after the step that brings its outputs nearest to the wanted ones.

    ``dW = cov(r, x) (cov(x, x) + a I)^-1`` and ``db = E[r] - dW E[x]``, with ``a`` as ``second_order.damped`` has it, so
    that a direction in which inputs hardly differ keeps its weights. Without a bias the moments are taken about 0.

    Parameters
    ----------
    layer
        Linear, or a convolution of one group.
    inputs
        (N, ...) of each call of the layer.
    outputs
        (N, ...) that each call should give.

    Returns
    -------
    tuple
        The new weight, of the weight's shape and type, and the new bias (n,), zero where the layer has none.
    """
    with torch.no_grad():
        lacking = [_positions_first(layer, wanted - layer(x)) for x, wanted in zip(inputs, outputs, strict=True)]
    each = [_moments(windows_of(layer, x), rows) for x, rows in zip(inputs, lacking)]
    second, cross, mean_x, mean_r = _averaged(each, [len(rows) for rows in lacking])
    if layer.bias is not None:
        second, cross = second - torch.outer(mean_x, mean_x), cross - torch.outer(mean_r, mean_x)
    change = torch.cholesky_solve(cross.T, torch.linalg.cholesky(damped(second))).T
    weight = layer.weight.detach()
    new = (weight.double() + change.view_as(weight)).to(weight.dtype)
    if layer.bias is None:
        return new, weight.new_zeros(len(weight))
    return new, (layer.bias.detach().double() + mean_r - change @ mean_x).to(weight.dtype)


def _averaged(each: Sequence[Sequence[Tensor]], positions: Sequence[int]) -> Sequence[Tensor]:
    """The moments of all calls from those of each, by their numbers of positions."""
    if len(each) == 1:
        return each[0]
    total = sum(positions)
    return [
        sum((count * part for count, part in zip(positions, parts)), torch.zeros(())) / total for parts in zip(*each)
    ]


def _positions_first(layer: nn.Module, outputs: Tensor) -> Tensor:
    """Outputs as (positions, n), in the order of ``windows_of``."""
    last = outputs.permute(0, 2, 3, 1) if isinstance(layer, nn.Conv2d) else outputs
    return last.reshape(-1, last.shape[-1])


def _moments(windows: Tensor, lacking: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``E[x x^T]``, ``E[r x^T]``, ``E[x]`` and ``E[r]`` in float64, over as many positions as a Hessian is taken over."""
    places, features = windows.shape[:3], windows.shape[3:].numel()
    chosen = spread(places.numel(), MAX_POSITIONS)
    second = torch.zeros(features, features, dtype=torch.float64)
    cross = torch.zeros(lacking.shape[1], features, dtype=torch.float64)
    mean_x, mean_r = torch.zeros(features, dtype=torch.float64), torch.zeros(lacking.shape[1], dtype=torch.float64)
    for part in chosen.split(max(1, CHUNK_VALUES // features)):
        x, r = windows[torch.unravel_index(part, places)].flatten(1).double(), lacking[part].double()
        second += x.T @ x
        cross += r.T @ x
        mean_x += x.sum(0)
        mean_r += r.sum(0)
    return second / len(chosen), cross / len(chosen), mean_x / len(chosen), mean_r / len(chosen)
