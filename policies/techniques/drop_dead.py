"""Channels that pruning has left without a connection, dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import About, LayerInfo, Phase


@dataclass(frozen=True)
class DropDead:
    """Drop output channels of a layer and of its coupled group that no weight leads to, or none leads from (1606.07326).

    The last step of DropNeuron: after weak connections are pruned, neurons without an incoming or an outgoing connection go.
    The network computes the same (see ``dead.drop_dead_channels``) and its layers become smaller in fact. How many channels go
    is only known with the weights, so that a plan does not tell their number; what it foretells is an upper bound.
    """

    name: ClassVar[str] = "drop_dead"
    about: ClassVar[About] = About(
        ("P8",),
        "drop neurons that pruning left without an incoming or an outgoing connection",
        "convolutions and linear layers of a coupled group, none of them factorized",
        ("stored bytes", "deployed bytes", "MACs", "latency"),
        "smaller layers",
        "Pan 2016, 1606.07326",
    )
    phase: ClassVar[Phase] = Phase.PRUNE

    def check(self, layer: LayerInfo) -> str | None:
        if layer.groups > 1:
            return "it names the layer that makes the channels; this is a grouped convolution that follows one"
        return None

    def is_identity(self, layer: LayerInfo) -> bool:
        """Only the weights tell."""
        return False
