"""What layers of the dense network see and give on calibration pictures, and how much the loss minds a change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..policies.graph import ModelGraph
from ..policies.recording import record_gradients
from ..policies.second_order import hessian_of_calls
from ..policies.techniques import Calibration

OBSERVED_BYTES = 256_000_000
MOST_PICTURES = 256
LEAST_PICTURES = 8
_BATCH = 32


@dataclass
class Observations:
    """Inputs and outputs of each layer for some calibration pictures, kept in memory.

    Parameters
    ----------
    model
        The dense network, in evaluation mode.
    calibrations
        Layer -> its inputs (P, ...), each call of a forward pass by itself.
    squared_gradients
        Layer -> (out,): half the mean squared gradient of the loss with respect to an output channel, times the
        channel's positions. The loss is the cross-entropy with labels drawn from the network's own prediction, so that
        this is the diagonal of the Fisher matrix, and ``sum(squared_gradients * mean squared change)`` is the
        second-order estimate of what the loss rises by.
    pictures
        (P, C, H, W) that were used.
    """

    model: nn.Module
    calibrations: Mapping[str, Calibration]
    squared_gradients: Mapping[str, Tensor]
    pictures: Tensor
    _outputs: dict[str, Tensor] = field(default_factory=dict)
    _hessians: dict[str, Tensor] = field(default_factory=dict)
    _with_gradients: dict[str, Calibration] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, graph: ModelGraph, pictures: Tensor, seed: int = 0) -> Observations:
        """Observe a network.

        Parameters
        ----------
        pictures
            (N, C, H, W); the first are used, as many as fit in the memory, at most ``MOST_PICTURES``.
        seed
            Of the labels that the gradients are taken for.
        """
        layers = graph.layers.values()
        floats = sum(info.calls * (_count(info.input_shape) + _count(info.output_shape)) for info in layers)
        fitting = max(LEAST_PICTURES, OBSERVED_BYTES // (4 * floats))
        pictures = pictures[: min(MOST_PICTURES, fitting)]
        inputs: dict[str, list[list[Tensor]]] = {name: [] for name in graph.layers}
        gradients = {name: torch.zeros(info.weight_shape[0]) for name, info in graph.layers.items()}
        generator = torch.Generator().manual_seed(seed)
        for batch in pictures.split(_BATCH):
            with _watched(model, graph, inputs, gradients), torch.enable_grad():
                # The gradient must flow even through a network that is handed over frozen, or overwrites its input.
                source = batch.detach().requires_grad_(True)
                logits = model(source.clone())
                labels = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)[:, 0]
                loss = functional.cross_entropy(logits, labels, reduction="sum")
                # Only what leads to the pictures: the gradients of parameters are not asked for. A network may cut itself
                # off from them (torch.no_grad() in forward); its layers can be compressed, but not be ranked by the loss.
                if loss.requires_grad:
                    torch.autograd.grad(loss, source, allow_unused=True)
        joined = {
            name: Calibration.from_calls([torch.cat(parts) for parts in calls])
            for name, calls in inputs.items()
            if calls
        }
        squared = {name: total / (2 * len(pictures)) for name, total in gradients.items()}
        return cls(model, joined, squared, pictures)

    def forget(self) -> None:
        """Free outputs and gradients of layers, which follow from what is kept."""
        self._outputs.clear()
        self._with_gradients.clear()

    def inputs(self, layer: str) -> list[Tensor]:
        """(P, ...) of each call."""
        return [call.inputs for call in self.calibrations[layer].calls]

    def outputs(self, layer: str) -> Tensor:
        """(out, pictures x positions) of the dense layer, of all its calls."""
        if layer not in self._outputs:
            module = self.model.get_submodule(layer)
            self._outputs[layer] = outputs_of(module, self.calibrations[layer], module)
        return self._outputs[layer]

    def hessian(self, layer: str) -> Tensor:
        """(d, d), see ``second_order.hessian_of_calls``."""
        if layer not in self._hessians:
            self._hessians[layer] = hessian_of_calls(self.model.get_submodule(layer), self.inputs(layer))
        return self._hessians[layer]

    def with_gradients(self, layer: str) -> Calibration:
        """Inputs and per-picture gradients of the outputs, see ``record_gradients``; measured for layers that ask."""
        if layer not in self._with_gradients:
            layers = {layer: self.model.get_submodule(layer)}
            self._with_gradients |= record_gradients(self.model, layers, self.pictures)
        return self._with_gradients[layer]


def outputs_of(module: nn.Module, seen: Calibration, dense: nn.Module) -> Tensor:
    """Return what a module makes of all calls' inputs as (out, pictures x positions); ``dense`` stood in its place."""
    with torch.no_grad():
        outputs = [as_channels(dense, module(call.inputs)) for call in seen.calls]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 1)


def as_channels(module: nn.Module, outputs: Tensor) -> Tensor:
    """A layer's outputs (N, ...) as (out, N x positions); ``module`` says on which axis its channels lie."""
    channels_first = outputs.ndim == 4 and not isinstance(module, nn.Linear)
    return (outputs.transpose(0, 1) if channels_first else outputs.transpose(0, -1)).flatten(1)


@contextmanager
def _watched(
    model: nn.Module, graph: ModelGraph, inputs: dict[str, list[list[Tensor]]], gradients: dict[str, Tensor]
) -> Iterator[None]:
    """Keep, for one forward and backward pass, what each call of the layers sees, and sum up squared gradients."""
    calls: Counter[str] = Counter()

    def watch(name: str) -> Any:
        def record(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            if calls[name] == len(inputs[name]):
                inputs[name].append([])
            # A tensor of its own, since what comes later may overwrite it.
            inputs[name][calls[name]].append(arguments[0].detach().clone())
            calls[name] += 1

            def add(gradient: Tensor) -> None:
                gradients[name] += as_channels(module, gradient).square().sum(1)

            if output.requires_grad:
                output.register_hook(add)

        return record

    handles = [model.get_submodule(name).register_forward_hook(watch(name)) for name in graph.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
