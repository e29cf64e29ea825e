"""Statistics of batch norms: estimated anew, folded into scale and shift, and what layers see meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .layout import laid_out
from .watching import watching

STATISTICS_BATCH = 64
# Inputs that are recorded for a layer's Hessian: a few batches, fewer of them where a layer's inputs are large.
HESSIAN_BATCHES = 4
HESSIAN_VALUES = 2**23


def reestimate_statistics(model: nn.Module, calibration: Tensor) -> None:
    """Replace the batch norms' running statistics by those of the calibration pictures, in place.

    A single picture has no spread to speak of; with it alone the statistics stay as they are.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    norms = norms if len(calibration) > 1 else []
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for batch in calibration.split(STATISTICS_BATCH):
            if len(batch) > 1 or not norms:
                model(batch)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        norm.eval()


def settle_statistics(model: nn.Module) -> None:
    """Write each batch norm as a scale and a shift (running mean 0, variance 1 with epsilon), in place.

    The network computes the same up to rounding; the constant statistics cost nothing when stored. Only for networks that
    train no further: in training mode a batch norm would no longer be the same.
    """
    for norm in model.modules():
        if isinstance(norm, _BatchNorm) and norm.track_running_stats and norm.affine:
            mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
            # New tensors: two batch norms may share a scale and differ in their statistics.
            with torch.no_grad():
                scale = norm.weight / (variance + norm.eps).sqrt()
                norm.bias = nn.Parameter(norm.bias - scale * mean, norm.bias.requires_grad)
                norm.weight = nn.Parameter(scale, norm.weight.requires_grad)
                norm.running_mean = torch.zeros_like(mean)
                norm.running_var = torch.full_like(variance, 1 - norm.eps)


def settle_and_record(
    model: nn.Module,
    calibration: Tensor,
    names: list[str],
    changed: bool,
    many: Collection[str] = (),
    keep: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({}),
) -> dict[str, list[Tensor]]:
    """Inputs of each call of the named layers, of ``many`` more than a batch; where weights changed, batch norms follow.

    Of a layer in ``keep``, what that makes of its inputs is kept in their place.
    """
    normed = any(isinstance(module, _BatchNorm) for module in model.modules())
    pictures = laid_out(model, calibration) if changed and normed else calibration
    with _recorded(model, names, many, keep) as inputs:
        if changed and normed:
            reestimate_statistics(model, pictures)
        elif names:
            with torch.no_grad():
                for batch in calibration.split(STATISTICS_BATCH)[: HESSIAN_BATCHES if many else 1]:
                    model(batch)
    return {name: [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in held] for name, held in inputs.items()}


@contextmanager
def _recorded(
    model: nn.Module, names: list[str], many: Collection[str], keep: Mapping[str, Callable[[Tensor], Tensor]]
) -> Iterator[dict[str, list[list[Tensor]]]]:
    """Layer -> for each of its calls in a forward pass, the inputs of one or more batches."""
    inputs: dict[str, list[list[Tensor]]] = {}
    calls: Counter[str] = Counter()
    passes = 0

    def record(name: str, x: Tensor) -> None:
        held, call = inputs.setdefault(name, []), calls[name]
        calls[name] += 1
        seen = keep[name](x.detach()) if name in keep else x.detach()
        # Of several batches the first is the one that is sure to be full; what comes later may overwrite the tensor.
        if passes == 1:
            held.append([seen.clone()])
        elif name in many and call < len(held) and _fits(seen, held[call], len(held)):
            held[call].append(seen.clone())

    def begin(*_: object) -> None:
        nonlocal passes
        passes += 1
        calls.clear()

    handle = model.register_forward_pre_hook(begin)
    try:
        with watching({name: model.get_submodule(name) for name in names}, record):
            yield inputs
    finally:
        handle.remove()


def _fits(x: Tensor, held: list[Tensor], calls: int) -> bool:
    """Whether a call's inputs of one more batch can be kept, so many calls sharing the memory."""
    count = len(held) + 1
    return x.shape == held[0].shape and count <= HESSIAN_BATCHES and count * calls * x.numel() <= HESSIAN_VALUES
