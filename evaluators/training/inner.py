"""What layers within a network compute: read by a hook, and what comes after them is not run."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ...policies.errors import ModelError
from ...policies.forms import weighted_modules
from ...policies.own_network import into_evaluation


class _ReachedError(Exception):
    """Ends a forward pass at the layer whose output is wanted."""


def output_of(network: nn.Module, layer: str, x: Tensor) -> Any:
    """What the layer of this name gives for the input (N, C, H, W), where it runs for the first time.

    Raises
    ------
    ModelError
        Where it does not run.
    """
    found: list[Any] = []

    def stop(_: nn.Module, __: Any, output: Any) -> None:
        found.append(output)
        raise _ReachedError

    handle = network.get_submodule(layer).register_forward_hook(stop)
    try:
        network(x)
    except _ReachedError:
        return found[0]
    finally:
        handle.remove()
    raise ModelError(f"layer '{layer}' does not run in the forward pass; choose one that does")


def middle_layer(network: nn.Module, x: Tensor) -> str:
    """Of the convolutions and linear layers in the order in which they run, the middle one; of two, the first.

    Raises
    ------
    ModelError
        Where there is none.
    """
    network = into_evaluation(copy.deepcopy(network))
    order: dict[str, None] = {}

    def seen(name: str) -> Any:
        return lambda *_: order.setdefault(name, None)

    for name, module in weighted_modules(network):
        module.register_forward_hook(seen(name))
    with torch.no_grad():
        network(x)
    if not order:
        raise ModelError("the network runs no convolution and no linear layer; name the layer that is meant")
    return list(order)[(len(order) - 1) // 2]
