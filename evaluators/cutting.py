"""Layers of a network without the channels that its groups lose, each cut by itself."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..policies.copying import sharing_copy
from ..policies.errors import CandidateError
from ..policies.graph import ModelGraph
from ..policies.importance import Choice, Importance, fold_channels
from ..policies.second_order import reconstruct
from ..policies.slicing import Axis, Slot, cut, cut_channels
from ..policies.techniques import Calibration
from ..policies.techniques.hessians import hessian_reason
from ..policies.wiring import check_wiring
from .observe import Observations

Cut = tuple[str, int, str]
"""The root of a channel group, how many channels it keeps, and how these are chosen."""
Cuts = tuple[Cut, ...]


class Cutter:
    """Cuts channels out of a network's layers.

    Parameters
    ----------
    model
        The dense network, in evaluation mode; not changed.
    graph
        Its layers and channel groups.
    observations
        What was seen of its layers on calibration pictures.
    energies
        ``input_energies`` of the network, by which channels are chosen.
    """

    def __init__(
        self, model: nn.Module, graph: ModelGraph, observations: Observations, energies: Mapping[str, Tensor]
    ) -> None:
        self._modules, self._graph, self._seen = dict(model.named_modules()), graph, observations
        self._model, self._rightly_cut = model, set[frozenset[Cut]]()
        self._slots = _slots_by_module(graph)
        self._importance = Importance(model, graph.groups, observations.pictures, energies)
        self._choices: dict[Cut, Choice] = {}

    def channels(self, layer: str) -> int:
        """Output channels of the dense layer."""
        return self._graph.layers[layer].weight_shape[0]

    def touched(self, root: str) -> list[str]:
        """Modules that lose channels with a group.

        Raises
        ------
        CandidateError
            Where they are not known without tracing the network again.
        """
        group = next(group for group in self._graph.groups if group.root == root)
        if not group.slots:
            raise CandidateError(f"layer '{root}': its channels cannot be cut without tracing the network again")
        return [slot.module for slot in group.slots]

    def check(self, cuts: Collection[Cut]) -> None:
        """Check that the channels that are left go where they went, in a network that moves channels by their numbers.

        Raises
        ------
        CandidateError
            Where a layer would work on other channels than in the dense network.
        """
        moves, key = self._graph.moves, frozenset(cuts)
        if moves is None or not cuts or key in self._rightly_cut:
            return
        small, example = sharing_copy(self._model), self._seen.pictures[:1]
        dropped = {cut_[0]: self._choose(cut_).dropped for cut_ in cuts}
        check_wiring(moves, small, cut_channels(small, self._slots_of(dropped), dropped), example)
        self._rightly_cut.add(key)

    def of(self, name: str, cuts: Mapping[str, Cut]) -> Cuts:
        """Those of the cuts, by root, that reach a module."""
        return tuple(cuts[root] for root in dict.fromkeys(r for r, _ in self._slots.get(name, ())) if root in cuts)

    def lost(self, name: str, axis: Axis, cuts: Cuts) -> frozenset[int]:
        """Channels of a module that go when these groups are cut."""
        known = {root: (root, keep, by) for root, keep, by in cuts}
        slots = [(root, slot) for root, slot in self._slots.get(name, ()) if root in known and slot.axis == axis]
        places = [slot.of(self._choose(known[root]).dropped, self.channels(root)) for root, slot in slots]
        return frozenset().union(*places)

    def module(self, name: str, cuts: Cuts) -> nn.Module:
        """A copy of a module without the output channels that its groups lose."""
        module = copy.deepcopy(self._modules[name])
        if out := self.lost(name, "out", cuts):
            cut(module, "out", out)
        return module

    def layer(self, name: str, cuts: Cuts) -> tuple[nn.Module, Calibration]:
        """A copy of a layer without the channels that its groups lose on either side, and its inputs without them."""
        module = self.module(name, cuts)
        if into := self.lost(name, "in", cuts):
            self._cut_inputs(name, module, into, cuts)
        return module, self.seen(name, cuts, self._seen.calibrations[name])

    def seen(self, name: str, cuts: Cuts, whole: Calibration) -> Calibration:
        """What the layer saw, without the channels that its groups lose."""
        inputs = [self._inputs(name, cuts, call.inputs) for call in whole.calls]
        gradients = [call.gradients for call in whole.calls if call.gradients is not None]
        return Calibration.from_calls(inputs, [self._gradients(name, cuts, gradient) for gradient in gradients])

    def _inputs(self, name: str, cuts: Cuts, inputs: Tensor) -> Tensor:
        """Inputs of a call of the layer without the channels that its groups lose."""
        dense = self._modules[name]
        out, into = self.lost(name, "out", cuts), self.lost(name, "in", cuts)
        depthwise = isinstance(dense, nn.Conv2d) and dense.groups > 1
        return _without(inputs, out if depthwise else into, dense) if into or (depthwise and out) else inputs

    def _gradients(self, name: str, cuts: Cuts, gradients: Tensor) -> Tensor:
        """Gradients of a layer's output without the channels that its groups lose."""
        out = self.lost(name, "out", cuts)
        return _without(gradients, out, self._modules[name]) if out else gradients

    def _cut_inputs(self, name: str, module: nn.Module, lost: frozenset[int], cuts: Cuts) -> None:
        """Leave out inputs, and solve the weights that are left for the least change of the output where that is possible."""
        weight = cast(Tensor, module.weight).detach()
        own_forward = type(module).forward not in (nn.Conv2d.forward, nn.Linear.forward)
        merged = self._fold(name, module, cuts)
        if merged or own_forward or hessian_reason(self._graph.layers[name]) is not None:
            cut(module, "in", lost)
            return
        kernel = weight[0, 0].numel()
        features = [c * kernel + k for c in range(weight.shape[1]) if c not in lost for k in range(kernel)]
        solved = reconstruct(weight.flatten(1), self._seen.hessian(name), torch.tensor(features))
        cut(module, "in", lost)
        with torch.no_grad():
            cast(nn.Parameter, module.weight).copy_(solved.view_as(cast(Tensor, module.weight)))

    def _fold(self, name: str, module: nn.Module, cuts: Cuts) -> bool:
        """Let channels that are merged hand their outgoing weights on; whether there are any."""
        found = False
        for cut_ in cuts:
            into = self._choose(cut_).into
            for root, slot in self._slots.get(name, ()):
                if into and root == cut_[0] and slot.axis == "in":
                    fold_channels(module, slot, into, self.channels(root))
                    found = True
        return found

    def _slots_of(self, roots: Collection[str]) -> dict[str, Sequence[Slot]]:
        return {group.root: group.slots for group in self._graph.groups if group.root in roots}

    def _choose(self, cut_: Cut) -> Choice:
        """The channels that go with a cut."""
        if cut_ not in self._choices:
            root, keep, by = cut_
            group = next(group for group in self._graph.groups if group.root == root)
            self._choices[cut_] = self._importance.choose(group, by, keep)
        return self._choices[cut_]


def _without(inputs: Tensor, lost: frozenset[int], layer: nn.Module) -> Tensor:
    axis = 1 if isinstance(layer, nn.Conv2d) else inputs.ndim - 1
    kept = torch.tensor([i for i in range(inputs.shape[axis]) if i not in lost])
    return inputs.index_select(axis, kept)


def _slots_by_module(graph: ModelGraph) -> dict[str, list[tuple[str, Slot]]]:
    out: dict[str, list[tuple[str, Slot]]] = {}
    for group in graph.groups:
        for slot in group.slots:
            out.setdefault(slot.module, []).append((group.root, slot))
    return out
