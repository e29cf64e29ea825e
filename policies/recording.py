"""Inputs of a network's layers together with the gradients of the loss with respect to their outputs, picture by picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .techniques.base import Calibration

GRADIENT_BATCH = 32
GRADIENT_PICTURES = 256
# Inputs and gradients that are kept of one layer; fewer pictures where a layer's maps are large.
GRADIENT_VALUES = 2**24


def record_gradients(model: nn.Module, layers: Mapping[str, nn.Module], pictures: Tensor) -> dict[str, Calibration]:
    """What the layers see on pictures (N, C, H, W), and the gradients of each picture's loss, in evaluation mode.

    The loss is the cross-entropy with the network's own most likely class, summed over pictures, so that each row is the
    gradient of one picture's loss. A layer that is called more than once is judged by its first call.
    """
    inputs: dict[str, list[Tensor]] = {name: [] for name in layers}
    gradients: dict[str, list[Tensor]] = {name: [] for name in layers}
    for batch in pictures[:GRADIENT_PICTURES].split(GRADIENT_BATCH):
        _record_batch(model, layers, batch, inputs, gradients)
        if all(_is_full(inputs[name], gradients[name]) for name in layers):
            break
    return {name: Calibration(torch.cat(inputs[name]), torch.cat(gradients[name])) for name in layers}


def _is_full(inputs: list[Tensor], gradients: list[Tensor]) -> bool:
    return sum(x.numel() + g.numel() for x, g in zip(inputs, gradients)) >= GRADIENT_VALUES


def _record_batch(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batch: Tensor,
    inputs: dict[str, list[Tensor]],
    gradients: dict[str, list[Tensor]],
) -> None:
    called: set[str] = set()

    def watch(name: str) -> Any:
        def record(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            if name in called or _is_full(inputs[name], gradients[name]):
                return
            called.add(name)
            inputs[name].append(arguments[0].detach().clone())
            output.register_hook(lambda gradient: gradients[name].append(gradient.detach().clone()))

        return record

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        with torch.enable_grad():
            # The gradient must flow even through a network that is handed over frozen, or overwrites its input.
            source = batch.detach().requires_grad_(True)
            logits = model(source.clone())
            functional.cross_entropy(logits, logits.detach().argmax(1), reduction="sum").backward(inputs=[source])
    finally:
        for handle in handles:
            handle.remove()
