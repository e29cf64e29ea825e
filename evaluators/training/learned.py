"""A network's architecture learned by back-propagation: which neurons and ReLUs it needs (Srinivas 2015, 1511.05497)."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from ...policies.collapsing import Collapsed, collapse, merge_layers
from ...policies.errors import CandidateError, ConfigError
from ...policies.graph import ModelGraph, drop_channels
from ...policies.merged_layers import why_not_collapsed
from ...policies.policy import Policy, Step
from ...policies.ranges import write_ranges
from ...policies.wiring import check_wiring
from ..data import DataSet
from .gates import KINDS, Gates, Kind, put_gates, take_gates
from .loop import Loss, Recipe, train
from .penalties.architecture import Architecture

CROSSINGS = 4.0
"""How often a switch could get from 1 to 0 in the training, at Adam's full pace."""
MEAN_RATE = 0.5
"""Mean of the one-cycle schedule, in units of its peak."""


@dataclass(frozen=True)
class Learning:
    """How an architecture is learned.

    Parameters
    ----------
    kind
        ``conv``, ``fc`` or ``conv_fc``: which layers' neurons may go.
    penalty
        The paper's lambdas.
    recipe
        The training, by Adam, which moves switches and weights at a pace of their own.
    """

    kind: Kind
    penalty: Architecture
    recipe: Recipe

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"learned: expected a kind of {', '.join(KINDS)}; got {self.kind!r}")

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of all that it is."""
        return hashlib.sha256(f"learned:{self!r}".encode()).hexdigest()


@dataclass(frozen=True)
class Learned:
    """What was learned.

    Parameters
    ----------
    model
        The trained network without the neurons and layers that went.
    policy
        Which these are: ``keep_channels`` and ``collapse`` steps for the dense network.
    widths
        Root of each group with switches -> neurons that are left.
    """

    model: nn.Module
    policy: Policy
    widths: Mapping[str, int]


def learn(
    model: nn.Module,
    graph: ModelGraph,
    data: DataSet,
    learning: Learning,
    *,
    seed: int,
    loss: Loss | None = None,
    checkpoint: Path | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> Learned:
    """Train a copy of the dense network with switches on its neurons, and remove what they switch off.

    A checkpoint and ``on_epoch`` work as in ``loop.train``; the switches are part of what is kept.

    Raises
    ------
    CandidateError
        Where no neuron of some layer is left, no layer of the kind can lose any, or the training diverges.
    """
    network = copy.deepcopy(model)
    steps = learning.recipe.epochs * math.ceil(len(data.train) / learning.recipe.batch_size)
    speed = max(1.0, CROSSINGS / (MEAN_RATE * learning.recipe.lr * steps))
    gates = put_gates(network, graph, learning.kind, learning.penalty.layers > 0, speed)
    recipe = replace(learning.recipe, penalties=(*learning.recipe.penalties, learning.penalty))
    train(
        network.requires_grad_(True),
        data,
        recipe,
        seed=seed,
        loss=loss,
        checkpoint=checkpoint,
        on_epoch=on_epoch,
        on_step=gates.clip,
    )
    return settled(network, graph, gates, data.preprocess(data.train.images[:1]), learning)


def settled(network: nn.Module, graph: ModelGraph, gates: Gates, example: Tensor, learning: Learning) -> Learned:
    """What is left of a network whose switches are settled, which is changed; see ``learn``."""
    kept = gates.kept()
    empty = [root for root, channels in kept.items() if not channels]
    if empty:
        names = ", ".join(f"'{root}'" for root in empty)
        raise CandidateError(
            f"lambda {learning.penalty.neurons:g} ({learning.kind}) leaves no neuron of {names}: no network is left;"
            " give smaller lambdas"
        )
    linear, totals = gates.linear(), {group.root: group.channels for group in graph.groups}
    take_gates(network)
    dropped = {root: sorted({*range(totals[root])} - {*channels}) for root, channels in kept.items()}
    lost = drop_channels(network, graph.groups, {root: gone for root, gone in dropped.items() if gone}, example)
    if graph.moves is not None and lost:
        check_wiring(graph.moves, network, lost, example)
    steps = {r: (Step.of("keep_channels", kept=write_ranges(c)),) for r, c in kept.items() if dropped[r]}
    merged = set()
    for name in linear:
        one = _collapsed(name, graph, network)
        # Its ReLU went with the switch.
        collapse(network, [one])
        own = () if one.merge else steps.get(name, ())
        steps[name] = (*own, Step.of("collapse", merge=one.merge))
        merged |= {name} if one.merge else set()
    return Learned(network, Policy(steps), {root: len(left) for root, left in kept.items() if root not in merged})


def _collapsed(layer: str, graph: ModelGraph, network: nn.Module) -> Collapsed:
    """A layer and its reader become one where that is exact and takes fewer weights than the two, as they are now."""
    activation = graph.activation_of(layer)
    assert activation is not None, "a layer with a switch has an activation"
    if why_not_collapsed(layer, activation, graph, merge=True) is not None:
        return Collapsed(activation, False)
    first, second = network.get_submodule(layer), network.get_submodule(activation.reader)
    count = _weights(first) + _weights(second)
    return Collapsed(activation, _weights(merge_layers(first, second)) < count)


def _weights(layer: nn.Module) -> int:
    return cast(Tensor, layer.weight).numel()
