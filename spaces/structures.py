"""Words of the menus for weights that are made from few parameters, and for groups of inputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ..policies.policy import Step

STRUCTURES: Mapping[str, tuple[re.Pattern[str], Callable[..., Step]]] = {
    "circulantB (blocks of B, from 2 to 9999)": (
        re.compile(r"circulant([1-9]\d{1,3}|[2-9])", re.ASCII),
        lambda block: Step.of("circulant", block=int(block), seed=0),
    ),
    "toeplitzB": (
        re.compile(r"toeplitz([1-9]\d{1,3}|[2-9])", re.ASCII),
        lambda block: Step.of("toeplitz", block=int(block)),
    ),
    "fastfood": (re.compile("fastfood"), lambda: Step.of("fastfood", seed=1)),
}
"""Word of the precision menu, as it is explained -> pattern, and the step from what its groups hold."""

GROUP_SIZES = (4, 8, 16, 32)


def structure_step(text: str) -> Step | None:
    """The step of a word such as ``circulant8``, or ``None`` where it is none of ours."""
    for pattern, step in STRUCTURES.values():
        match = pattern.fullmatch(text)
        if match is not None:
            return step(*match.groups())
    return None


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
