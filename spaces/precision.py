"""Precisions as words, and the steps that they stand for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..policies.errors import ConfigError, PolicyError
from ..policies.policy import Step
from ..policies.techniques import build
from ..policies.techniques.base import spelled_out

FINE_BITS = 8
_NUMBER = r"([1-9]\d{0,3})"


@dataclass(frozen=True)
class Precision:
    """A way to write a precision.

    Parameters
    ----------
    pattern
        Of the whole word, ASCII.
    shape
        How it is explained.
    step
        The step from the pattern's groups.
    solved
        The same rounded by the layer's Hessian, where that is worth its time.
    """

    pattern: str
    shape: str
    step: Callable[..., Step]
    solved: Callable[..., Step] | None = None

    def steps(self, text: str) -> tuple[Step, Step] | None:
        """The step of a word, rounded to the nearest and by the Hessian; ``None`` for a word of another kind.

        Raises
        ------
        PolicyError
            Where a number is out of its range.
        """
        match = re.fullmatch(self.pattern, text, re.ASCII)
        if match is None:
            return None
        plain = _whole(self.step(*match.groups("")))
        return plain, plain if self.solved is None else _whole(self.solved(*match.groups("")))


def _whole(step: Step) -> Step:
    """With every hyper-parameter, as a plan has it."""
    return Step.of(step.technique, **spelled_out(build(step)))


def _uniform(bits: str, activations: str, rounding: str = "nearest") -> Step:
    kind = "int8" if activations else "float32"
    return Step.of("quantize", bits=int(bits), activations=kind, rounding=rounding)


def _shared(clusters: str, fisher: str, rounding: str = "nearest") -> Step:
    weighting = {"weighting": "fisher"} if fisher else {}
    return Step.of("share", clusters=int(clusters), rounding=rounding, **weighting)


# Where values are fine enough, the nearest one is as good and found in no time.
def _uniform_solved(bits: str, activations: str) -> Step:
    return _uniform(bits, activations, "second_order" if int(bits) < FINE_BITS else "nearest")


def _shared_solved(clusters: str, fisher: str) -> Step:
    return _shared(clusters, fisher, "second_order" if int(clusters) < 2 ** (FINE_BITS - 3) else "nearest")


def _product(bits: str, dimension: str, shared: str) -> Step:
    codebooks = "shared" if shared else "each"
    return Step.of("product_quantize", clusters=2 ** int(bits), dimension=int(dimension), codebooks=codebooks)


def _residual(bits: str, dimension: str, stages: str) -> Step:
    return Step.of("residual_quantize", clusters=2 ** int(bits), dimension=int(dimension), stages=int(stages))


PRECISIONS = (
    Precision(r"w([2-8])(a8)?", "wB or wBa8 (B from 2 to 8 bit)", _uniform, _uniform_solved),
    Precision(
        rf"k{_NUMBER}(f)?", "kN or kNf (N shared values, 2 to 256; f: by Fisher information)", _shared, _shared_solved
    ),
    Precision(rf"soft{_NUMBER}", "softN (N values and zero)", lambda n: Step.of("share_soft", clusters=int(n))),
    Precision(rf"pq(\d)x{_NUMBER}(s)?", "pqBxD or pqBxDs (B bits for D weights; s: one codebook)", _product),
    Precision(rf"rq(\d)x{_NUMBER}x(\d)", "rqBxDxT (T stages of B bits for D weights)", _residual),
    Precision(rf"hash{_NUMBER}", "hashN (a value for N weights)", lambda n: Step.of("hash_weights", share=1 / int(n))),
)
"""What a precision may be beside ``float32``."""


def precision_steps(text: str) -> Iterator[tuple[Step, Step]]:
    """The step of a precision such as ``w4a8`` or ``k16``, rounded to the nearest and by the Hessian; none for ``float32``."""
    found = (kind.steps(text) for kind in PRECISIONS)
    return iter([next(steps for steps in found if steps is not None)] if text != "float32" else [])


def precision_step(text: str) -> Iterator[Step]:
    """The step of a precision, rounded to the nearest; none for ``float32``."""
    return (plain for plain, _ in precision_steps(text))


def require_precision(text: str) -> None:
    """Refuse a word that is no precision.

    Raises
    ------
    ConfigError
        With the known ones.
    """
    if text == "float32":
        return
    try:
        made = [steps for kind in PRECISIONS if (steps := kind.steps(text)) is not None]
        for step in made[0] if made else ():
            build(step)
    except PolicyError as error:
        raise ConfigError(f"space.precision: '{text}' cannot be: {error}") from error
    if not made:
        known = ", ".join(kind.shape for kind in PRECISIONS)
        raise ConfigError(f"space.precision: expected float32, {known}; got '{text}'")
