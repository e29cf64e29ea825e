"""Layer-wise second-order compression: which weights to drop or round, and how the others make up for it.

A layer ``y = W x`` is judged by its outputs on calibration inputs alone, ``E |(W' - W) x|^2 = tr (W' - W) H (W' - W)^T``:
a quadratic in each row of ``W`` with one Hessian for all rows, so that every optimum is a linear solve (Hassibi 1993,
"Optimal Brain Surgeon"; Frantar 2022, "Optimal Brain Compression", arXiv 2208.11580). Pure: tensors in, tensors out.

Symbols
-------
n, d
    Outputs of the layer, and inputs of each output: ``in`` or ``in * kh * kw``.
W
    (n, d) weights; a convolution's (out, in, kh, kw) are taken as ``weight.flatten(1)``.
H
    (d, d) mean of ``x x^T``, float64; made safe to invert by ``damped``.
K
    The inputs that a row keeps, k of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from .errors import CandidateError, PolicyError

MAX_POSITIONS = 32_768
# On 256 pictures 0.01 to 0.1 give the least error on other pictures: less overfits where d is above 256 (LeNet-5's fc1).
DAMPING = 0.03
DEAD_SHARE = 1e-10
# The first step is the dearest (k is d / 2 on average) and the least critical; the later ones decide.
KEPT_FIRST, KEPT_LATER = 0.5, 0.75
SWEEPS = 2
SWEEP_BLOCK = 64
# Doubles in a batch of systems. Solving is fastest when it stays in the cache, rounding when it loops seldom.
SOLVED_VALUES, ROUNDED_VALUES = 2**18, 2**21

Projection = Callable[[Tensor, int], Tensor]


def layer_hessian(module: nn.Module, inputs: Tensor) -> Tensor:
    """Mean of ``x x^T`` over the positions at which a layer multiplies its weights.

    Parameters
    ----------
    module
        A linear layer or a convolution of one group.
    inputs
        (N, ..., in) or (N, in, height, width). Of more than ``MAX_POSITIONS`` positions as many are drawn, spread evenly
        over the pictures and the same ones every time.

    Returns
    -------
    Tensor
        (d, d) float64, features in the order of ``weight.flatten(1)``.

    Raises
    ------
    PolicyError
        For another kind of layer, or without inputs.
    CandidateError
        Where inputs are not finite.
    """
    windows = windows_of(module, inputs.detach())
    places, features = windows.shape[:3], windows.shape[3:].numel()
    positions = spread(places.numel(), MAX_POSITIONS)
    if not len(positions):
        raise PolicyError(f"second order: expected calibration inputs of the layer, got shape {tuple(inputs.shape)}")
    hessian = torch.zeros(features, features, dtype=torch.float64)
    for chosen in positions.split(max(1, ROUNDED_VALUES // features)):
        x = windows[torch.unravel_index(chosen, places)].flatten(1).float()
        product = (x.T @ x).double()
        # Not every processor's product of a matrix with itself is symmetric to the last bit.
        hessian += (product + product.T) / 2
    if not hessian.isfinite().all():
        raise CandidateError("second order: expected finite calibration inputs, got nan or inf; check the network")
    return hessian / len(positions)


def hessian_of_calls(module: nn.Module, calls: Sequence[Tensor]) -> Tensor:
    """Return ``layer_hessian`` over all calls of a layer, each of them by its number of positions.

    Parameters
    ----------
    calls
        Inputs (N, ...) of each call; their sizes may differ.
    """
    if len(calls) == 1:
        return layer_hessian(module, calls[0])
    counts = [windows_of(module, x.detach()).shape[:3].numel() for x in calls]
    sums = torch.stack([count * layer_hessian(module, x) for count, x in zip(counts, calls)])
    return sums.sum(0) / sum(counts)


def damped(hessian: Tensor) -> Tensor:
    """``H + a I`` in float64: ``a`` is ``DAMPING`` times the mean of the diagonal, or 1 where that is 0."""
    hessian = hessian.double()
    ridge = DAMPING * hessian.diagonal().mean()
    ridge = torch.where(ridge > 0, ridge, torch.ones_like(ridge))
    return hessian + ridge * torch.eye(len(hessian), dtype=torch.float64)


def output_error(weight_new: Tensor, weight_old: Tensor, hessian: Tensor) -> float:
    """Squared error of the outputs over their squared size, ``tr(dW H dW^T) / tr(W H W^T)`` with ``W`` the old weights.

    Where the old outputs are all zero it is 0 if the new ones are too, else infinite.
    """
    old, change = _rows(weight_old), _rows(weight_new) - _rows(weight_old)
    size, error = (float(((w @ hessian.double()) * w).sum()) for w in (old, change))
    if size > 0:
        return error / size
    return float("inf") if error > 0 else 0.0


class Pruning:
    """Zeros where the outputs suffer least, in a few steps with every kept weight solved for anew after each.

    A step drops the weights of least ``w_j^2 / [(H_KK)^-1]_jj`` (2208.11580, eq. 3, half of what the outputs lose) in the
    whole layer; then each row takes its optimum for what it keeps, ``w_K = H_KK^-1 (H w_0)_K``, ``w_0`` being the given
    weights and ``H`` damped. Weights on inputs that are always zero go first. All shares share their first steps, which
    are taken once.

    Parameters
    ----------
    weight
        (out, in) or (out, in, kh, kw).
    hessian
        (d, d), as ``layer_hessian`` gives it.
    """

    def __init__(self, weight: Tensor, hessian: Tensor) -> None:
        self._shape, self._dtype, self._original, self._h = weight.shape, weight.dtype, _rows(weight), damped(hessian)
        diagonal = hessian.double().diagonal()
        self._dead, self._target = diagonal <= DEAD_SHARE * diagonal.mean(), self._original @ self._h
        # Weights left, and what the outputs would lose by each; -inf where it is gone.
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(self._h)).diagonal()
        self._steps = [(self._original.numel(), self._original.square() / inverse)]

    def is_of(self, weight: Tensor) -> bool:
        """Whether these are the weights."""
        return weight.shape == self._shape and torch.equal(_rows(weight), self._original)

    def to(self, keep: int) -> tuple[Tensor, Tensor]:
        """Mask (bool) and weights of the weight's shape, ``keep`` of them not pruned, exactly."""
        if keep >= self._original.numel():
            return torch.ones(self._shape, dtype=torch.bool), self._original.to(self._dtype).view(self._shape)
        while self._next() > keep:
            left = self._next()
            # Damping bounds the condition, so that single precision does to rank the weights, at twice the speed.
            _, saliency = resolved(self._h.float(), self._target.float(), self._best(-1, left))
            self._steps.append((left, saliency))
        last = next(i for i in reversed(range(len(self._steps))) if self._steps[i][0] > keep)
        mask = self._best(last, keep)
        solution, _ = resolved(self._h, self._target, mask, rank=False)
        return mask.view(self._shape), solution.to(self._dtype).view(self._shape)

    def _next(self) -> int:
        return int((KEPT_FIRST if len(self._steps) == 1 else KEPT_LATER) * self._steps[-1][0])

    def _best(self, step: int, keep: int) -> Tensor:
        """Mask of the ``keep`` weights that are missed most after a step."""
        saliency = self._steps[step][1].double()
        gone = saliency == -torch.inf
        return _highest(
            torch.where(self._dead, -1 / (1 + self._original.square()), saliency).masked_fill(gone, -torch.inf), keep
        )


