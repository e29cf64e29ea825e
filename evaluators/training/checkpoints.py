"""Where the trainings of one evaluation keep their states, and who hears of each epoch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

OnEpoch = Callable[[int, float], None]
"""(epochs that are done, mean loss of the last) -> nothing."""


def _unheard(_: int, __: Mapping[str, float]) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Checkpoints:
    """States of trainings that follow each other, a file for each; without a folder nothing is kept.

    A training that is started again with the files that a dead one left goes on after its last whole epoch, and ends with
    the network that the dead one would have ended with.

    Parameters
    ----------
    folder
        Where the files lie, on a disk of the worker.
    heard
        Called after each epoch, when its state is kept: (epochs that are done, of all trainings so far; figures: ``loss``,
        and ``error_pct`` where ``validates`` is set).
    validates
        Whether the network is tried on validation pictures after each epoch.
    """

    folder: Path | None = None
    heard: Callable[[int, Mapping[str, float]], None] = _unheard
    validates: bool = False

    def of(self, training: int) -> Path | None:
        """The file of a training, by its number."""
        return None if self.folder is None else self.folder / f"training-{training}.safetensors"

    def following(self, epochs_before: int, error_pct: Callable[[], float]) -> OnEpoch:
        """For the loop: hands each epoch on, counted from the first training's first."""

        def on_epoch(epoch: int, loss: float) -> None:
            figures = {"loss": loss, **({"error_pct": error_pct()} if self.validates else {})}
            self.heard(epochs_before + epoch, figures)

        return on_epoch


UNKEPT = Checkpoints()
"""Nothing is kept, and nobody hears."""
