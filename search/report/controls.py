"""Were the weights worth keeping? Members of the front beside their controls, and what follows. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...evaluators.training.lottery import CONTROLS, SCRATCH
from .data import Record, ReportData, interval, number
from .text import value_text

TITLES = {
    "scratch_e": "Scratch-E",
    "scratch_b": "Scratch-B",
    "rewind": "rewound",
    "random": "drawn anew",
    "signs": "signs only",
    "supermask": "supermask",
}
MEANINGS = {
    "scratch_e": "the same architecture, zeros included, from new random weights, for as many epochs as the dense network"
    " (1810.05270)",
    "scratch_b": "the same for as much computation as the dense network's training (1810.05270)",
    "rewind": "the same mask, its weights set back to the dense network's start, or to its first epochs where they are asked"
    " for: a lottery ticket (1803.03635, 1903.01611)",
    "random": "the same mask on new random weights (1803.03635)",
    "signs": "the same mask, its weights one magnitude with their initial signs (1905.01067)",
    "supermask": "the same mask on the initial weights, those left out that training turned round; untrained (1905.01067)",
}


@dataclass(frozen=True)
class Control:
    """A control in the table: its error, and epochs and difference in points below it; the reason where it failed."""

    text: str
    note: str


@dataclass(frozen=True)
class ControlRow:
    """A member, its error on the test pictures, a cell for each column (``None``: does not apply), and what follows."""

    id: str
    knee: bool
    error: str
    cells: Sequence[Control | None]
    conclusion: str


def control_columns(data: ReportData) -> list[tuple[str, str]]:
    """Title and meaning of each control that some member has."""
    return [(TITLES[name], MEANINGS[name]) for name in _shown(data)]


def control_rows(data: ReportData) -> list[ControlRow]:
    """A row for each member that has controls, the knee first, then by error; none where none were asked for."""
    entries = [entry for entry in data.front if entry.get("controls")]
    order = sorted(entries, key=lambda e: (not e.get("knee"), number(e["metrics"], "error_pct") or 0.0))
    return [
        ControlRow(
            str(entry["id"]),
            bool(entry.get("knee")),
            value_text("error_pct", number(entry["metrics"], "error_pct")),
            [_cell(entry, name) for name in _shown(data)],
            conclusion(entry),
        )
        for entry in order
    ]


def conclusion(entry: Record) -> str:
    """What follows from a member's controls, in words.

    A control differs where the errors lie further apart than both 95 % intervals together, as the root of their squares.
    """
    gaps = {name: gap for name in entry["controls"] if (gap := _gap(entry, name)) is not None}
    said = [text for text in (_architecture(gaps), _ticket(gaps), _untrained(entry, gaps)) if text]
    return " ".join(said) or "No control came to an end; nothing is known."


def _architecture(gaps: Mapping[str, tuple[float, bool]]) -> str:
    scratch = [gaps[name] for name in SCRATCH if name in gaps]
    if not scratch:
        return ""
    gap, differs = min(scratch)
    if not differs:
        return (
            "The architecture was worth keeping, not the weights: from new random ones it errs as much, as far as the test"
            " pictures tell."
        )
    if gap < 0:
        return (
            f"The architecture was worth keeping, not the weights: from new random ones it errs {-gap:.2f} points less."
        )
    return f"The weights were worth keeping: from new random ones the same architecture errs {gap:.2f} points more."


def _ticket(gaps: Mapping[str, tuple[float, bool]]) -> str:
    rewound, anew, signs = (gaps.get(name) for name in ("rewind", "random", "signs"))
    said = []
    if rewound is not None and _worse(rewound):
        said.append(
            f"The trained weights were worth keeping: set back to their start they err {rewound[0]:.2f} points more."
        )
    elif rewound is not None:
        said.append("The mask is a winning ticket: its weights, set back to their start, train as well.")
    if anew is not None and _worse(anew):
        said.append(f"The mask alone is not enough: on new random weights it errs {anew[0]:.2f} points more.")
    elif anew is not None:
        said.append("The pattern of connections was worth keeping, not its weights: new random ones train as well.")
    if signs is not None and _worse(signs):
        said.append(f"Of the start more than its signs counts: with these alone it errs {signs[0]:.2f} points more.")
    elif signs is not None:
        said.append("Of the start only the signs count: with these alone it trains as well.")
    return " ".join(said)


def _untrained(entry: Record, gaps: Mapping[str, tuple[float, bool]]) -> str:
    if "supermask" not in gaps:
        return ""
    return (
        f"Untrained, the mask errs on {value_text('error_pct', number(entry['controls']['supermask'], 'error_pct'))}."
    )


def _worse(gap: tuple[float, bool]) -> bool:
    return gap[0] > 0 and gap[1]


def _gap(entry: Record, name: str) -> tuple[float, bool] | None:
    """By how many points a control errs more than its member, and whether that is beyond chance; ``None`` where it failed."""
    figures, metrics = entry["controls"][name], entry["metrics"]
    error, own = number(figures, "error_pct"), number(metrics, "error_pct")
    if error is None or own is None:
        return None
    halves = [_half(figures), _half(metrics)]
    return error - own, abs(error - own) > math.hypot(*halves)


def _half(metrics: Mapping[str, Any]) -> float:
    bounds = interval(metrics, "error_pct")
    return 0.0 if bounds is None else (bounds[1] - bounds[0]) / 2


def _shown(data: ReportData) -> list[str]:
    return [name for name in CONTROLS if any(name in (entry.get("controls") or {}) for entry in data.front)]


def _cell(entry: Record, name: str) -> Control | None:
    figures = entry["controls"].get(name)
    if figures is None:
        return None
    if "failed" in figures:
        return Control("failed", str(figures["failed"]))
    gap = _gap(entry, name)
    epochs = "untrained" if not figures["epochs"] else f"{figures['epochs']} epochs"
    beside = "" if gap is None else f"; {gap[0]:+.2f} points"
    return Control(value_text("error_pct", number(figures, "error_pct")), f"{epochs}{beside}")
