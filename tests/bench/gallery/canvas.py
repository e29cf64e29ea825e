"""Drawing on a grid of logical pixels, kept as a small PNG file twice as fine."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 568, 216
SCALE, DRAWN = 2, 4
"""Pixels a logical one in the file, and while it is drawn: lines and letters become smooth where they are made smaller."""
COLOURS = 256
INK, QUIET, GRID = "#2b3138", "#6b747d", "#d5dade"
BEFORE, AFTER = "#808a94", "#e8790c"
MARK = "#2f7fe0"
"""Orange, blue and grey are told apart by colour-blind eyes, and in print."""

Point = tuple[float, float]


class Canvas:
    """A white picture; positions and sizes are in logical pixels from its upper left corner."""

    def __init__(self) -> None:
        self._image = Image.new("RGB", (WIDTH * DRAWN, HEIGHT * DRAWN), "white")
        self._draw = ImageDraw.Draw(self._image)

    def text(self, at: Point, words: str, size: float = 10.5, anchor: str = "ls", colour: str = INK) -> None:
        """Words at a point; ``anchor`` is Pillow's: l, m or r of the line, then a, m or s (top, middle, baseline)."""
        self._draw.text(_drawn(at), words, colour, _font(size), anchor)

    def line(self, points: Sequence[Point], colour: str = GRID, width: float = 1.0) -> None:
        self._draw.line([_drawn(point) for point in points], colour, round(width * DRAWN), "curve")

    def rectangle(self, low: Point, high: Point, colour: str | None, outline: str | None = None) -> None:
        """Filled, outlined or both; nothing where it has no extent."""
        (x0, y0), (x1, y1) = _drawn(low), _drawn(high)
        if x1 > x0 and y1 > y0:
            self._draw.rectangle((x0, y0, x1 - 1, y1 - 1), colour, outline, DRAWN)

    def dot(self, at: Point, colour: str, radius: float = 1.5) -> None:
        x, y = at
        self._draw.ellipse((*_drawn((x - radius, y - radius)), *_drawn((x + radius, y + radius))), colour)

    def paste(self, at: Point, pixels: Image.Image, size: Point) -> None:
        """A picture, stretched to a size without a change of its colours."""
        self._image.paste(pixels.resize(_drawn(size), Image.Resampling.NEAREST), _drawn(at))

    def sideways(self, at: Point, words: str, size: float = 10.0, colour: str = QUIET) -> None:
        """Words that run upwards, their middle at a point."""
        left, top, right, bottom = _font(size).getbbox(words)
        patch = Image.new("L", (int(right - left) + 8, int(bottom - top) + 8), 0)
        ImageDraw.Draw(patch).text((4 - left, 4 - top), words, 255, _font(size))
        patch = patch.rotate(90, expand=True)
        x, y = _drawn(at)
        self._image.paste(Image.new("RGB", patch.size, colour), (x - patch.width // 2, y - patch.height // 2), patch)

    def png(self) -> bytes:
        """The file; the same picture gives the same bytes."""
        small = self._image.resize((WIDTH * SCALE, HEIGHT * SCALE), Image.Resampling.BOX)
        buffer = io.BytesIO()
        small.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        return buffer.getvalue()


@functools.cache
def _font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size * DRAWN)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow without FreeType draws no letters of a size"
    return font


def _drawn(point: Point) -> tuple[int, int]:
    return round(point[0] * DRAWN), round(point[1] * DRAWN)
