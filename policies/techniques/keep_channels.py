"""Structured pruning by name: the channels that are kept are told one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import PolicyError
from ..ranges import read_ranges, write_ranges
from .base import About, LayerInfo, Phase

ONLY = "only:"
"""What ``chosen_by`` starts with; the kept channels follow."""


@dataclass(frozen=True)
class KeepChannels:
    """Keep these output channels of a layer and of its coupled group, and drop all others.

    Which they are was found elsewhere, such as by gates that were trained with the network (1511.05497), and stands in the
    policy, so that it can be carried out again anywhere.

    Parameters
    ----------
    kept
        Numbers of the channels that are kept, from 0, as ascending ranges: ``0-3,7``. Written in the shortest way.
    """

    name: ClassVar[str] = "keep_channels"
    about: ClassVar[About] = About(
        ("A8",),
        "keep the channels that a training with gates has chosen, and drop the others",
        "convolutions and linear layers of a coupled group",
        ("stored bytes", "deployed bytes", "MACs", "latency"),
        "smaller layers",
        "Srinivas 2015, 1511.05497",
    )
    phase: ClassVar[Phase] = Phase.DROP

    kept: str

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "kept", write_ranges(read_ranges(self.kept)))
        except ValueError as error:
            raise PolicyError(f"keep_channels: kept: {error}") from error

    @property
    def indices(self) -> tuple[int, ...]:
        """The channels that are kept, in ascending order."""
        return read_ranges(self.kept)

    def check(self, layer: LayerInfo) -> str | None:
        """Grouped convolutions follow their group's root; they are none themselves."""
        if layer.groups > 1:
            return (
                "keep_channels names the layer that makes the channels; this is a grouped convolution that follows one"
            )
        last, channels = self.indices[-1], layer.weight_shape[0]
        return f"it is to keep channel {last}, but has {channels}, from 0" if last >= channels else None

    def is_identity(self, layer: LayerInfo) -> bool:
        return self.keep(layer.weight_shape[0]) >= layer.weight_shape[0]

    def keep(self, channels: int) -> int:
        """How many of the channels are kept."""
        return min(channels, len(self.indices))

    @property
    def chosen_by(self) -> str:
        """How the channels that go are found: all but these."""
        return ONLY + self.kept
