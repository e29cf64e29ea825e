"""Inputs of a network's layers together with the gradients of the loss with respect to their outputs, picture by picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .techniques.base import Calibration

GRADIENT_BATCH = 32
GRADIENT_PICTURES = 256
# Inputs and gradients that are kept of one layer; fewer pictures where a layer's maps are large.
GRADIENT_VALUES = 2**24


def record_gradients(model: nn.Module, layers: Mapping[str, nn.Module], pictures: Tensor) -> dict[str, Calibration]:
    """What the layers see on pictures (N, C, H, W), and the gradients of each picture's loss, in evaluation mode.

    The mean of the gradients' squares is that of the cross-entropy with labels drawn from the network's own prediction, the
    Fisher information; see ``prediction_slopes``. A layer that is called more than once is judged by its first call.
    """
    generator = torch.Generator().manual_seed(0)
    inputs: dict[str, list[Tensor]] = {name: [] for name in layers}
    gradients: dict[str, list[Tensor]] = {name: [] for name in layers}
    for batch in pictures[:GRADIENT_PICTURES].split(GRADIENT_BATCH):
        _record_batch(model, layers, batch, generator, inputs, gradients)
        if all(_is_full(inputs[name], gradients[name]) for name in layers):
            break
    return {name: Calibration(torch.cat(inputs[name]), torch.cat(gradients[name])) for name in layers}


def prediction_slopes(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Random gradients (N, classes) of a loss with respect to logits, of covariance ``diag(p) - p p^T``.

    That is the covariance of ``p - onehot(y)`` for labels drawn from the prediction ``p``, and the Hessian of the
    cross-entropy whatever the label. A network that is sure of itself draws labels that tell next to nothing but for a few
    pictures; ``(diag(p)^(1/2) - p p^(1/2)T) e`` with random signs ``e`` tells something of each.
    """
    p = logits.detach().softmax(1)
    signs = torch.randint(0, 2, p.shape, generator=generator) * 2.0 - 1.0
    spread = p.sqrt() * signs
    return spread - p * spread.sum(1, keepdim=True)


def _is_full(inputs: list[Tensor], gradients: list[Tensor]) -> bool:
    return sum(x.numel() + g.numel() for x, g in zip(inputs, gradients)) >= GRADIENT_VALUES


def _record_batch(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    batch: Tensor,
    generator: torch.Generator,
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
            logits.backward(prediction_slopes(logits, generator), inputs=[source])
    finally:
        for handle in handles:
            handle.remove()
