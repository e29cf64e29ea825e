"""Scales of quantized layers moved into batch norms, where they cost nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from .forms import UniformWeight, drop_form, form_of, is_input_quantized, set_form, significant, weighted_modules
from .tracing import follow

_RELUS = (functional.relu, torch.relu)


@dataclass(frozen=True)
class Norms:
    """Batch norms that can take a layer's scales, by the layer's name.

    Parameters
    ----------
    after
        Those that normalise its outputs and nothing else.
    before
        Of depthwise layers: those that make its inputs and nothing else, with at most a ReLU between them.
    """

    after: Mapping[str, str]
    before: Mapping[str, str]


def norms_around(model: nn.Module) -> Norms:
    """Where the scales of a network's layers can go; nowhere where it cannot be followed."""
    traced = follow(model)
    modules = dict(model.named_modules())
    nodes = [] if traced is None else list(traced.graph.nodes)
    times = Counter(str(node.target) for node in nodes if node.op == "call_module")
    after: dict[str, str] = {}
    before: dict[str, str] = {}
    for node in nodes:
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, nn.Conv2d | nn.Linear) or times[str(node.target)] > 1:
            continue
        following = next(iter(node.users)) if len(node.users) == 1 else node
        if _is_norm(following, modules, times):
            after[str(node.target)] = str(following.target)
        elif _is_depthwise(module) and (norm := _norm_before(node, modules, times)) is not None:
            before[str(node.target)] = norm
    return Norms(after, before)


def fold_scales(model: nn.Module, norms: Norms) -> None:
    """Move the scales of uniformly quantized layers into batch norms, in place; the weights are then whole numbers.

    The network computes the same up to rounding: a batch norm undoes a factor of its inputs, and a ReLU lets a positive
    factor pass (the equalization of 1906.04721, eq. 4-6). Layers with 8-bit inputs are left as they are: their kernels want
    the scales. Only for batch norms that are settled (``batch_norms.settle_statistics``). New tensors take the old ones' places,
    since the network may share those with another.
    """
    for name, norm_name in (*norms.after.items(), *norms.before.items()):
        layer = model.get_submodule(name)
        form = form_of(layer) if isinstance(layer, nn.Conv2d | nn.Linear) else None
        foldable = isinstance(form, UniformWeight) and layer.bias is None and not is_input_quantized(layer)
        norm = model.get_submodule(norm_name)
        if not foldable or not isinstance(norm, _BatchNorm) or not norm.affine:
            continue
        form = cast(UniformWeight, form)
        _multiply(norm, "weight", form.scale)
        if name in norms.before:
            _multiply(norm, "bias", form.scale)
        codes = form.codes(cast(Any, layer.parametrizations).weight.original).detach()
        drop_form(layer)
        layer.weight = nn.Parameter(codes, requires_grad=False)
        set_form(layer, UniformWeight(torch.ones(1), form.bits, form.mask))


def round_scales(model: nn.Module, bits: int) -> None:
    """Give the scales of uniformly quantized layers so many significant bits, in place.

    Any scale near the best one serves a grid as well, if training comes after.
    """
    for _, layer in weighted_modules(model):
        form = form_of(layer)
        if isinstance(form, UniformWeight) and not is_input_quantized(layer):
            form.scale = significant(form.scale, bits)


def _multiply(norm: nn.Module, name: str, factors: Tensor) -> None:
    setattr(norm, name, nn.Parameter(getattr(norm, name).detach() * factors, requires_grad=False))


def _is_norm(node: fx.Node, modules: Mapping[str, nn.Module], times: Mapping[str, int]) -> bool:
    called = node.op == "call_module" and times[str(node.target)] == 1
    return called and isinstance(modules[str(node.target)], _BatchNorm)


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels


def _norm_before(node: fx.Node, modules: Mapping[str, nn.Module], times: Mapping[str, int]) -> str | None:
    source = cast(fx.Node, node.args[0])
    is_relu = source.op == "call_module" and isinstance(modules[str(source.target)], nn.ReLU)
    if len(source.users) == 1 and (is_relu or (source.op == "call_function" and source.target in _RELUS)):
        source = cast(fx.Node, source.args[0])
    return str(source.target) if len(source.users) == 1 and _is_norm(source, modules, times) else None
