"""Options, variants and small figures as people read them on the page of sensitivity curves. Pure."""

from __future__ import annotations

import math

from .sensitivity_data import KNOBS, NEUTRAL, Profile, Unit, Variant, measured, smaller, units
from .text import metric_title, share_text, significant, times_text, value_text

ABSENT = "—"
QUANTITIES = {"kl": "KL divergence", "relative_error": "relative output error"}
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def small_text(value: float | None, digits: int = 3) -> str:
    """A figure that may be tiny: ``0.0312``, ``4.1×10⁻⁶``; fewer digits where it is."""
    if value is None:
        return ABSENT
    if value == 0 or 1e-3 <= abs(value) < 1e4:
        return significant(value, digits)
    mantissa, _, power = f"{value:.1e}".partition("e")
    return f"{mantissa}×10{_raised(int(power))}"


def power_text(value: float) -> str:
    """A power of ten: ``10⁻³``, ``1``."""
    power = round(math.log10(value))
    return f"10{_raised(power)}" if power else "1"


def _raised(power: int) -> str:
    return str(power).translate(_SUPERSCRIPTS)


def part_text(part: float) -> str:
    """A part of a whole, as a label wants it: ``93 %``, ``5.8 %``, ``< 0.1 %``."""
    per_cent = 100 * part
    return f"{per_cent:.0f} %" if per_cent >= 9.95 else f"{per_cent:.1f} %" if per_cent >= 0.1 else "< 0.1 %"


def brief(name: str, width: int) -> str:
    """A name of at most ``width`` characters; what is left out is in the middle, since ends tell layers apart."""
    if len(name) <= width:
        return name
    tail = (width - 1) * 2 // 3
    return f"{name[: width - 1 - tail]}…{name[-tail:]}"


def option_text(knob: str, option: str | float, alone: bool = False) -> str:
    """An option in short, ``90 % zeros``; ``alone`` where the knob is named beside it."""
    if knob == "precision":
        return str(option)
    if knob == "rewrite":
        return "not rewritten" if option == "keep" else str(option)
    if knob == "blocks":
        return {"keep": "block kept", "drop": "block dropped"}[str(option)]
    share = share_text(float(option))
    return (
        share if alone else {"sparsity": "{} zeros", "rank": "rank {}", "channels": "{} channels"}[knob].format(share)
    )


def choice_text(variant: Variant) -> str:
    """All that was chosen for a variant; neutral options are named only where there is nothing else."""
    given = {knob: variant.choices[knob] for knob in KNOBS if knob in variant.choices}
    acting = {knob: option for knob, option in given.items() if option != NEUTRAL[knob]} or given
    return " + ".join(option_text(knob, option) for knob, option in acting.items()) or "its only form"


def size_text(value: float | None) -> str:
    """Bytes with their unit, or a dash."""
    return ABSENT if value is None else value_text("stored_bytes", value)


def ratio_text(value: float | None) -> str:
    """A ratio to the dense network, to a thousandth where it is near 1, or a dash."""
    return ABSENT if value is None else f"{value:.3f}×"


def hover_texts(profile: Profile) -> dict[str, str]:
    """Lines of plain text, the first a title, by ``v:<index of the variant>`` and ``d:<place of the unit>``."""
    texts = {}
    for number, unit in enumerate(units(profile)):
        texts[f"d:{number}"] = "\n".join([f"{unit.name}, dense", *_dense(unit)])
        for index in unit.variants:
            texts[f"v:{index}"] = "\n".join(_lines(unit, profile.variants[index]))
    return texts


def _dense(unit: Unit) -> list[str]:
    if unit.dense_bytes is None:
        return ["number of weights not known"]
    return [f"{unit.weights:,} weights", f"{size_text(unit.dense_bytes)} in float32"]


def _lines(unit: Unit, variant: Variant) -> list[str]:
    figures = [
        ("KL", small_text, variant.kl),
        ("relative output error", small_text, variant.relative_error),
        ("second-order estimate of the loss", small_text, variant.weighted_error),
        ("ONNX", size_text, variant.onnx_bytes),
        ("latency of the whole network", ratio_text, variant.latency_ratio),
    ]
    lines = [f"{name} {text(value)}" for name, text, given in figures if (value := measured(given)) is not None]
    if (stored := measured(variant.stored_bytes)) is not None:
        ratio = smaller(unit, variant)
        beside = f" ({times_text(1 / ratio, 'smaller', 'larger')})" if ratio else ""
        lines.insert(0, f"stored {size_text(stored)}{beside}")
    role = ["failed"] if variant.failure is not None else ["dominated"] if variant.dominated else []
    return [" · ".join([unit.name, choice_text(variant), *role]), *lines]


def times_less(small: float, large: float) -> str:
    """How much less one KL is than another, ``780 times less``; empty where the smaller is not positive."""
    if small <= 0 or not math.isfinite(large / small):
        return ""
    factor = large / small
    rounded = significant(factor, 2) if factor < 100 else format(float(f"{factor:.2g}"), ",.0f")
    return f"{rounded} times less"


def listed(words: list[str]) -> str:
    """Words as in a sentence: ``a, b and c``."""
    return ", ".join(words[:-1]) + " and " + words[-1] if len(words) > 1 else "".join(words)


def figure_title(name: str) -> str:
    """Title of a metric of a bank, KL among them."""
    if name == "latency_ratio":
        return "latency"
    return "KL" if name == "kl" else metric_title(name, "error")


def counted(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
