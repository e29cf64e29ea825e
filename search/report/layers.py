"""A policy layer by layer, as aligned bars. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...policies.ranges import read_ranges
from ...policies.techniques.prune_channels import PruneChannels
from .data import Record, ReportData
from .text import share_text, steps_text

FLOAT_BITS, WIDEST_CODE = 32, 8
_PRUNERS = ("prune_magnitude", "prune_obd", "prune_obs")


@dataclass(frozen=True)
class Bar:
    """A share in [0, 1] with its label; ``touched`` is false where the policy leaves this as it was."""

    label: str
    share: float
    touched: bool = True


@dataclass(frozen=True)
class LayerRow:
    """One layer under one policy; a bar is ``None`` where the technique does not act on it."""

    name: str
    shape: str
    weights: Bar
    what: str
    sparsity: Bar | None
    bits: Bar
    rank: Bar | None
    channels: Bar | None


def _index_bits(given: Mapping[str, Any]) -> float:
    """Of a weight, or of its part of a sub-vector, in all stages; defaults are those of the techniques' constructors."""
    vectors = given.get("stages", 1) / given.get("dimension", 4)
    return math.log2(max(2, given["clusters"])) * vectors


_CODED: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], float]]] = {
    "share": ("{clusters} values", lambda given: math.log2(max(2, given["clusters"]))),
    "share_soft": ("0 and {clusters} values", lambda given: math.log2(given["clusters"] + 1)),
    "product_quantize": ("{clusters} codewords", _index_bits),
    "residual_quantize": ("{clusters} codewords", _index_bits),
    "hash_weights": ("hashed values", lambda given: FLOAT_BITS * float(given["share"])),
}
"""Bits of a weight's index, codebooks left out; of hashed weights the values' own."""


def code_bits(technique: str, given: Mapping[str, Any]) -> float | None:
    """Bits of a weight's index before entropy coding, or ``None`` for a technique that shares no values."""
    return _CODED[technique][1](given) if technique in _CODED else None


def layer_rows(data: ReportData, policy: Mapping[str, Any], shaped: Sequence[Record] | None = None) -> list[LayerRow]:
    """A row for each layer of the network, in its order, and for layers that only the policy names.

    Parameters
    ----------
    shaped
        The layers of the shape that the policy sets, where it does.
    """
    layers = data.layers if shaped is None else shaped
    total = max(1, sum(int(layer["weights"]) for layer in layers))
    given = policy.get("layers") or {}
    known = {str(layer["name"]) for layer in layers}
    unknown = [{"name": name, "kind": "", "weights": 0, "shape": []} for name in given if name not in known]
    return [_row(layer, given.get(layer["name"]) or [], total) for layer in (*layers, *unknown)]


def _row(layer: Record, steps: Sequence[Mapping[str, Any]], total: int) -> LayerRow:
    done = {name: dict(given or {}) for step in steps for name, given in step.items()}
    shape, weights = list(layer["shape"]), int(layer["weights"])
    return LayerRow(
        name=str(layer["name"]),
        shape=" ".join([str(layer["kind"]), "×".join(map(str, shape))]).strip(),
        weights=Bar(f"{weights:,}", weights / total) if shape else Bar("not known", 0.0, False),
        what=steps_text(steps) or "untouched",
        sparsity=_sparsity(
            next((done[name] for name in _PRUNERS if name in done), None) or _in_groups(done.get("prune_nm"))
        ),
        bits=_binary(done) or _bits(done),
        rank=_rank(done, shape),
        channels=_kept(done.get("keep_channels"), shape)
        or _channels(done.get("prune_channels") or done.get("merge_neurons"), shape),
    )


def _sparsity(given: Mapping[str, Any] | None) -> Bar | None:
    return None if given is None else Bar(share_text(given["sparsity"]), given["sparsity"])


def _in_groups(given: Mapping[str, Any] | None) -> dict[str, float] | None:
    return None if given is None else {"sparsity": 1 - given.get("n", 2) / given.get("m", 4)}


def _binary(done: Mapping[str, Mapping[str, Any]]) -> Bar | None:
    if "binarize" not in done:
        return None
    inputs = ", signs of inputs" if done["binarize"].get("method") == "xnor" else ""
    return Bar(f"1 bit{inputs}", 1 / WIDEST_CODE)


def _bits(done: Mapping[str, Mapping[str, Any]]) -> Bar:
    if (quantize := done.get("quantize") or done.get("fixed_point")) is not None:
        inputs = ", int8 inputs" if quantize.get("activations") == "int8" else ""
        # The default of the technique's own constructor.
        bits = quantize.get("bits", 8)
        return Bar(f"{bits} bit{inputs}", min(1.0, bits / WIDEST_CODE))
    for name, (label, bits_of) in _CODED.items():
        if (given := done.get(name)) is not None:
            bits = bits_of(given)
            return Bar(f"{label.format(**given)} ({bits:.3g} bit)", min(1.0, bits / WIDEST_CODE))
    return Bar(f"{FLOAT_BITS} bit float", 1.0, False)


def _rank(done: Mapping[str, Mapping[str, Any]], shape: Sequence[int]) -> Bar | None:
    """Rank against the dense layer's full rank; for Tucker-2 the core against the dense kernel."""
    if (given := done.get("tucker2")) is not None:
        label = f"{given['rank_in']} in, {given['rank_out']} out"
        full = shape[0] * shape[1] if len(shape) == 4 else 0
        return _bar(label, given["rank_in"] * given["rank_out"], full)
    if (given := done.get("svd_spatial")) is not None:
        full = min(shape[1] * shape[2], shape[0] * shape[3]) if len(shape) == 4 else 0
    elif (given := done.get("svd")) is not None:
        full = min(shape[:2]) if shape else 0
    elif (given := done.get("svd_channel")) is not None:
        full = min(shape[0], math.prod(shape[1:])) if len(shape) == 4 else 0
    elif (given := done.get("cp")) is not None:
        full = 0
    else:
        return None
    return _bar(f"{given['rank']} of {full}" if full else str(given["rank"]), given["rank"], full)


def _bar(label: str, part: float, full: float) -> Bar:
    return Bar(label, min(1.0, part / full)) if full else Bar(label, 0.0)


def _kept(given: Mapping[str, Any] | None, shape: Sequence[int]) -> Bar | None:
    if given is None:
        return None
    kept = len(read_ranges(given["kept"]))
    return Bar(f"{kept} of {shape[0]}", kept / shape[0]) if shape else Bar(str(kept), 1.0)


def _channels(given: Mapping[str, Any] | None, shape: Sequence[int]) -> Bar | None:
    if given is None:
        return None
    if not shape:
        return Bar(f"−{share_text(given['sparsity'])}", 1 - given["sparsity"])
    kept = PruneChannels(given["sparsity"], given["multiple"]).keep(shape[0])
    return Bar(f"{kept} of {shape[0]}", kept / shape[0])
