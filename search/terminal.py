"""What a run looks like in a terminal: log lines, one progress line, the table of the front."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column, Table

from .front import FrontData
from .progress import Progress

PHASES = {"bank": "banking", "screen": "screening", "tune": "trying out", "recover": "recovering", "test": "testing"}


class TerminalListener:
    """Prints log lines and keeps one progress line; where there is no terminal, a line every tenth of a phase."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            console=console,
        )
        self._task: Any = None
        self._phase = ""

    def __enter__(self) -> TerminalListener:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the progress."""
        self._console.print(line, markup=False, highlight=False)

    def progress(self, progress: Progress) -> None:
        """Show where the run stands."""
        title, state = PHASES[progress.phase], _state(progress)
        if not self._console.is_terminal:
            step = max(1, progress.total // 10)
            if progress.done % step == 0 or progress.done == progress.total:
                self.say(f"{title} {progress.done}/{progress.total}  {state}")
            return
        if progress.phase != self._phase:
            self._phase = progress.phase
            self._task = self._bar.add_task(title, total=progress.total, state=state)
        self._bar.update(self._task, completed=progress.done, total=progress.total, state=state)


def front_table(found: FrontData) -> Table:
    """The front as a table, the dense network in its first row, the knee marked."""
    # The id is typed again in --pick; figures are of no use in two halves.
    is_split = "whole_test_error_pct" in found.baseline
    titles = ("id", "error %", *(["whole test %"] if is_split else []), "stored", "smaller", "ONNX", "latency")
    figures = [Column(name, no_wrap=True) for name in titles]
    table = Table(
        Column("", no_wrap=True),
        *figures,
        Column("budgets", min_width=10),
        title="front",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 0),
    )
    base, knee = found.baseline, found.knee
    table.add_row("", "dense", *_figures(base, base), "")
    for member in found:
        table.add_row(
            "knee" if member == knee else "",
            member.id,
            *_figures(member.metrics, base),
            member.standing.text if found.budgets else "none",
        )
    return table


def _figures(metrics: Mapping[str, Any], base: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{metrics['error_pct']:.2f}",
        *([f"{metrics['whole_test_error_pct']:.2f}"] if "whole_test_error_pct" in base else []),
        _size(metrics["stored_bytes"]),
        f"{base['stored_bytes'] / metrics['stored_bytes']:.1f}x",
        _size(metrics["onnx_bytes"]),
        f"{metrics['latency_ratio']:.3f}x",
    )


def _size(count: float) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1000:.1f} kB"


def _state(progress: Progress) -> str:
    parts = [
        f"front {progress.front_size}",
        *(f"{name} {_short(name, value)}" for name, value in progress.best.items()),
    ]
    if progress.failed:
        parts.append(f"{progress.failed} failed")
    if progress.seconds_left is not None:
        parts.append(f"{_clock(progress.seconds_left)} left")
    return " | ".join(parts)


def _short(name: str, value: float) -> str:
    return f"{value / 1000:.1f}k" if name.endswith("_bytes") else f"{value:.3g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
