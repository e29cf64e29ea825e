"""N of every M consecutive inputs kept: by a score, or one after the other by what the outputs lose. Pure, as ``second_order``.

Groups run along the axis of the inputs, of a convolution for each place of its kernel alone; the last one may be smaller and
keeps what it has up to N.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .second_order import DEAD_SHARE, damped, resolved


def kept_inputs(inputs: int, n: int, m: int) -> int:
    """How many of so many inputs remain."""
    return inputs // m * n + min(n, inputs % m)


def highest_in_groups(score: Tensor, n: int, m: int) -> Tensor:
    """Mask (bool, the score's shape) of the n highest scores in each group of m; of equal ones the first.

    Parameters
    ----------
    score
        (out, in) or (out, in, kh, kw).
    """
    by_input = score.movedim(1, -1)
    padded = functional.pad(by_input, (0, -by_input.shape[-1] % m), value=-torch.inf).unflatten(-1, (-1, m))
    order = padded.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(padded, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return mask.flatten(-2)[..., : by_input.shape[-1]].movedim(-1, 1).contiguous()


def prune_groups(weight: Tensor, hessian: Tensor, n: int, m: int) -> tuple[Tensor, Tensor]:
    """Drop one weight of each group at a time, that of least ``w_j^2 / [(H_KK)^-1]_jj``, the kept ones solved for anew.

    As ``second_order.prune`` (2208.11580, eq. 3) with groups in place of the whole layer; m - n steps.

    Parameters
    ----------
    weight
        (out, in) or (out, in, kh, kw).
    hessian
        (d, d), as ``second_order.layer_hessian`` gives it.

    Returns
    -------
    tuple
        Mask (bool) and weights of the weight's shape.
    """
    original, h, diagonal = weight.detach().flatten(1).double(), damped(hessian), hessian.double().diagonal()
    dead, target = diagonal <= DEAD_SHARE * diagonal.mean(), original @ h
    mask, solution = torch.ones_like(original, dtype=torch.bool), original
    saliency = original.square() / torch.cholesky_inverse(torch.linalg.cholesky(h)).diagonal()
    for left in range(m - 1, n - 1, -1):
        saliency = torch.where(dead, -1 / (1 + original.square()), saliency).masked_fill(~mask, -torch.inf)
        mask &= highest_in_groups(saliency.view_as(weight), left, m).flatten(1)
        solution, saliency = resolved(h, target, mask, rank=left > n)
    return mask.view_as(weight), solution.to(weight.dtype).view_as(weight)
