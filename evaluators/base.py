"""What is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """A quantity that is measured; smaller is better for all of them.

    Parameters
    ----------
    name
        With its unit: ``error_pct``, ``stored_bytes``, ``latency_ratio``.
    unit
        Printed after the value.
    title
        For axes and tables.
    """

    name: str
    unit: str
    title: str


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("error_pct", "%", "error"),
        Metric("stored_bytes", "B", "stored size"),
        Metric("onnx_bytes", "B", "ONNX size"),
        Metric("latency_ratio", "x", "latency against the dense network"),
        Metric("latency_ms", "ms", "latency"),
        Metric("macs", "", "multiply-accumulates"),
        Metric("params", "", "parameters"),
        Metric("peak_memory_bytes", "B", "peak activation memory"),
        Metric("energy_uj_estimate", "uJ", "energy, estimated"),
    )
}
