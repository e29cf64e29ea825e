"""Words of the precision menu, such as ``w4a8``, ``k16`` or ``binary``, and the steps they stand for: one row a kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..policies.errors import ConfigError, PolicyError
from ..policies.policy import Step
from ..policies.techniques import build, spelled_out

FINE_BITS = 8
Pair = tuple[Step, Step]
"""Rounded to the nearest, and by the layer's Hessian; the same where there is no choice."""


@dataclass(frozen=True)
class Word:
    """A kind of words.

    Parameters
    ----------
    pattern
        Regular expression of the whole word.
    text
        How it is told to the user.
    pair
        The steps of a word that matches; ``None`` for the word that leaves weights as they are.
    """

    pattern: str
    text: str
    pair: Callable[[re.Match[str]], Pair | None]


def _uniform(match: re.Match[str]) -> Pair:
    bits, activations = int(match["bits"]), "int8" if match["act"] else "float32"
    given: dict[str, int | str] = {"bits": bits, "activations": activations}
    kinds = ("nearest", "second_order" if bits < FINE_BITS else "nearest")
    a, b = (Step.of("quantize", **given, rounding=kind) for kind in kinds)
    return a, b


def _ranged(match: re.Match[str]) -> Pair:
    plain, second_order = _uniform(match)
    a, b = (Step.of(s.technique, **dict(s.parameters), calibration=match["how"]) for s in (plain, second_order))
    return a, b


def _adaptive(match: re.Match[str]) -> Pair:
    plain, _ = _uniform(match)
    return plain, Step.of(plain.technique, **{**dict(plain.parameters), "rounding": "adaptive"})


def _shared(match: re.Match[str]) -> Pair:
    clusters = int(match["clusters"])
    given = {"weighting": "fisher"} if match["fisher"] else {}
    kinds = ("nearest", "second_order" if clusters < 2 ** (FINE_BITS - 3) else "nearest")
    a, b = (Step.of("share", clusters=clusters, rounding=kind, **given) for kind in kinds)
    return a, b


def _soft(match: re.Match[str]) -> Pair:
    given = {"zero": float("0." + int(match["nines"]) * "9")} if match["nines"] else {}
    given |= {"strength": float(f"{match['millionths']}e-6")} if match["millionths"] else {}
    return _alone("share_soft", clusters=int(match["clusters"]), **given)


def _product(match: re.Match[str]) -> Pair:
    codebooks = "shared" if match["shared"] else "each"
    clusters, dimension = 2 ** int(match["bits"]), int(match["dimension"])
    return _alone("product_quantize", clusters=clusters, dimension=dimension, codebooks=codebooks)


def _residual(match: re.Match[str]) -> Pair:
    given = {name: int(match[name]) for name in ("dimension", "stages")}
    return _alone("residual_quantize", clusters=2 ** int(match["bits"]), **given)


def _hashed(match: re.Match[str]) -> Pair:
    return _alone("hash_weights", share=1 / int(match["places"]))


def _alone(technique: str, **given: int | float | str) -> Pair:
    """The step with every hyper-parameter, as a plan has it; there is no other."""
    step = spelled_out(build(Step.of(technique, **given)))
    return step, step


def _fixed(match: re.Match[str]) -> Pair:
    exponents = "tensor" if match["kind"] == "fixed" else "channel"
    rounding = "stochastic" if match["drawn"] else "nearest"
    step = Step.of("fixed_point", bits=int(match["bits"]), exponents=exponents, rounding=rounding)
    return step, step


def _binary(match: re.Match[str]) -> Pair:
    step = Step.of("binarize", method=match["method"] or "mean")
    return step, step


def _circulant(match: re.Match[str]) -> Pair:
    step = Step.of("circulant", block=int(match["block"]), seed=0)
    return step, step


def _toeplitz(match: re.Match[str]) -> Pair:
    step = Step.of("toeplitz", block=int(match["block"]))
    return step, step


def _fastfood(_: re.Match[str]) -> Pair:
    step = Step.of("fastfood", seed=1)
    return step, step


