"""Inputs of a network's layers together with the gradients of the loss with respect to their outputs, picture by picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
    Fisher information; see ``prediction_slopes``. Of a layer that is called more than once, each call stands by itself.
    """
    generator = torch.Generator().manual_seed(0)
    batches: dict[str, list[list[_Call]]] = {name: [] for name in layers}
    for batch in pictures[:GRADIENT_PICTURES].split(GRADIENT_BATCH):
        asking = {name: layer for name, layer in layers.items() if not _is_full(batches[name])}
        if not asking:
            break
        for name, calls in _record_batch(model, asking, batch, generator).items():
            batches[name].append(calls)
    return {name: _joined(calls) for name, calls in batches.items()}


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


@dataclass
class _Call:
    """One call of a layer: its input, and the gradient of its output, which stays 0 where nothing reads that."""

    x: Tensor
    gradient: Tensor

    def keep_gradient(self, gradient: Tensor) -> None:
        self.gradient = gradient.detach().clone()


def _is_full(batches: list[list[_Call]]) -> bool:
    return sum(call.x.numel() + call.gradient.numel() for calls in batches for call in calls) >= GRADIENT_VALUES


def _joined(batches: list[list[_Call]]) -> Calibration:
    """Each call with the pictures of all batches, of the calls that every batch made."""
    calls = list(zip(*batches))
    inputs = [torch.cat([call.x for call in parts]) for parts in calls]
    return Calibration.from_calls(inputs, [torch.cat([call.gradient for call in parts]) for parts in calls])


def _record_batch(
    model: nn.Module, layers: Mapping[str, nn.Module], batch: Tensor, generator: torch.Generator
) -> dict[str, list[_Call]]:
    calls: dict[str, list[_Call]] = {name: [] for name in layers}

    def watch(name: str) -> Any:
        def record(_: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            call = _Call(arguments[0].detach().clone(), torch.zeros_like(output))
            calls[name].append(call)
            output.register_hook(call.keep_gradient)

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
    return calls
