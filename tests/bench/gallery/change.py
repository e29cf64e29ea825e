"""A technique carried out on a layer of a trained network, and what it changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from paretopress.policies import forms
from paretopress.policies.apply import CompressedModel, apply_plan
from paretopress.policies.coding.press import encode
from paretopress.policies.plan import Plan, make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.policies.watching import watching
from torch import Tensor, nn

from .networks import Network

FLOAT_BYTES = 4


@dataclass(frozen=True)
class Figures:
    """What was measured on an exhibit.

    Parameters
    ----------
    bytes_before
        Of the float32 weights and biases.
    bytes_after
        Of a ``.press`` file that holds nothing else.
    layer_error, network_error
        ``||y' - y|| / ||y||`` of the layer's and of the network's outputs over the calibration pictures; ``None`` where there
        is no such layer any more, or a training in between made another function of it.
    note
        What else was measured.
    """

    bytes_before: int
    bytes_after: int
    layer_error: float | None
    network_error: float | None
    note: str = ""


@dataclass(frozen=True, eq=False)
class Change:
    """A layer before and after.

    Parameters
    ----------
    network, layer
        Where it stands.
    compressed
        The network in which it was changed.
    inputs
        (N, ...) of the layer on the calibration pictures.
    """

    network: Network
    layer: str
    compressed: nn.Module
    inputs: Tensor

    @property
    def dense(self) -> nn.Module:
        return self.network.model.get_submodule(self.layer)

    @property
    def after(self) -> nn.Module:
        """What stands in the layer's place."""
        return self.compressed.get_submodule(self.layer)

    @property
    def before(self) -> np.ndarray:
        """Weights (out, in / groups, kh, kw) or (out, in)."""
        return cast(np.ndarray, cast(Tensor, self.dense.weight).detach().numpy())

    @property
    def now(self) -> np.ndarray:
        """Effective weights, as ``before``."""
        return effective_weight(self.after, self.before.shape)

    def figures(self) -> Figures:
        parameters = sum(parameter.numel() for parameter in self.dense.parameters())
        errors = output_error(self), network_error(self.network, self.compressed)
        return Figures(FLOAT_BYTES * parameters, stored_bytes(self.after), *errors)


def carried_out(network: Network, steps: dict[str, tuple[Step, ...]]) -> CompressedModel:
    """The network with these steps."""
    return apply_plan(make_plan(Policy(steps), network.graph), network.graph, network.model, network.pictures)


def changed(network: Network, layer: str, *steps: Step) -> Change:
    """One layer with these steps."""
    inputs: dict[str, Tensor] = {}
    dense = network.model.get_submodule(layer)
    with watching({layer: dense}, inputs.__setitem__), torch.no_grad():
        network.model(network.pictures)
    return Change(network, layer, carried_out(network, {layer: steps}).model, inputs[layer])


def output_error(change: Change) -> float:
    """Of the layer's outputs."""
    with torch.no_grad():
        return distance(change.after.eval()(change.inputs), change.dense(change.inputs))


def network_error(network: Network, compressed: nn.Module, beside: nn.Module | None = None) -> float:
    """Of the network's outputs beside those of another, or the dense one's."""
    with torch.no_grad():
        return distance(*(model.eval()(network.pictures) for model in (compressed, beside or network.model)))


def distance(found: Tensor, expected: Tensor) -> float:
    """``||found - expected|| / ||expected||``."""
    return float((found - expected).norm() / expected.norm())


def stored_bytes(module: nn.Module) -> int:
    """Of a file with the module's weights and biases alone."""
    return len(encode(CompressedModel(module, Plan(Policy({}), {}, ())).stored(), {}))


def effective_weight(module: nn.Module, shape: tuple[int, ...]) -> np.ndarray:
    """The weight of the one layer that would compute what the module does.

    A layer of several parts tells it by its answer to inputs that are 1 in one place; convolutions are of stride 1.
    """
    weighted = [layer for _, layer in forms.weighted_modules(module)]
    with torch.no_grad():
        if weighted == [module]:
            return cast(np.ndarray, cast(Tensor, weighted[0].eval().weight).detach().numpy())
        if len(shape) == 2:
            answer = module(torch.eye(shape[1])) - module(torch.zeros(1, shape[1]))
            return cast(np.ndarray, answer.T.numpy())
        _, channels, height, width = shape
        # As large as an unpadded convolution needs; of a padded one's answer the middle is seen.
        spikes = torch.zeros(channels, channels, 2 * height - 1, 2 * width - 1)
        spikes[range(channels), range(channels), height - 1, width - 1] = 1
        answer = module(spikes) - module(torch.zeros_like(spikes))
        top, left = (answer.shape[2] - height) // 2, (answer.shape[3] - width) // 2
        answer = answer[:, :, top : top + height, left : left + width]
        return cast(np.ndarray, answer.transpose(0, 1).flip(2, 3).numpy())
