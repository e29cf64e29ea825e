"""Ways of learning from a teacher by name. To add one: its file, and its line here."""

from __future__ import annotations

import copy
import difflib
from typing import Literal

import torch
from torch import Tensor, nn

from ...policies.errors import ConfigError, ModelError
from ...policies.own_network import into_evaluation
from .distillation import SoftTargets
from .ensemble import members
from .hints import Hint, Hints
from .inner import middle_layer, output_of
from .logits import LogitRegression
from .teaching import Teaching

Method = Literal["logits", "soft", "hints"]


def make_teaching(method: Method, temperature: float, teacher_weight: float, hint: Hint | None = None) -> Teaching:
    """The way of a name in a configuration; ``hints`` alone has a hint."""
    soft = SoftTargets(temperature, teacher_weight)
    if method == "hints":
        assert hint is not None, "made by make_hint"
        return Hints(hint, soft)
    return LogitRegression(teacher_weight) if method == "logits" else soft


def make_hint(
    student: str | None, guide: str | None, share: float, networks: tuple[nn.Module, nn.Module], x: Tensor, where: str
) -> Hint:
    """The hint between two networks, student and teacher; a layer that is not named is the middle one.

    Parameters
    ----------
    x
        (1, C, H, W).
    where
        The section of the configuration, for messages.

    Raises
    ------
    ConfigError
        Where a layer is unknown, or what the two compute cannot be compared.
    """
    learner, teacher = networks[0], members(networks[1])[0]
    names, outputs = [], []
    for key, name, network in (("student", student, learner), ("guide", guide, teacher)):
        known = name or middle_layer(network, x)
        names.append(known)
        outputs.append(_output(network, known, x, f"{where}.{key}"))
    if outputs[0].ndim != outputs[1].ndim:
        came = " and ".join(f"{name} gives {tuple(output.shape)}" for name, output in zip(names, outputs))
        raise ConfigError(f"{where}: expected two layers of maps or two of vectors; {came}; name others")
    return Hint(names[0], names[1], share)


def _output(network: nn.Module, layer: str, x: Tensor, where: str) -> Tensor:
    known = [name for name, _ in network.named_modules() if name]
    if layer not in known:
        near = difflib.get_close_matches(layer, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known[:8])}, ..."
        raise ConfigError(f"{where}: the network has no layer '{layer}'; {hint}")
    try:
        with torch.no_grad():
            output = output_of(into_evaluation(copy.deepcopy(network)), layer, x)
    except ModelError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not isinstance(output, Tensor) or output.ndim not in (2, 4):
        came = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ConfigError(f"{where}: expected maps (N, C, H, W) or vectors (N, C) of '{layer}', came {came}")
    return output
