"""Parts of a picture: a matrix of weights as colours, and axes with bars, points, lines or a histogram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .canvas import AFTER, BEFORE, GRID, INK, MARK, QUIET, Canvas

TOP, SIDE = 26, 160
"""Where panels begin below their titles, and the height of each, and the width of a square one."""
PLACES = (8, 184, 398)
"""Left edges of the three panels; the third is that of the axes' own line."""
STOPS = ("#2166ac", "#92c5de", "#f7f7f7", "#fdb863", "#b35806")
"""Blue for negative, orange for positive weights."""


def matrix(canvas: Canvas, place: int, title: str, weights: np.ndarray, limit: float, below: str = "") -> None:
    """A matrix (rows, columns) as a square, colours from ``-limit`` to ``limit``; rows beyond its own are left empty."""
    x = PLACES[place]
    canvas.text((x, TOP - 9), title, 11.5)
    rows, columns = weights.shape
    share = min(1.0, rows / columns), min(1.0, columns / rows)
    size = (SIDE * share[1], SIDE * share[0])
    canvas.paste((x, TOP), Image.fromarray(coloured(weights, limit)), size)
    canvas.rectangle((x, TOP), (x + size[0], TOP + size[1]), None, GRID)
    canvas.text((x, TOP + SIDE + 16), below, 9.5, colour=QUIET)


def coloured(weights: np.ndarray, limit: float) -> np.ndarray:
    """Colours (rows, columns, 3) uint8 of weights; exact zeros are white, what is not a number is grey."""
    stops = np.array([[int(stop[i : i + 2], 16) for i in (1, 3, 5)] for stop in STOPS])
    at = (np.clip(np.nan_to_num(weights) / limit, -1, 1) + 1) / 2 * (len(STOPS) - 1)
    out = np.stack([np.interp(at, range(len(STOPS)), stops[:, i]) for i in range(3)], -1)
    out[weights == 0] = 255
    out[np.isnan(weights)] = (225, 228, 231)
    return out.astype(np.uint8)


def legend(canvas: Canvas, limit: float) -> None:
    """The colours of the two matrices, below the second one, up to its right edge."""
    right, y, width = PLACES[1] + SIDE, TOP + SIDE + 9, 62
    left = right - 28 - width
    ramp = np.linspace(-limit, limit, 31)[None]
    # An exact zero would be drawn as a weight that is gone.
    ramp[0, 15] = limit * 1e-9
    canvas.paste((left, y), Image.fromarray(coloured(ramp, limit)), (width, 6))
    canvas.text((left - 4, y + 7), f"{-limit:.2g}", 9.5, "rs", QUIET)
    canvas.text((right, y + 7), f"{limit:.2g}", 9.5, "rs", QUIET)


@dataclass(frozen=True)
class Axes:
    """The third panel: a left and a lower axis.

    Parameters
    ----------
    x, y
        (low, high) of what is drawn; ``y`` is logarithmic where ``log`` says so.
    """

    canvas: Canvas
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False

    LEFT, WIDTH = PLACES[2], 160

    def titled(self, title: str, x_label: str, y_label: str, y_ticks: bool = True, x_ticks: bool = True) -> Axes:
        """Draw title, axes, ticks and labels; itself."""
        self.canvas.text((self.LEFT - 26, TOP - 9), title, 11.5)
        self.canvas.text((self.LEFT + self.WIDTH / 2, TOP + SIDE + 26), x_label, 10, "ms", QUIET)
        self.canvas.sideways((self.LEFT - (32 if y_ticks else 10), TOP + SIDE / 2), y_label)
        for value in _ticks(*self.x) if x_ticks else ():
            self.canvas.line([(self.at(value, 0)[0], TOP + SIDE), (self.at(value, 0)[0], TOP + SIDE + 3)], QUIET)
            self.canvas.text((self.at(value, 0)[0], TOP + SIDE + 13), f"{value:g}", 9.5, "ms", QUIET)
        for value in (_decades(*self.y) if self.log else _ticks(*self.y)) if y_ticks else ():
            y = self.at(0, value)[1]
            self.canvas.line([(self.LEFT, y), (self.LEFT + self.WIDTH, y)], "#eceff1")
            self.canvas.text((self.LEFT - 4, y), f"{value:g}", 9.5, "rm", QUIET)
        corner = (self.LEFT, TOP + SIDE)
        self.canvas.line([(self.LEFT, TOP), corner, (self.LEFT + self.WIDTH, TOP + SIDE)], QUIET)
        return self

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a value stands."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        low, high, value = (math.log(max(v, 1e-12)) for v in (*self.y, y)) if self.log else (*self.y, y)
        up = (value - low) / (high - low)
        return self.LEFT + self.WIDTH * across, TOP + SIDE * (1 - up)

    def points(self, x: np.ndarray, y: np.ndarray, colour: str, radius: float = 1.2) -> None:
        """Dots; those outside are left out."""
        for a, b in zip(x.tolist(), y.tolist()):
            if self.x[0] <= a <= self.x[1] and self.y[0] <= b <= self.y[1]:
                self.canvas.dot(self.at(a, b), colour, radius)

    def curve(self, x: Sequence[float], y: Sequence[float], colour: str, width: float = 1.6) -> None:
        self.canvas.line([self.at(a, b) for a, b in zip(x, y)], colour, width)

    def upright(self, x: float, colour: str, width: float = 1.0, share: float = 1.0) -> None:
        """A line from the lower axis up to a share of the height."""
        left = self.at(x, self.y[0])[0]
        self.canvas.line([(left, TOP + SIDE), (left, TOP + SIDE * (1 - share))], colour, width)

    def bars(self, heights: Sequence[float], colours: Sequence[str], gap: float = 0.2) -> None:
        """A bar for each whole number from 0 on."""
        for number, (height, colour) in enumerate(zip(heights, colours)):
            left, top = self.at(number + gap / 2, min(height, self.y[1]))
            right = self.at(number + 1 - gap / 2, 0)[0]
            self.canvas.rectangle((left, top), (right, TOP + SIDE), colour)

    def filled(self, edges: np.ndarray, counts: np.ndarray, colour: str) -> None:
        """A histogram's bars without gaps."""
        for low, high, count in zip(edges[:-1].tolist(), edges[1:].tolist(), counts.tolist()):
            (left, top), right = self.at(low, min(count, self.y[1])), self.at(high, 0)[0]
            self.canvas.rectangle((left, top), (right, TOP + SIDE), colour)

    def key(self, entries: Sequence[tuple[str, str]], x: float | None = None, y: float = TOP + 8) -> None:
        """Names of colours, one below the other, in the upper right corner or from ``x`` on."""
        for number, (name, colour) in enumerate(entries):
            line = y + 13 * number
            if x is None:
                self.canvas.text((self.LEFT + self.WIDTH, line), name, 9.5, "rm", _darker(colour))
            else:
                self.canvas.text((x, line), name, 9.5, "lm", _darker(colour))


def _darker(colour: str) -> str:
    """The colour of a name: light ones would be hard to read."""
    return {AFTER: "#b85a00", BEFORE: "#59626b", MARK: "#1f66bd"}.get(colour, INK)


def _ticks(low: float, high: float) -> list[float]:
    """Three to five round numbers."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(step * n, 10) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _decades(low: float, high: float) -> list[float]:
    return [10.0**n for n in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]
