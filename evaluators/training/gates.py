"""Switches that are trained with a network: one for each neuron, one for each layer's ReLU (Srinivas 2015, 1511.05497).

The tri-state ReLU of the paper, ``tsReLU(x) = w x`` where ``x >= 0`` and ``w d x`` elsewhere, stands in two parts, so that it
fits networks with normalisation, pooling or residual sums too. Its slope ``d`` is that of the activation. Its ``w`` is
multiplied where the neuron's outputs are read: the same behind a pooling or a flatten, since ``w`` is not negative, and exactly
what is left of the neuron when it is removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...policies.copying import put_in_place
from ...policies.coupling import ChannelGroup
from ...policies.errors import CandidateError
from ...policies.graph import ModelGraph
from ...policies.slicing import Slot

Kind = Literal["conv", "fc", "conv_fc"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Which neurons have a switch: of convolutions (AL-conv), of linear layers (AL-fc), or of both."""
SETTLED = 0.8
"""Share of the training after which every switch is 0 or 1: the weights train on without the neurons that are off."""
PLACE = "architecture_gates"


def tri_state_relu(x: Tensor, w: Tensor, d: Tensor) -> Tensor:
    """``w x`` where ``x >= 0``, ``w d x`` elsewhere: a ReLU for w = 1 and d = 0, linear for d = 1, nothing for w = 0."""
    return w * functional.prelu(x, d.reshape(1))


