"""Draws what ``real`` printed: hypervolume over wall-clock, a panel a network, a line a run.

python -m paretopress.tests.bench.curves "ResNet-20=resnet20.json" "LeNet-5=lenet5.json" --svg docs/real.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

COLOURS = {"bank": "#D55E00", "nsga2": "#0072B2", "tpe": "#009E73", "random": "#7F7F7F"}
NAMES = {"bank": "bank-guided", "nsga2": "NSGA-II", "tpe": "TPE", "random": "random"}
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 400, 250, 44, 44, 40
TICKS = 4


def panel(title: str, found: dict[str, Any], x: int) -> Iterator[str]:
    """One network's lines, its left edge at ``x``."""
    longest = float(found["times_s"][-1])
    highest = max(max(run["curve"]) for run in found["runs"])
    inner, tall = WIDTH - LEFT - 16, HEIGHT - TOP - BOTTOM

    def at(seconds: float, value: float) -> str:
        return f"{x + LEFT + inner * seconds / longest:.1f},{TOP + tall * (1 - value / highest):.1f}"

    yield f'<text x="{x + LEFT}" y="{TOP - 10}" font-weight="bold">{escape(title)}</text>'
    for i in range(TICKS + 1):
        share = i / TICKS
        y = TOP + tall * (1 - share)
        yield f'<path d="M{x + LEFT},{y:.1f}h{inner}" stroke="#DDDDDD"/>'
        yield f'<text x="{x + LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{highest * share:.2f}</text>'
        foot = x + LEFT + inner * share
        yield f'<text x="{foot:.1f}" y="{HEIGHT - 22}" text-anchor="middle">{longest * share:.0f}</text>'
    yield f'<text x="{x + LEFT + inner / 2}" y="{HEIGHT - 6}" text-anchor="middle">seconds, the bank included</text>'
    for run in sorted(found["runs"], key=lambda run: run["sampler"] == "bank"):
        points = " ".join([at(0, 0), *(at(s, v) for s, v in zip(found["times_s"], run["curve"]))])
        yield f'<polyline points="{points}" fill="none" stroke="{COLOURS[run["sampler"]]}" stroke-width="1.6"/>'


def picture(panels: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The whole drawing as SVG."""
    width = WIDTH * len(panels)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}"'
        ' font-family="Helvetica, Arial, sans-serif" font-size="11" fill="#333333">',
        f'<rect width="{width}" height="{HEIGHT}" fill="#FFFFFF"/>',
    ]
    for place, (name, colour) in enumerate(COLOURS.items()):
        lines.append(f'<path d="M{LEFT + 100 * place},12h18" stroke="{colour}" stroke-width="3"/>')
        lines.append(f'<text x="{LEFT + 100 * place + 24}" y="16">{NAMES[name]}</text>')
    for place, (title, found) in enumerate(panels):
        lines += panel(title, found, WIDTH * place)
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    """Draw the files named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("panels", nargs="+", metavar="TITLE=FILE")
    parser.add_argument("--svg", type=Path, required=True)
    given = parser.parse_args()
    split = [panel.partition("=") for panel in given.panels]
    given.svg.write_text(picture([(title, json.loads(Path(path).read_text())) for title, _, path in split]))


if __name__ == "__main__":
    main()
