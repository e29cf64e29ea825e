"""Figures, policies and durations as people read them. Pure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ...evaluators.base import METRICS
from ...policies.ranges import read_ranges

NOT_MEASURED = "not measured"
RUNGS = {
    "screen": "screened, before recovery, validation",
    "tune": "trained for a moment, validation",
    "recover": "recovered, validation",
    "test": "final, test",
}

_SCALES = {
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")),
    "": ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")),
    "ms": ((1e3, "s"), (1, "ms"), (1e-3, "µs")),
    "uJ": ((1e6, "J"), (1e3, "mJ"), (1, "µJ"), (1e-3, "nJ")),
}
# In the order in which techniques are applied; the braces name the hyper-parameters that are needed.
_STEPS = {
    "drop_branch": "block dropped",
    "collapse": "ReLU left out{merged}",
    "keep_channels": "{count} channels kept",
    "merge_neurons": "−{sparsity} neurons (merged)",
    "prune_channels": "−{sparsity} channels",
    "svd": "rank {rank}",
    "svd_spatial": "spatial rank {rank}",
    "svd_channel": "channel rank {rank}",
    "cp": "CP rank {rank}",
    "tucker2": "Tucker {rank_in}→{rank_out}",
    "rewrite_separable": "separable × {multiplier}",
    "rewrite_stacked": "stacked 3 × 3",
    "rewrite_asymmetric": "column and row",
    "rewrite_flattened": "flattened filters",
    "rewrite_pooled": "pooled over {positions} positions",
    "prune_magnitude": "{sparsity} zeros",
    "prune_obd": "{sparsity} zeros ({curvature})",
    "prune_obs": "{sparsity} zeros (second order)",
    "prune_nm": "{n} of {m}",
    "circulant": "circulant {block}",
    "toeplitz": "Toeplitz {block}",
    "fastfood": "Fastfood",
    "drop_dead": "dead channels dropped",
    "share": "k{clusters}",
    "share_soft": "soft{clusters}",
    "product_quantize": "{clusters} codewords of {dimension}",
    "residual_quantize": "{stages} × {clusters} codewords of {dimension}",
    "hash_weights": "hashed to {share:.3g}",
    "quantize": "w{bits}{activations}",
    "fixed_point": "fixed point {bits} bit",
    "binarize": "binary ({method})",
}


def value_text(metric: str, value: float | None) -> str:
    """A figure with its unit, such as ``44.0 kB``."""
    if value is None:
        return NOT_MEASURED
    unit = METRICS[metric].unit if metric in METRICS else ""
    if metric.endswith("_pct"):
        return f"{value:.2f} %"
    if unit == "x":
        return f"{value:.3f}×" if value < 0.1 else f"{value:.2f}×"
    scale, name = next(((s, n) for s, n in _SCALES[unit] if abs(value) >= s), _SCALES[unit][-1])
    digits = significant(value / scale) if scale != 1 or unit in ("ms", "uJ") else f"{value:.4g}"
    return f"{digits} {name}".rstrip()


def significant(value: float, digits: int = 3) -> str:
    """A number to so many significant digits, never in exponents."""
    if value == 0:
        return "0"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def share_text(share: float) -> str:
    """A share as per cent, ``12.5 %``."""
    return f"{100 * share:.3g} %" if abs(share) < 1 else f"{100 * share:.0f} %"


def times_text(ratio: float | None, better: str, worse: str) -> str:
    """How many times smaller or faster, from compressed / dense: ``41.1× smaller``; the other word where it is above 1."""
    if ratio is None or ratio <= 0:
        return NOT_MEASURED
    if abs(ratio - 1) < 0.005:
        return "as dense"
    return f"{significant(1 / ratio)}× {better}" if ratio <= 1 else f"{significant(ratio)}× {worse}"


def seconds_text(seconds: float) -> str:
    """A duration: ``2 h 05 min``, ``12 min 30 s``, ``8.2 s``."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{significant(seconds)} s"


def metric_title(metric: str, quality: str) -> str:
    """Title of a metric for tables and axes, saying what the error is."""
    if metric in ("error_pct", "validation_error_pct"):
        kind = "disagreement with the dense network" if quality == "agreement" else "error"
        return kind if metric == "error_pct" else f"{kind}, validation"
    if metric == "whole_test_error_pct":
        return f"{metric_title('error_pct', quality)}, whole test split"
    return METRICS[metric].title if metric in METRICS else metric


def whole_test_text(metrics: Mapping[str, Any]) -> str:
    """Say the error on the source's whole test split; empty where it is that of the last reading."""
    if "whole_test_error_pct" not in metrics:
        return ""
    whole, compared = int(metrics["whole_test_pictures"]), int(metrics["whole_test_compared_pictures"])
    error = value_text("error_pct", metrics["whole_test_error_pct"])
    return f"{error} on the whole test split of {whole:,} pictures, on {compared:,} of which candidates were compared"


def step_text(step: Mapping[str, Mapping[str, Any] | None]) -> str:
    """One technique in short: ``80 % zeros``, ``w4``, ``k16``, ``rank 12``."""
    ((technique, given),) = step.items()
    words: dict[str, Any] = dict(given or {})
    if isinstance(words.get("sparsity"), int | float):
        words["sparsity"] = share_text(words["sparsity"])
    if technique == "quantize":
        words["activations"] = "a8" if words.get("activations") == "int8" else ""
    if technique == "keep_channels":
        words["count"] = len(read_ranges(words["kept"]))
    if technique == "collapse":
        words["merged"] = ", one with the next layer" if words.get("merge", True) else ""
    try:
        return _STEPS[technique].format(**words)
    except KeyError:
        return f"{technique}({', '.join(f'{name}={value}' for name, value in words.items())})"


def steps_text(steps: Sequence[Mapping[str, Any]]) -> str:
    """All that is done to one layer, in the order in which it is done."""
    order = list(_STEPS)
    rank = {name: position for position, name in enumerate(order)}
    return " + ".join(step_text(s) for s in sorted(steps, key=lambda s: rank.get(next(iter(s)), len(order))))


def policy_lines(policy: Mapping[str, Any], layers: Sequence[str], limit: int = 10, width: int = 46) -> list[str]:
    """A policy layer by layer, layers that are treated alike on one line; at most ``limit`` lines of ``width`` characters."""
    groups: dict[str, list[str]] = {}
    given = policy.get("layers") or {}
    if shape := policy.get("shape"):
        return textwrap.wrap(shape_text(shape), width)
    for name in dict.fromkeys([*layers, *given]):
        groups.setdefault(steps_text(given.get(name) or []) or "float32, untouched", []).append(name)
    lines = [_shorten(f"{_names(names)}: {what}", width) for what, names in groups.items()]
    if len(lines) > limit:
        lines = [*lines[: limit - 1], f"… and {len(lines) - limit + 1} more kinds of layer"]
    return lines


def shape_text(shape: Mapping[str, Any]) -> str:
    """A family and its knobs."""
    knobs = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shape.items() if name != "family")
    return f"{shape.get('family', '')}: {knobs}"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]} ({len(names)} layers)"


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