class Switch(nn.Module):
    """Numbers in [0, 1] that are trained, (n,).

    Parameters
    ----------
    count, start
        How many, and where they start.
    speed
        Each is so many times the number that the optimizer sees: it has to get from 1 to 0 in a few epochs, a weight has not.
    """

    def __init__(self, count: int, start: float, speed: float) -> None:
        super().__init__()
        self.speed = speed
        self.trained = nn.Parameter(torch.full((count,), start / speed))

    @property
    def value(self) -> Tensor:
        """The numbers (n,)."""
        return self.speed * self.trained

    def set(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change the numbers in place."""
        with torch.no_grad():
            self.trained.copy_(change(self.value) / self.speed)


class LayerSwitch(Switch):
    """The slope ``d`` of a layer's activation below 0, shared by its neurons."""

    def __init__(self, speed: float) -> None:
        super().__init__(1, 0.0, speed)

    def forward(self, x: Tensor) -> Tensor:
        # What is behind is multiplied by w where it is read.
        return tri_state_relu(x, torch.ones(()), self.value)


class Gates(nn.Module):
    """The switches of a network, which stand in it while it trains: ``w`` of neurons and ``d`` of layers.

    Parameters
    ----------
    groups
        Whose neurons have switches.
    layers
        Whose ReLUs have one.
    speed
        See ``Switch``.
    """

    progress: Tensor

    def __init__(self, groups: list[ChannelGroup], layers: list[str], speed: float) -> None:
        super().__init__()
        self.roots, self.layers = [group.root for group in groups], layers
        self.neurons = nn.ModuleList(Switch(group.channels, 1.0, speed) for group in groups)
        self.slopes = nn.ModuleList(LayerSwitch(speed) for _ in layers)
        self.register_buffer("progress", torch.zeros(()))
        self._handles: list[Any] = []

    @property
    def w(self) -> Tensor:
        """The switches of all neurons (n,)."""
        return torch.cat([switch.value for switch in cast(list[Switch], self.neurons)])

    @property
    def d(self) -> Tensor:
        """The switches of all layers (n,), which may be none."""
        return torch.cat([torch.zeros(0), *(switch.value for switch in cast(list[Switch], self.slopes))])

    def kept(self) -> dict[str, list[int]]:
        """Root -> channels whose switch is on, after ``settle``."""
        switches = cast(list[Switch], self.neurons)
        return {root: switch.value.ge(0.5).nonzero()[:, 0].tolist() for root, switch in zip(self.roots, switches)}

    def linear(self) -> list[str]:
        """Layers whose activation became linear, after ``settle``."""
        switches = cast(list[Switch], self.slopes)
        return [name for name, switch in zip(self.layers, switches) if bool(switch.value.ge(0.5))]

    def clip(self, step: int, of: int) -> None:
        """Keep the switches in [0, 1] after a step, and settle them near the end; note how much of the training is over."""
        for switch in self.switches():
            switch.set(lambda value: value.clamp(0, 1))
        if step >= SETTLED * of:
            self.settle()
        self.progress.fill_(step / of)

    def settle(self) -> None:
        """Set each switch to 0 or 1, whichever is nearer; 0.5 stays on."""
        for switch in self.switches():
            switch.set(lambda value: value.ge(0.5).float())

    def switches(self) -> Iterator[Switch]:
        """All of them."""
        yield from cast(list[Switch], [*self.neurons, *self.slopes])

    def watch(self, model: nn.Module, switch: Switch, slot: Slot) -> None:
        """Multiply what a layer reads of a group by its switches."""
        reader = model.get_submodule(slot.module)
        index, factor = torch.tensor(slot.index), len(slot.index) // len(switch.trained)
        width = int(cast(Tensor, reader.weight).shape[1])

        def gate(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            features = torch.ones(width).index_put((index,), switch.value.repeat_interleave(factor))
            shape = (-1, 1, 1) if isinstance(reader, nn.Conv2d) else (-1,)
            return (arguments[0] * features.view(shape), *arguments[1:])

        self._handles.append(reader.register_forward_pre_hook(gate))

    def release(self) -> None:
        """Take the switches off what layers read."""
        for handle in self._handles:
            handle.remove()


def gates_of(model: nn.Module) -> Gates:
    """The switches that stand in a network."""
    found = getattr(model, PLACE)
    assert isinstance(found, Gates), "put_gates comes first"
    return found


def put_gates(model: nn.Module, graph: ModelGraph, kind: Kind, with_layers: bool, speed: float = 1.0) -> Gates:
    """Put switches into a network, in place; all neurons are on, and all activations are as they were.

    Parameters
    ----------
    with_layers
        Whether the layers' ReLUs get switches too, where they stand right behind a layer of the ``kind``.
    speed
        See ``Switch``.

    Raises
    ------
    CandidateError
        Where no group of channels of the kind can lose any.
    """
    roots = {name for name, layer in graph.layers.items() if _is_of(kind, layer.kind)}
    groups = [group for group in graph.groups if group.root in roots and _can_be_gated(group)]
    if not groups:
        raise CandidateError(f"no layer of the kind '{kind}' has neurons that can be removed; learn another kind")
    free = {name for group in groups for name in group.producers}
    relus = {found.layer: found.module for found in graph.activations if with_layers and found.layer in free}
    gates = Gates(groups, list(relus), speed)
    for switch, group in zip(gates.neurons, groups):
        for slot in group.slots:
            if slot.axis == "in":
                gates.watch(model, cast(Switch, switch), slot)
    for place, slope in zip(relus.values(), gates.slopes):
        put_in_place(model, place, slope)
    model.add_module(PLACE, gates)
    return gates


def take_gates(model: nn.Module) -> None:
    """Take settled switches out of a network, in place.

    Neurons that are off are read again: remove them first. Activations that became linear are gone.
    """
    gates = gates_of(model)
    gates.release()
    for place, module in list(model.named_modules()):
        if isinstance(module, LayerSwitch) and not place.startswith(PLACE):
            put_in_place(model, place, nn.Identity() if bool(module.value.ge(0.5)) else nn.ReLU())
    delattr(model, PLACE)


def _is_of(kind: Kind, layer: str) -> bool:
    return layer in {"conv": ("conv2d",), "fc": ("linear",), "conv_fc": ("conv2d", "linear")}[kind]


def _can_be_gated(group: ChannelGroup) -> bool:
    return group.refusal is None and group.channels > 1 and any(slot.axis == "in" for slot in group.slots)
