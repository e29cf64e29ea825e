"""What is counted of a network rather than timed or tried."""

from __future__ import annotations

from torch import Tensor, nn

from .energy import energy_uj
from .macs import Profile, profile


def dense_counts(model: nn.Module, example: Tensor, onnx_bytes: int) -> dict[str, float]:
    """The counted metrics of the dense network."""
    return counted(profile(model, example), onnx_bytes)


def counted(counts: Profile, onnx_bytes: int) -> dict[str, float]:
    """A profile as metrics; the weights of ``onnx_bytes`` are read once for the energy."""
    return {
        "macs": counts.macs,
        "params": counts.params,
        "peak_memory_bytes": counts.peak_memory_bytes,
        "energy_uj_estimate": energy_uj(counts, onnx_bytes),
        "unknown_operations": len(counts.unknown_operations),
    }