GENERATED: tuple[Word, ...] = (
    Word(r"circulant(?P<block>[1-9]\d{1,3}|[2-9])", "circulantB (blocks of B, from 2 to 9999)", _circulant),
    Word(r"toeplitz(?P<block>[1-9]\d{1,3}|[2-9])", "toeplitzB (the same)", _toeplitz),
    Word(r"fastfood", "fastfood", _fastfood),
)
"""Weights that are made from few parameters: zeros would not be kept in them."""

WORDS: tuple[Word, ...] = (
    Word(r"float32", "float32", lambda _: None),
    Word(r"w(?P<bits>[2-8])(?P<act>a8)?", "wB or wBa8 (B from 2 to 8; a8: 8-bit inputs)", _uniform),
    Word(
        r"w(?P<bits>[2-8])(?P<act>a8)_(?P<how>percentile|mse)",
        "wBa8_percentile or wBa8_mse (ranges of 8-bit inputs)",
        _ranged,
    ),
    Word(
        r"w(?P<bits>[2-7])(?P<act>a8)?_adaptive",
        "wB_adaptive or wBa8_adaptive (B from 2 to 7; where second order is on)",
        _adaptive,
    ),
    Word(
        r"k(?P<clusters>[2-9]|[1-9]\d|1\d\d|2[0-4]\d|25[0-6])(?P<fisher>f)?",
        "kN or kNf (N from 2 to 256 shared values; f: by Fisher information)",
        _shared,
    ),
    Word(
        r"soft(?P<clusters>[1-9]\d{0,2})(?:z(?P<nines>[1-7]))?(?:s(?P<millionths>[1-9]\d{0,3}))?",
        "softN, softNzZ, softNsS or softNzZsS (N from 2 to 256 values and zero, by a learned mixture; Z nines of zero's prior"
        " share: z3 is 0.999; S millionths of the prior's strength, 1 where not given)",
        _soft,
    ),
    Word(
        r"pq(?P<bits>[1-9])x(?P<dimension>[1-9]\d{0,2})(?P<shared>s)?",
        "pqBxD or pqBxDs (product quantization: B bits for D weights; s: one codebook)",
        _product,
    ),
    Word(
        r"rq(?P<bits>[1-9])x(?P<dimension>[1-9]\d{0,2})x(?P<stages>[1-8])",
        "rqBxDxT (residual quantization: T stages of B bits for D weights)",
        _residual,
    ),
    Word(r"hash(?P<places>[1-9]\d{0,3})", "hashN (a value for N weights)", _hashed),
    Word(
        r"(?P<kind>fixed|dynamic)(?P<bits>[2-9]|1[0-6])(?P<drawn>_stochastic)?",
        "fixedB or dynamicB, with or without _stochastic (B from 2 to 16)",
        _fixed,
    ),
    Word(
        r"binary(?:_(?P<method>sign|xnor|loss_aware|connect_stochastic|connect))?",
        "binary, binary_sign, binary_xnor, binary_loss_aware, binary_connect, binary_connect_stochastic",
        _binary,
    ),
    *GENERATED,
)
KNOWN = "; ".join(word.text for word in WORDS)
"""All words, for descriptions and complaints."""


def precision_pair(text: str) -> Pair | None:
    """The steps of a word: rounded to the nearest, and by the layer's Hessian; ``None`` for ``float32``.

    Where values are fine enough, the nearest one is as good and found in no time.

    Raises
    ------
    ConfigError
        For an unknown word, with the known ones.
    """
    for word in WORDS:
        match = re.fullmatch(word.pattern, text, re.ASCII)
        if match is None:
            continue
        try:
            return word.pair(match)
        except PolicyError as error:
            raise ConfigError(f"space.precision: '{text}' cannot be: {error}") from error
    raise ConfigError(f"space.precision: expected {KNOWN}; got '{text}'")


def precision_step(text: str) -> Iterator[Step]:
    """The step of a precision, rounded to the nearest; none for ``float32``."""
    pair = precision_pair(text)
    if pair is not None:
        yield pair[0]


def is_generated(text: str) -> bool:
    """Whether the word stands for weights that are made from few parameters."""
    return any(re.fullmatch(word.pattern, text, re.ASCII) for word in GENERATED)
