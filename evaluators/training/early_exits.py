"""Early exits, trained on a frozen backbone or together with it (1709.01686, section 3.2)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ...policies.exits import ExitNetwork
from .loop import Loss

SOFT_SHARE = 0.5


def exits_loss(network: ExitNetwork, label_smoothing: float = 0.0) -> Loss:
    """``sum_k (1 - a) H(y, P_k) + a H(P_last, P_k)``, with ``H(y, P_last)`` where the backbone learns too; ``a`` is a half.

    The paper sums the exits' cross-entropies; that the last one teaches the others is the in-place distillation of
    1903.05134.
    """

    def loss(_: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        *early, last = network.latest
        target = last.detach().softmax(1)
        total = functional.cross_entropy(last, labels, label_smoothing=label_smoothing)
        total = total.detach() if network.is_frozen else total
        for outputs in early:
            hard = functional.cross_entropy(outputs, labels, label_smoothing=label_smoothing)
            total = total + (1 - SOFT_SHARE) * hard + SOFT_SHARE * functional.cross_entropy(outputs, target)
        return total

    return loss
