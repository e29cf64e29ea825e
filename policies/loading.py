"""A network from its compact file alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .apply import restore
from .architectures.shapes import canonical, knobs_of, network_of
from .coding.press import decode
from .compact import read_brief
from .errors import FormatError, PolicyError
from .graph import ModelGraph
from .plan import make_plan
from .policy import Scalar

NETWORK = "network"
"""Under which a compact file says what network its policy is for."""


def described(shape: Mapping[str, Scalar], num_classes: int, in_channels: int) -> list[Any]:
    """A network of a family as a compact file says it.

    Raises
    ------
    PolicyError
        Where there is no network of this shape.
    """
    return [canonical(shape), num_classes, in_channels]


def load(path: str | Path) -> nn.Module:
    """The compressed network that a compact ``.press`` file holds, as a plain module in evaluation mode.

    The file says which family's network it is, and its knobs (``storage: {compact: true}`` with ``model.name: family:...``);
    any other needs the network that it was made of, see ``Candidate.model``.

    Raises
    ------
    FormatError
        Where the file cannot be read, is damaged or does not say of which network it is.
    """
    try:
        content = decode(Path(path).read_bytes())
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error}") from error
    if NETWORK not in content.metadata:
        raise FormatError(
            f"{path} does not say of which network it is; expected a file that storage: {{compact: true}} wrote of a family's"
            " network. Use paretopress.open_front(run)[i].model() instead"
        )
    try:
        shape, num_classes, in_channels = content.metadata[NETWORK]
        searched = content.metadata["policy"].get("shape") or {}
        side = knobs_of(searched or shape).side
        dense = network_of(searched or shape, num_classes, in_channels).eval()
        graph = ModelGraph.trace(dense, torch.zeros(1, in_channels, side, side), of_shape=searched)
        policy = read_brief(content.metadata["policy"], list(graph.layers))
        return restore(make_plan(policy, graph), graph, dense, content.tensors).eval()
    except (AttributeError, KeyError, PolicyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} is no compact file of a family's network: {error}") from error
