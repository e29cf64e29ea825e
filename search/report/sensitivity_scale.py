"""Axes and colours that the figures of the page of sensitivity curves share. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .sensitivity_text import power_text, small_text
from .style import KIND_COLOURS, log_ticks

# Violet at the input to orange at the output, each of a middle lightness that reads on light and on dark.
DEPTH = ("#8a63d2", "#2f7fe0", "#12967f", "#7d9a25", "#b5851b", "#e8790c")
FEW_UNITS, DECADES = len(KIND_COLOURS), 7


@dataclass(frozen=True)
class Window:
    """What a logarithmic axis shows; values at or below ``low`` are drawn at its edge."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """Where a value is drawn."""
        return max(value, self.low)

    @property
    def decades(self) -> float:
        """Powers of ten between the ends."""
        return math.log10(self.high / self.low)

    def axis(self, title: str) -> dict[str, Any]:
        """A logarithmic axis for small figures without a unit."""
        steps = (1,) if self.decades > 1.5 else (1, 2, 5) if self.decades > 0.7 else (1, 1.5, 2, 3, 4, 5, 6, 8)
        # Ticks beyond the first view serve whoever zooms out.
        first, last = math.floor(math.log10(self.low)) - 2, math.ceil(math.log10(self.high)) + 2
        values = [step * 10.0**power for power in range(first, last + 1) for step in steps]
        labels = [power_text(value) if len(steps) == 1 else _tick(value) for value in values]
        return {**self._span(title), "tickmode": "array", "tickvals": values, "ticktext": labels}

    def bytes_axis(self, title: str) -> dict[str, Any]:
        """A logarithmic axis in bytes."""
        return {**self._span(title), **log_ticks("stored_bytes", (self.low, self.high))}

    def _span(self, title: str) -> dict[str, Any]:
        ends = [math.log10(self.low) - 0.04 * self.decades, math.log10(self.high) + 0.04 * self.decades]
        return {"type": "log", "range": ends, "title": {"text": title, "standoff": 8}, "automargin": True}


def _tick(value: float) -> str:
    return f"{value:g}" if value >= 1e-3 else small_text(value, 2)


def window(values: Iterable[float]) -> Window | None:
    """Spans the positive values, at most ``DECADES`` below the largest; ``None`` where there is none."""
    positive = [value for value in values if value > 0]
    if not positive:
        return None
    high = max(positive)
    low = max(min(positive), high / 10**DECADES)
    return Window(low, high) if high > 1.05 * low else Window(low / 2, high * 2)


def colours(count: int) -> list[str]:
    """A colour a unit: distinct ones for a few, a scale along the network for many."""
    if count <= FEW_UNITS:
        return list(KIND_COLOURS[:count])
    return [_between(i / (count - 1) * (len(DEPTH) - 1)) for i in range(count)]


def _between(place: float) -> str:
    first = min(int(place), len(DEPTH) - 2)
    ends = [[int(DEPTH[first + i][j : j + 2], 16) for j in (1, 3, 5)] for i in (0, 1)]
    mixed = [round(a + (b - a) * (place - first)) for a, b in zip(*ends)]
    return "#" + "".join(f"{channel:02x}" for channel in mixed)
