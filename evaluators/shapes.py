"""What a network of a policy's shape takes, counted before it has a weight."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..policies.architectures.shapes import knobs_of, network_of
from ..policies.policy import Scalar
from .macs import Profile, profile


def shape_profile(shape: Mapping[str, Scalar], num_classes: int, in_channels: int) -> Profile:
    """Parameters, multiply-accumulates and activations, from shapes alone: the same as of the network with weights.

    Raises
    ------
    PolicyError
        Where there is no network of this shape.
    """
    side = knobs_of(shape).side
    with torch.device("meta"):
        model = network_of(shape, num_classes, in_channels).eval()
        return profile(model, torch.zeros(1, in_channels, side, side))
