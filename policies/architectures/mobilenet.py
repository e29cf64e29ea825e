"""What both MobileNets have: a width multiplier of all channel counts, the stem's among them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from .knobs import Count, Knobs, Positive, scaled

STEM = 32


@dataclass(frozen=True, kw_only=True)
class MobileNetKnobs(Knobs, ABC):
    """The shape of a MobileNet.

    Parameters
    ----------
    width
        Multiplier of all channel counts.
    multiple
        Channel counts are multiples of this.
    """

    width: Positive = 1.0
    multiple: Count = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        # A width that leaves nothing is refused where channels are counted.
        _ = self.stem, self.blocks()

    @property
    def stem(self) -> int:
        """Channels of the first convolution."""
        return scaled(STEM, self.width, self.multiple)

    @abstractmethod
    def blocks(self) -> Sequence[tuple[int, ...]]:
        """What each block is made of."""
