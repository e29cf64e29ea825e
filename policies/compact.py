"""What a compact file leaves out, since the network and its policy tell it: names, settled statistics, steps told twice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .coding.tensors import DenseTensor, StoredTensor
from .errors import FormatError, PolicyError
from .policy import Policy

STATISTICS = ("running_mean", "running_var")


def numbered(tensors: Mapping[str, StoredTensor], model: nn.Module) -> dict[str, StoredTensor]:
    """The tensors that are to be stored under numbers, without the statistics of the network's settled batch norms."""
    norms = _norms(model)
    told = {name for norm in norms for name in _statistics(norm)} if all(map(_is_settled, norms.values())) else set()
    return {str(place): tensors[name] for place, name in enumerate(name for name in tensors if name not in told)}


def named(tensors: Mapping[str, StoredTensor], names: Sequence[str], model: nn.Module) -> Mapping[str, StoredTensor]:
    """The inverse; tensors that have names stay as they are.

    Parameters
    ----------
    names
        Of all tensors of a network that has the policy's shape, in order.
    model
        That network.

    Raises
    ------
    FormatError
        Where there are too many or too few.
    """
    if list(tensors) != [str(place) for place in range(len(tensors))]:
        return tensors
    norms = _norms(model)
    told = {name for norm in norms for name in _statistics(norm)}
    stored = [name for name in names if name not in told]
    # A network whose statistics were not settled has them all in its file.
    stored = stored if len(stored) == len(tensors) else list(names)
    if len(stored) != len(tensors):
        raise FormatError(f"the file holds {len(tensors)} tensors without names, the policy's network {len(stored)}")
    out = dict(zip(stored, tensors.values()))
    for name, norm in norms.items() if stored != list(names) else ():
        channels = out[f"{name}.weight"].decode().shape
        values = (np.zeros(channels, np.float32), np.full(channels, 1 - norm.eps, np.float32))
        out |= {place: DenseTensor(value) for place, value in zip(_statistics(name), values)}
    return out


def brief_policy(policy: Policy, layers: Sequence[str]) -> dict[str, Any]:
    """The policy as plain data, layers told by their place and equal steps once; ``read_brief`` is the inverse."""
    whole = policy.as_dict()
    # By how they are written: 0 and 0.0 are equal, and policies of another digest.
    steps: dict[str, Any] = {}
    places: list[int] = []
    for name in layers:
        own = whole["layers"].pop(name, [])
        written = json.dumps(own, sort_keys=True)
        steps.setdefault(written, own)
        places.append(list(steps).index(written))
    if whole["layers"]:
        raise PolicyError(f"policy of unknown layers {', '.join(whole['layers'])}; expected {', '.join(layers)}")
    return {**whole, "layers": list(steps.values()), "places": places}


def read_brief(data: Mapping[str, Any], layers: Sequence[str]) -> Policy:
    """The policy that ``brief_policy`` wrote for these layers.

    Raises
    ------
    PolicyError
        Where it is not of this form.
    """
    rest = {key: value for key, value in data.items() if key != "places"}
    try:
        steps = [data["layers"][place] for place in data["places"]]
        own = {name: step for name, step in zip(layers, steps, strict=True) if step}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise PolicyError(f"expected steps and a place among them for each of {len(layers)} layers: {error}") from error
    return Policy.from_dict({**rest, "layers": own})


def _statistics(norm: str) -> tuple[str, ...]:
    return tuple(f"{norm}.{leaf}" if norm else leaf for leaf in STATISTICS)


def _norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """Batch norms that can be settled: those with statistics, a scale and a shift."""
    modules = dict(model.named_modules()).items()
    return {name: m for name, m in modules if isinstance(m, _BatchNorm) and m.track_running_stats and m.affine}


def _is_settled(norm: _BatchNorm) -> bool:
    assert norm.running_mean is not None and norm.running_var is not None
    variance = norm.running_var
    return not bool(norm.running_mean.any()) and torch.equal(variance, torch.full_like(variance, 1 - norm.eps))
