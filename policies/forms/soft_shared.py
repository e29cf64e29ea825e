"""Weights that are drawn to shared values while they train."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..coding.tensors import CodebookTensor, StoredTensor
from ..mixture import Mixture, PrecisionPrior, slopes
from .base import as_numpy, masked

MEAN_RATE, OTHER_RATE = 0.2, 6.0
"""Learning rates of means, and of log precisions and logits, over the weights': 1e-4 and 3e-3 over 5e-4 in the paper's code."""


class SoftSharedWeight(nn.Module):
    """Soft weight-sharing (Ullrich 2017, 1702.04008): a mixture prior learned with the weights.

    While it trains, the weight is the float one, and its gradient, and that of the mixture, has ``strength`` times the slope
    of ``-log p(w)`` added: the loss of eq. 5 without another term in the training loop. In evaluation, and stored, each
    weight is the mean of its most responsible component: 0 for the spike, a shared value for the others (section 3.3).

    The mixture is trained as tensors over a rate: one that moves its value by ``rate`` times the step of any optimizer that
    normalizes its steps, such as Adam.

    Parameters
    ----------
    mixture
        At the start.
    prior
        On the precisions.
    strength
        Beside the mean loss of a picture; the paper's ``tau / N`` for N training pictures.
    mask
        Kept weights (bool, the weight's shape); the others stay zero and take no part.
    """

    mask: Tensor | None

    def __init__(self, mixture: Mixture, prior: PrecisionPrior, strength: float, mask: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("mask", None if mask is None else mask.bool())
        self.means = nn.Parameter(mixture.means[1:].float() / MEAN_RATE)
        self.log_precisions = nn.Parameter(mixture.log_precisions.float() / OTHER_RATE)
        self.logits = nn.Parameter(mixture.log_shares[1:].float() / OTHER_RATE)
        self.prior, self.strength = prior, strength
        self._spike = float(mixture.log_shares[0])

    def mixture(self) -> Mixture:
        """As it stands, without gradients."""
        means, logits = self.means.detach() * MEAN_RATE, self.logits.detach() * OTHER_RATE
        left = math.log1p(-math.exp(self._spike))
        return Mixture(
            torch.cat([means.new_zeros(1), means]),
            self.log_precisions.detach() * OTHER_RATE,
            torch.cat([means.new_tensor([self._spike]), logits.log_softmax(0) + left]),
        )

    def forward(self, original: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.log_precisions[0].clamp_(min=math.log(self.prior.expected) / OTHER_RATE)
            mixed = _Drawn.apply(original, self.means, self.log_precisions, self.logits, self)
            return masked(cast(Tensor, mixed), self.mask)
        mixture = self.mixture()
        return mixture.means[self._codes(original, mixture)]

    def right_inverse(self, weight: Tensor) -> Tensor:
        return masked(weight, self.mask)

    def kept(self, original: Tensor) -> Tensor:
        """The weights (N,) that take part."""
        return original.detach().flatten() if self.mask is None else original.detach()[self.mask]

    def stored(self, original: Tensor) -> StoredTensor:
        mixture = self.mixture()
        codes = as_numpy(self._codes(original, mixture))
        mask = codes > 0
        return CodebookTensor(mask, (codes[mask] - 1).astype("int32"), as_numpy(mixture.means[1:]), tuple(codes.shape))

    def _codes(self, original: Tensor, mixture: Mixture) -> Tensor:
        """The component of each weight, 0 where the mask is not set; the weight's shape."""
        codes = torch.zeros(original.shape, dtype=torch.int64, device=original.device)
        found = mixture.most_responsible(self.kept(original))
        if self.mask is None:
            return found.view_as(codes)
        codes[self.mask] = found
        return codes


class _Drawn(torch.autograd.Function):
    """The weight as it is; on the way back the prior's slopes are added."""

    @staticmethod
    def forward(
        ctx: Any, original: Tensor, means: Tensor, log_precisions: Tensor, logits: Tensor, form: SoftSharedWeight
    ) -> Tensor:
        ctx.save_for_backward(original)
        ctx.form = form
        return original.view_as(original)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (original,), form = ctx.saved_tensors, ctx.form
        found = slopes(form.kept(original), form.mixture(), form.prior)
        pull = torch.zeros_like(grads[0])
        if form.mask is None:
            pull = found.weights.view_as(pull)
        else:
            pull[form.mask] = found.weights
        others = (found.means[1:] * MEAN_RATE, found.log_precisions * OTHER_RATE, found.logits * OTHER_RATE)
        return grads[0] + form.strength * pull, *(form.strength * slope for slope in others), None
