"""Sparsities as groups of inputs, of which so many are kept."""

from __future__ import annotations

from ..policies.policy import Step

GROUP_SIZES = (4, 8, 16, 32)


def group_steps(sparsity: float) -> tuple[Step, Step]:
    """Pruning to n of m inputs, by magnitude and by the Hessian: the smallest group of ``GROUP_SIZES`` that has the share.

    Where none has it exactly, the largest group with the nearest number of at least 1.
    """
    kept = [(m, min(m - 1, max(1, round((1 - sparsity) * m)))) for m in GROUP_SIZES]
    m, n = next(((m, n) for m, n in kept if abs((1 - sparsity) * m - n) < 1e-6), kept[-1])
    return (
        Step.of("prune_nm", n=n, m=m, saliency="magnitude"),
        Step.of("prune_nm", n=n, m=m, saliency="second_order"),
    )
