"""The ledger's plain numbers as ``front.json`` and reports give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WHOLE = (
    "stored_bytes",
    "onnx_bytes",
    "macs",
    "params",
    "peak_memory_bytes",
    "unknown_operations",
    "whole_test_pictures",
    "whole_test_compared_pictures",
    "validation_pictures",
    "validation_wrong",
    "validation_dense_wrong",
    "validation_newly_wrong",
)


def with_intervals(values: Mapping[str, float]) -> dict[str, Any]:
    """``x_low`` and ``x_high`` become the pair ``x``; counts become integers."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        if name.endswith("_low"):
            whole = name.removesuffix("_low")
            out[whole] = [value, values[f"{whole}_high"]]
        elif not name.endswith("_high"):
            out[name] = int(value) if name in _WHOLE else value
    return out
