"""Error of predictions, with its interval."""

from __future__ import annotations

import math

import numpy as np


def error_pct(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of pictures, in per cent, whose largest logit (N, K) is not the label's (N,)."""
    return 100.0 * float(np.mean(logits.argmax(1) != labels))


def error_interval(error: float, count: int) -> tuple[float, float]:
    """95 % Wilson interval, in per cent, of an error in per cent measured on ``count`` pictures (Wilson 1927)."""
    z, p = 1.959964, error / 100
    centre = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)