def prune(weight: Tensor, hessian: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Mask and weights with ``keep`` weights left in the whole layer, see ``Pruning``."""
    return Pruning(weight, hessian).to(keep)


def reconstruct(weight: Tensor, hessian: Tensor, keep: Tensor) -> Tensor:
    """The best weights on some of the inputs once the others are gone: ``W_K + W_D H_DK H_KK^-1`` (1707.06168, section 3.1).

    Parameters
    ----------
    keep
        (k,) indices of the features that remain, in the order of ``weight.flatten(1)``.

    Returns
    -------
    Tensor
        (n, k), columns in the order of ``keep``.
    """
    h = damped(hessian)
    factor = torch.linalg.cholesky(h[keep][:, keep])
    return torch.cholesky_solve((_rows(weight) @ h[:, keep]).T, factor).T.to(weight.dtype)


def round_with_feedback(weight: Tensor, hessian: Tensor, project: Projection, mask: Tensor | None = None) -> Tensor:
    """Weights rounded one input at a time, the error of each made up for by those that are still to come.

    In the order of the largest ``H_jj``, ``q_j = project(w_j + sum_{i<j} (w_i - q_i) M_ij)`` with ``H = M D M^T``, ``M`` unit
    upper triangular: GPTQ (2210.17323, section 3) in the form of LDLQ (2307.13304, theorem 6: they are the same), which
    needs no inverse. Where weights are pruned, each row has the ``M`` of its own kept inputs: unlike in SparseGPT
    (2301.00774) no error goes to weights that stay zero. Then sweeps move single weights while that lowers the error.

    Parameters
    ----------
    weight
        (out, in) or (out, in, kh, kw).
    project
        From values (n,) float64 of one input and its index in [0, d) to the nearest allowed values (n,) float64. Rows
        whose weight is pruned hold any value and are not read.
    mask
        Kept weights (bool, the weight's shape); the others become zero.
    """
    original, h = _rows(weight), damped(hessian)
    kept = torch.ones_like(original, dtype=torch.bool) if mask is None else mask.flatten(1)
    order = h.diagonal().argsort(descending=True, stable=True)
    w, h, kept = original[:, order].masked_fill(~kept[:, order], 0.0), h[order][:, order], kept[:, order]

    def in_order(values: Tensor, index: int) -> Tensor:
        return project(values, int(order[index]))

    rounded = _round_rows(w, h, in_order) if bool(kept.all()) else _round_kept(w, h, in_order, kept)
    for _ in range(SWEEPS):
        _sweep(rounded, w, h, in_order, kept)
    return rounded[:, order.argsort()].to(weight.dtype).view_as(weight)


def _rows(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1).double()


def windows_of(module: nn.Module, inputs: Tensor) -> Tensor:
    """What the weights multiply: a view of three axes of positions, then the axes of the weight's input side."""
    if isinstance(module, nn.Linear):
        return inputs.reshape(-1, 1, 1, inputs.shape[-1])
    if not isinstance(module, nn.Conv2d) or module.groups != 1:
        raise PolicyError(f"second order: expected a linear layer or a convolution of one group, got {module}")
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    windows = functional.pad(inputs, module._reversed_padding_repeated_twice, mode)
    for axis, (size, stride, dilation) in enumerate(zip(module.kernel_size, module.stride, module.dilation)):
        windows = windows.unfold(2 + axis, dilation * (size - 1) + 1, stride)[..., ::dilation]
    return windows.permute(0, 2, 3, 1, 4, 5)


def spread(total: int, most: int) -> Tensor:
    """Indices below ``total``: all of them, or one drawn from each of ``most`` equal parts."""
    if total <= most:
        return torch.arange(total)
    # Drawn, since an even step would meet the same columns of every picture.
    drawn = torch.rand(most, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return ((torch.arange(most) + drawn) * (total / most)).long().clamp_(max=total - 1)


def _highest(score: Tensor, keep: int) -> Tensor:
    """Mask of the ``keep`` highest scores; of equal ones the last in C order."""
    order = score.flatten().argsort(stable=True)
    mask = torch.zeros(order.numel(), dtype=torch.bool)
    mask[order[order.numel() - keep :]] = True
    return mask.view_as(score)


def _systems(mask: Tensor, values: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Batches of rows (b,), the inputs they keep (b, k) in ascending order, and which of these are no padding (b, k)."""
    counts = mask.sum(1)
    # Rows of like size go together, so that there is little padding; it takes inputs that the row does not keep.
    order = counts.argsort(descending=True, stable=True)
    order = order[counts[order] > 0]
    while len(order):
        widest = int(counts[order[0]])
        rows, order = order.tensor_split([max(1, values // widest**2)])
        kept = (~mask[rows]).byte().argsort(dim=1, stable=True)[:, :widest]
        yield rows, kept, torch.arange(widest) < counts[rows, None]


def _submatrices(h: Tensor, kept: Tensor, valid: Tensor) -> Tensor:
    """``H_KK`` of each row (b, k, k), the identity where there is padding."""
    parts = h[kept[:, :, None], kept[:, None, :]]
    if not bool(valid.all()):
        parts.masked_fill_(~(valid[:, :, None] & valid[:, None, :]), 0.0)
        parts.diagonal(dim1=1, dim2=2).add_((~valid).to(parts))
    return parts


def resolved(h: Tensor, target: Tensor, mask: Tensor, rank: bool = True) -> tuple[Tensor, Tensor]:
    """Each row's optimum on what it keeps, and (to ``rank``) the saliencies there; zero and -inf elsewhere.

    ``target`` is ``W H``.
    """
    solution, saliency = torch.zeros_like(target), torch.full_like(target, -torch.inf)
    for rows, kept, valid in _systems(mask, SOLVED_VALUES):
        factor, places = torch.linalg.cholesky(_submatrices(h, kept, valid)), (rows[:, None], kept)
        right = target[places].masked_fill(~valid, 0.0)
        solved = torch.cholesky_solve(right[..., None], factor)[..., 0]
        solution[places] = solved
        if not rank:
            continue
        inverse = torch.cholesky_inverse(factor).diagonal(dim1=1, dim2=2)
        saliency[places] = (solved.square() / inverse).masked_fill(~valid, -torch.inf)
    return solution, saliency


def _feedback(h: Tensor) -> Tensor:
    """``M^T`` (..., k, k), unit lower triangular, of ``H = M D M^T``: row j tells how earlier errors bear on weight j."""
    factor = torch.linalg.cholesky(h.flip(-2, -1)).flip(-2, -1)
    return (factor / factor.diagonal(dim1=-2, dim2=-1)[..., None, :]).mT.contiguous()


def _round_rows(w: Tensor, h: Tensor, project: Projection) -> Tensor:
    feedback, error, rounded = _feedback(h), torch.zeros_like(w), torch.zeros_like(w)
    for j in range(len(h)):
        rounded[:, j] = project(w[:, j] + error[:, :j] @ feedback[j, :j], j)
        error[:, j] = w[:, j] - rounded[:, j]
    return rounded


def _round_kept(w: Tensor, h: Tensor, project: Projection, mask: Tensor) -> Tensor:
    rounded, values = torch.zeros_like(w), torch.zeros_like(w[:, 0])
    for rows, kept, valid in _systems(mask, ROUNDED_VALUES):
        feedback, places = _feedback(_submatrices(h, kept, valid)), mask[rows].cumsum(1) - 1
        error = torch.zeros_like(feedback[..., 0])
        for j in range(len(h)):
            here = mask[rows, j].nonzero()[:, 0]
            if not len(here):
                continue
            own, place = rows[here], places[here, j]
            values[own] = w[own, j] + (feedback[here, place] * error[here]).sum(1)
            rounded[own, j] = project(values, j)[own]
            error[here, place] = w[own, j] - rounded[own, j]
    return rounded


def _sweep(rounded: Tensor, w: Tensor, h: Tensor, project: Projection, mask: Tensor) -> None:
    """Each kept weight in turn, in place, to the allowed value that is best while the others stay as they are."""
    for block in torch.arange(len(h)).split(SWEEP_BLOCK):
        gradient = (rounded - w) @ h[:, block]
        for place, j in enumerate(block.tolist()):
            best = project(rounded[:, j] - gradient[:, place] / h[j, j], j)
            step = torch.where(mask[:, j], best - rounded[:, j], 0.0)
            rounded[:, j] += step
            gradient += torch.outer(step, h[j, block])
