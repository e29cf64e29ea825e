"""Learned architectures: what each price of a neuron left, beside what else the run found of that size. Pure."""

from __future__ import annotations

from ...evaluators.learning import WIDTH
from .data import Record, ReportData, done, number
from .text import NOT_MEASURED, value_text


def learned_rows(data: ReportData) -> list[dict[str, str]]:
    """A row for each training with switches, in the order of kind and price; none where there was none."""
    sizes = {str(layer["name"]): int(layer["shape"][0]) for layer in data.layers}
    asked = [row for row in data.history if row["fidelity"] == "learn"]
    asked.sort(key=lambda row: (row["learning"]["kind"], row["learning"]["lambda"]))
    return [_row(data, row, sizes) for row in asked]


def _row(data: ReportData, row: Record, sizes: dict[str, int]) -> dict[str, str]:
    metrics, knobs = row["metrics"], row["learning"]
    widths = {name.removeprefix(WIDTH): int(left) for name, left in metrics.items() if name.startswith(WIDTH)}
    left = ", ".join(f"{root} {kept} of {sizes.get(root, kept)}" for root, kept in widths.items())
    return {
        "kind": f"AL-{knobs['kind'].replace('_', '-')}",
        "price": f"{knobs['lambda']:g}",
        "widths": left or str(row.get("error") or row["state"]),
        "params": value_text("params", number(metrics, "params")) if left else "none",
        "learned": value_text("error_pct", number(metrics, "error_pct")) if left else "infeasible",
        "tested": _error(_tested(data, "learned", knobs["learning"])),
        "beside": _error(_tested(data, "magnitude", knobs["learning"])),
        "others": _error(_best_other(data, number(metrics, "params"))) if left else NOT_MEASURED,
    }


def _tested(data: ReportData, origin: str, learning: str) -> float | None:
    """Test error of the candidate that came from a training, or was put beside it."""
    ids = {
        str(row["id"])
        for row in data.history
        if row["fidelity"] == "screen" and row["origin"] == origin and row["learning"]["learning"] == learning
    }
    found = [number(row["metrics"], "error_pct") for row in done(data, "test") if str(row["id"]) in ids]
    return found[0] if found else None


def _best_other(data: ReportData, params: float | None) -> float | None:
    """Lowest test error of what was not learned and has no more parameters."""
    learned = {str(row["id"]) for row in data.history if row["fidelity"] == "screen" and row["origin"] == "learned"}
    others = [row["metrics"] for row in done(data, "test") if str(row["id"]) not in learned]
    small = [m for m in others if params is not None and (size := number(m, "params")) is not None and size <= params]
    return min((error for m in small if (error := number(m, "error_pct")) is not None), default=None)


def _error(value: float | None) -> str:
    return value_text("error_pct", value)
