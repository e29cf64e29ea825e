"""Structured pruning: drop whole channels together with everything coupled to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from ..errors import PolicyError
from .base import ADDED_LATER, About, LayerInfo, Phase

Score = Literal["energy", "magnitude", "activity", "taylor", "hessian"]


@dataclass(frozen=True)
class PruneChannels:
    """Drop the least important output channels of a layer and of its coupled group.

    The layers become smaller and stay dense, so the gain is real in every runtime. The number kept lies on a grid: odd
    widths are slow in the runtimes.

    Parameters
    ----------
    sparsity
        Share of the channels to drop, in [0, 1).
    multiple
        The number kept is rounded to a multiple of this (never below one such multiple).
    score
        What makes a channel important, see ``importance.Importance.scores``: the ``energy`` of what its readers multiply, the
        ``magnitude`` of its weights, the ``activity`` of its neuron (1607.03250), the loss's ``taylor`` expansion
        (1611.06440), or the readers' ``hessian`` (2208.11580).

    References
    ----------
    Fang 2023, "DepGraph", arXiv 2301.12900; Hu 2016, "Network Trimming", arXiv 1607.03250.
    """

    name: ClassVar[str] = "prune_channels"
    about: ClassVar[About] = About(
        ("P6", "P7"),
        "drop whole channels with all that is coupled to them",
        "convolutions and linear layers of a coupled group",
        (
            "stored bytes",
            "deployed bytes",
            "MACs",
            "latency",
        ),
        "smaller layers",
        "Fang 2023, 2301.12900; Hu 2016, 1607.03250; Molchanov 2017, 1611.06440",
    )
    phase: ClassVar[Phase] = Phase.DROP

    sparsity: float
    multiple: int = 8
    score: Score = field(default="energy", metadata=ADDED_LATER)

    def __post_init__(self) -> None:
        if not 0 <= self.sparsity < 1:
            raise PolicyError(f"prune_channels: sparsity is a share in [0, 1), got {self.sparsity}")
        if self.multiple < 1:
            raise PolicyError(f"prune_channels: multiple is a whole number from 1, got {self.multiple}")
        if self.score not in get_args(Score):
            raise PolicyError(f"prune_channels: expected score {', '.join(get_args(Score))}, got {self.score!r}")

    def check(self, layer: LayerInfo) -> str | None:
        """Grouped convolutions follow their group's root; they are none themselves."""
        if layer.groups > 1:
            return (
                "prune_channels names the layer that makes the channels; this is a grouped convolution that follows one"
            )
        return None

    def is_identity(self, layer: LayerInfo) -> bool:
        return self.keep(layer.weight_shape[0]) >= layer.weight_shape[0]

    def keep(self, channels: int) -> int:
        """How many of the channels are kept; all of them at sparsity 0, on the grid or not."""
        if self.sparsity == 0:
            return channels
        wanted = (1 - self.sparsity) * channels
        return min(channels, max(self.multiple, round(wanted / self.multiple) * self.multiple))

    @property
    def chosen_by(self) -> str:
        """How the channels that go are found."""
        return self.score
