"""A mixture of Gaussians over the weights of a layer, one of them a spike at zero (Ullrich 2017, 1702.04008, section 3).

Pure: tensors in, tensors out.

Symbols
-------
w
    (N,) weights.
mu, lambda, pi
    (k + 1,) means, precisions and shares of the components; the first is the spike, ``mu_0 = 0`` and ``pi_0`` fixed.
r
    (N, k + 1) responsibilities, ``r_ij`` in proportion to ``pi_j N(w_i | mu_j, 1 / lambda_j)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

HELD_VALUES = 2**18
SWEEPS = 10
NARROW = 4.0
"""Expected precisions are those of a standard deviation of this part of the distance between means at the start."""
SPIKE_STRENGTH, STRENGTH = 0.02, 0.001
"""What the precisions' Gamma priors count as, in shares of the weights: 5000 and 250 of LeNet-300-100's, as in the paper."""


@dataclass(frozen=True)
class Mixture:
    """Components; the first is the spike.

    Parameters
    ----------
    means, log_precisions, log_shares
        (k + 1,).
    """

    means: Tensor
    log_precisions: Tensor
    log_shares: Tensor

    def scores(self, weights: Tensor) -> Tensor:
        """``log pi_j N(w_i | mu_j, 1 / lambda_j)`` up to a constant, (N, k + 1)."""
        squares = (weights[:, None] - self.means).square_()
        return squares.mul_(-0.5 * self.log_precisions.exp()).add_(self.log_shares + 0.5 * self.log_precisions)

    def most_responsible(self, weights: Tensor) -> Tensor:
        """The component (N,) int64 of each weight; 0 is the spike."""
        found = [self.scores(part).argmax(1) for part in parts_of(weights, len(self.means))]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class PrecisionPrior:
    """Gamma priors on the precisions, which keep components from shrinking to a point.

    Parameters
    ----------
    expected
        Of all components, ``alpha / beta``; that of the spike never falls below it. The paper has one mixture for the whole
        network, in which a large layer's many weights near zero keep the spike narrow; that of a small layer, whose weights
        are needed, would spread over all of them, since its share is fixed.
    count
        N.
    """

    expected: float
    count: int

    def strengths(self, components: int) -> Tensor:
        """``alpha_j - 1`` (components,)."""
        shares = torch.full((components,), STRENGTH)
        shares[0] = SPIKE_STRENGTH
        return shares * self.count

    def slopes(self, log_precisions: Tensor) -> Tensor:
        """Of ``-log p(lambda)`` over ``log lambda``: ``beta lambda - (alpha - 1)``."""
        strengths = self.strengths(len(log_precisions)).to(log_precisions)
        return strengths * (log_precisions.exp() / self.expected - 1)


@dataclass(frozen=True)
class Slopes:
    """Of ``-log p(w)`` with respect to the weights (N,), the means, the log precisions and the logits of the shares."""

    weights: Tensor
    means: Tensor
    log_precisions: Tensor
    logits: Tensor


def parts_of(weights: Tensor, components: int) -> Iterator[Tensor]:
    """The weights in parts of which a score for each component fits into a processor's cache."""
    return iter(weights.split(max(1, HELD_VALUES // components))) if len(weights) else iter(())


def slopes(weights: Tensor, mixture: Mixture, prior: PrecisionPrior) -> Slopes:
    """The gradient of ``-log p(w) - log p(lambda)`` (1702.04008, eq. 5) in closed form.

    ``d/dw_i = sum_j r_ij lambda_j (w_i - mu_j)``; ``d/dmu_j = -sum_i`` of the same terms;
    ``d/dlog lambda_j = sum_i r_ij (lambda_j (w_i - mu_j)^2 - 1) / 2`` and the prior's. The k shares beside the spike's are
    ``(1 - pi_0) softmax(logits)``: ``d/dlogit_j = softmax_j n - n_j`` with ``n_j = sum_i r_ij``, ``n`` their sum.
    """
    precisions = mixture.log_precisions.exp()
    pulls, means = [], torch.zeros_like(mixture.means)
    logs, counts = torch.zeros_like(means), torch.zeros_like(means)
    for part in parts_of(weights, len(means)):
        responsibilities = mixture.scores(part).softmax(1)
        away = part[:, None] - mixture.means
        force = responsibilities * away * precisions
        pulls.append(force.sum(1))
        means -= force.sum(0)
        logs += 0.5 * ((force * away).sum(0) - responsibilities.sum(0))
        counts += responsibilities.sum(0)
    means[0] = 0.0
    logs += prior.slopes(mixture.log_precisions)
    shares = mixture.log_shares[1:].softmax(0)
    logits = shares * counts[1:].sum() - counts[1:]
    return Slopes(torch.cat(pulls) if pulls else torch.zeros_like(weights), means, logs, logits)


def start(weights: Tensor, clusters: int, spike_share: float) -> tuple[Mixture, PrecisionPrior]:
    """A mixture for trained weights: means evenly over their range (section 4.1 of the paper), then a few sweeps of EM.

    Parameters
    ----------
    weights
        (N,).
    clusters
        k, components beside the spike.
    spike_share
        ``pi_0``.
    """
    low, high = (float(weights.min()), float(weights.max())) if len(weights) else (0.0, 0.0)
    low, high = (low, high) if high > low else (low - 0.5, low + 0.5)
    expected = (NARROW * (clusters - 1) / (high - low)) ** 2
    prior = PrecisionPrior(expected, len(weights))
    means = torch.cat([torch.zeros(1), torch.linspace(low, high, clusters)])
    shares = torch.cat([torch.tensor([spike_share]), torch.full((clusters,), (1 - spike_share) / clusters)])
    mixture = Mixture(means, torch.full_like(means, expected).log(), shares.log())
    for _ in range(SWEEPS if len(weights) else 0):
        mixture = _sweep(weights, mixture, prior, spike_share)
    return mixture, prior


def _sweep(weights: Tensor, mixture: Mixture, prior: PrecisionPrior, spike_share: float) -> Mixture:
    counts, sums, squares = (torch.zeros_like(mixture.means) for _ in range(3))
    for part in parts_of(weights, len(counts)):
        responsibilities = mixture.scores(part).softmax(1)
        counts += responsibilities.sum(0)
        sums += responsibilities.T @ part
        squares += responsibilities.T @ part.square()
    means = torch.where(counts > 1e-3, sums / counts.clamp_min(1e-3), mixture.means)
    means[0] = 0.0
    spread = (squares - 2 * means * sums + means.square() * counts).clamp_min(0)
    strengths = prior.strengths(len(means))
    precisions = (counts / 2 + strengths) / (spread / 2 + strengths / prior.expected)
    precisions[0] = precisions[0].clamp_min(prior.expected)
    shares = (1 - spike_share) * (counts[1:] + 1) / (counts[1:] + 1).sum()
    return Mixture(means, precisions.log(), torch.cat([torch.tensor([spike_share]), shares]).log())
