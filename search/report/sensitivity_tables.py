"""The tables of the page of sensitivity curves. Pure."""

from __future__ import annotations

from collections import defaultdict

from ...evaluators.base import METRICS
from .facts import Cell
from .sensitivity_data import Profile, Unit, Variant, figure_of, harshness, knobs, measured, smaller, units
from .sensitivity_text import (
    ABSENT,
    QUANTITIES,
    choice_text,
    counted,
    figure_title,
    option_text,
    ratio_text,
    size_text,
    small_text,
)
from .text import metric_title, value_text


def columns(profile: Profile) -> list[str]:
    """Titles of the table of all variants, behind the unit's."""
    shown = [*knobs(profile), *QUANTITIES.values(), "estimated loss", "stored", "times smaller", "ONNX", "latency"]
    return [*shown, "standing"]


def variant_rows(profile: Profile) -> list[tuple[int, Unit, list[Cell]]]:
    """Place of the unit, the unit, and the cells of each variant, in the order of the network and then of harshness."""
    shown = knobs(profile)
    out = []
    for number, unit in enumerate(units(profile)):
        ordered = sorted(unit.variants, key=lambda i: _order(profile.variants[i], shown))
        out += [(number, unit, _cells(profile, unit, i, shown)) for i in ordered]
    return out


def _order(variant: Variant, shown: list[str]) -> list[float]:
    return [harshness(knob, variant.choices[knob]) if knob in variant.choices else 0.0 for knob in shown]


def _cells(profile: Profile, unit: Unit, index: int, shown: list[str]) -> list[Cell]:
    variant = profile.variants[index]
    out = [_option_cell(knob, variant.choices.get(knob)) for knob in shown]
    for name in ("kl", "relative_error", "weighted_error"):
        value = figure_of(profile, index, name)
        out.append(Cell(small_text(value), value=value))
    stored, onnx = measured(variant.stored_bytes), measured(variant.onnx_bytes)
    ratio, latency = smaller(unit, variant), measured(variant.latency_ratio)
    out.append(Cell(size_text(stored), value=stored))
    out.append(Cell(ABSENT if ratio is None else f"{ratio:.1f}×", value=ratio))
    out.append(Cell(size_text(onnx), value=onnx))
    out.append(Cell(ratio_text(latency), value=latency))
    place = 2 if variant.failure is not None else 1 if variant.dominated else 0
    return [*out, Cell(("kept", "dominated", "failed")[place], value=place)]


def _option_cell(knob: str, option: str | float | None) -> Cell:
    if option is None:
        return Cell(ABSENT)
    return Cell(option_text(knob, option, alone=True), value=harshness(knob, option))


def failures(profile: Profile) -> list[dict[str, object]]:
    """Failed variants, those of one unit that failed alike in one row."""
    groups: dict[tuple[int, str], list[Variant]] = defaultdict(list)
    everyone = units(profile)
    for number, unit in enumerate(everyone):
        for variant in (profile.variants[i] for i in unit.variants):
            if variant.failure is not None:
                groups[number, variant.failure].append(variant)
    return [
        {
            "unit": everyone[number].name,
            "count": f"{len(members)} of {len(everyone[number].variants)}",
            "reason": reason or "no reason recorded",
            "variants": [choice_text(variant) for variant in members],
        }
        for (number, reason), members in sorted(groups.items(), key=lambda item: item[0])
    ]


def additivity_rows(profile: Profile) -> list[tuple[str, str]]:
    """Each figure of the check with its title."""
    given = profile.additivity or {}
    rows = []
    for name, value in given.items():
        number = measured(value)
        if number is None:
            continue
        if name.endswith("_median_error_pct"):
            title = f"{figure_title(name.removesuffix('_median_error_pct'))}, median error of the sum"
            rows.append((title, f"{number:.3g} %"))
        elif name.endswith("_spearman"):
            title = (
                f"{figure_title(name.removesuffix('_spearman'))}, rank correlation of sum and measurement (Spearman)"
            )
            rows.append((title, f"{number:.2f}"))
        else:
            rows.append((name.replace("_", " "), f"{number:g}"))
    return rows


def methods(profile: Profile) -> list[tuple[str, str]]:
    """How the figures were measured, those that are there."""
    one = "with this unit alone compressed and the rest of the network dense"
    pictures = f"{counted(profile.pictures, 'picture')} of {profile.data}"
    texts = {
        "kl": (
            "KL divergence",
            f"Kullback-Leibler divergence of the network's predictions from those of the dense"
            f" network, mean over {pictures}, {one}; before any recovery.",
        ),
        "relative_error": (
            "relative output error",
            f"Squared error of the unit's output over the squared output, on {pictures}.",
        ),
        "weighted_error": (
            "estimated loss",
            "Second-order estimate of what the error does to the loss; an estimate, not a measurement.",
        ),
        "stored_bytes": (
            "stored",
            "Bytes of the unit's layers in the .press file. Times smaller is against its weights in float32, 4 bytes each.",
        ),
        "onnx_bytes": ("ONNX", "Bytes of the unit's layers in the exported ONNX file."),
        "latency_ratio": (
            "latency",
            "Of the whole network with all other units in the middle of their menus, against the dense network; by the"
            " variant's kernels, which are the same for zeros and narrow weights as for others.",
        ),
    }
    there = [
        name for name in texts if any(figure_of(profile, i, name) is not None for i in range(len(profile.variants)))
    ]
    end = (
        "dominated",
        "Another variant of the same unit is at least as good throughout; such variants are not searched.",
    )
    return [*(texts[name] for name in there), end]


def dense_rows(profile: Profile) -> list[tuple[str, str]]:
    """The dense network's metrics."""
    known = [
        (name, measured(value)) for name, value in profile.dense.items() if name in (*METRICS, "validation_error_pct")
    ]
    return [(metric_title(name, "error"), value_text(name, value)) for name, value in known if value is not None]
