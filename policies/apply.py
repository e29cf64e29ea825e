"""Plan + model -> compressed model, on a copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .coding.tensors import DenseTensor, StoredTensor
from .errors import CandidateError, FormatError
from .forms import INPUT_RANGE, WEIGHTED, plain, set_input_range, stored_weight, weighted_modules
from .graph import ModelGraph, drop_channels, group_scores, input_energies
from .plan import LayerPlan, Plan
from .techniques import Phase, Technique

STATISTICS_BATCH = 64


@dataclass(frozen=True)
class CompressedModel:
    """A network that a plan was carried out on.

    Parameters
    ----------
    model
        The network; weights may carry forms that keep their structure while it trains.
    plan
        What was done.
    """

    model: nn.Module
    plan: Plan

    def plain(self) -> nn.Module:
        """A copy of ordinary layers with the effective weights."""
        return plain(self.model)

    def stored(self) -> dict[str, StoredTensor]:
        """Every tensor of ``plain().state_dict()`` that inference needs, in its stored form."""
        return dict(_stored_tensors(self.model))


def apply_plan(
    plan: Plan,
    graph: ModelGraph,
    model: nn.Module,
    calibration: Tensor,
    energies: Mapping[str, Tensor] | None = None,
) -> CompressedModel:
    """Carry a plan out on a copy of the network.

    Parameters
    ----------
    calibration
        Input of the network (N, C, H, W), for activation ranges and batch-norm statistics.
    energies
        ``input_energies`` of the network, where the caller keeps them; measured on the calibration pictures otherwise.

    Raises
    ------
    CandidateError
        Where a technique fails on the actual weights.
    """
    model = copy.deepcopy(model).eval()
    if plan.channels and energies is None:
        energies = input_energies(model, calibration[:STATISTICS_BATCH], graph.groups)
    _drop(plan, graph, model, calibration[:1], energies)
    for layer in plan.layers:
        _carry_out(layer, model, {}, early=True)
    changed = bool(plan.channels) or any(t.phase < Phase.QUANTIZE for layer in plan.layers for t in layer.techniques)
    wanted = [layer.layer.name for layer in plan.layers if any(t.needs_calibration for t in layer.techniques)]
    inputs = _settle_and_record(model, calibration, wanted, changed)
    for layer in plan.layers:
        _carry_out(layer, model, inputs, early=False)
    return CompressedModel(model.eval(), plan)


def restore(
    plan: Plan,
    graph: ModelGraph,
    model: nn.Module,
    tensors: Mapping[str, StoredTensor],
    calibration: Tensor | None = None,
) -> nn.Module:
    """The compressed network from its stored tensors: shapes by the plan, values from the file.

    Parameters
    ----------
    model
        A network of the dense shape; its weights are of no account.
    calibration
        Input of the network (N, C, H, W); where given, layers that the plan gives 8-bit inputs compute on them.

    Raises
    ------
    FormatError
        Where the tensors do not fit the plan.
    """
    model = copy.deepcopy(model).eval()
    _drop(plan, graph, model, torch.zeros(1, *graph.input_shape), None)
    for layer in plan.layers:
        module = model.get_submodule(layer.layer.name)
        for technique in layer.techniques:
            if technique.phase == Phase.FACTORIZE:
                module = technique.apply(module, None)
        _replace(model, layer.layer.name, module)
    state = {name: torch.from_numpy(np.array(tensor.decode())) for name, tensor in tensors.items()}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise FormatError(f"the stored tensors do not fit the policy's shapes: {error}") from error
    # A layer that stands under two names is stored once.
    filled = model.state_dict()
    known = {filled[name].data_ptr() for name in state if name in filled}
    missing = [n for n in missing if not n.endswith("num_batches_tracked") and filled[n].data_ptr() not in known]
    if missing or unexpected:
        raise FormatError(
            f"the stored tensors do not fit the policy: missing {missing[:5]}, unexpected {unexpected[:5]}"
        )
    return model


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
            with torch.no_grad():
                scale = norm.weight / (variance + norm.eps).sqrt()
                norm.bias.sub_(scale * mean)
                norm.weight.copy_(scale)
                mean.zero_()
                variance.fill_(1 - norm.eps)


def _quantize_inputs(plan: Plan, model: nn.Module, calibration: Tensor) -> None:
    names = []
    for layer in plan.layers:
        if any(technique.needs_calibration for technique in layer.techniques):
            inside = weighted_modules(model.get_submodule(layer.layer.name))
            names += [_joined(layer.layer.name, name) if name else layer.layer.name for name, _ in inside]
    with _recorded(model, names) as inputs, torch.no_grad():
        model(calibration[:STATISTICS_BATCH])
    for name, x in inputs.items():
        set_input_range(model.get_submodule(name), float(x.min()), float(x.max()))


def _drop(
    plan: Plan, graph: ModelGraph, model: nn.Module, example: Tensor, energies: Mapping[str, Tensor] | None
) -> None:
    if not plan.channels:
        return
    groups = {group.root: group for group in graph.groups}
    dropped = {root: step.choose(group_scores(model, groups[root], energies)) for root, step in plan.channels.items()}
    drop_channels(model, example, dropped)
    with torch.no_grad():
        try:
            model(example)
        except Exception as error:
            raise CandidateError(f"the network no longer runs once its channels are dropped: {error}") from error


def _carry_out(plan: LayerPlan, model: nn.Module, inputs: Mapping[str, Tensor], early: bool) -> None:
    """The layer's techniques before quantization, or those from it on."""
    name = plan.layer.name
    module = model.get_submodule(name)
    for technique in plan.techniques:
        if (technique.phase < Phase.QUANTIZE) == early:
            module = _apply_one(technique, name, module, inputs.get(name))
    _replace(model, name, module)


def _apply_one(technique: Technique, name: str, module: nn.Module, inputs: Tensor | None) -> nn.Module:
    try:
        with torch.no_grad():
            return technique.apply(module, inputs)
    except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:
        raise CandidateError(f"layer '{name}': {technique.name} failed: {error}") from error


def _settle_and_record(model: nn.Module, calibration: Tensor, names: list[str], changed: bool) -> dict[str, Tensor]:
    """Inputs of the named layers; where weights changed, batch norms are re-estimated in the same passes."""
    normed = any(isinstance(module, _BatchNorm) for module in model.modules())
    with _recorded(model, names) as inputs:
        if changed and normed:
            reestimate_statistics(model, calibration)
        elif names:
            with torch.no_grad():
                model(calibration[:STATISTICS_BATCH])
    return inputs


@contextmanager
def _recorded(model: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    inputs: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def record(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            # Of several batches the first is the one that is sure to be full.
            inputs.setdefault(name, arguments[0].detach())

        return record

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put the module where the named one stands: under every name, since the forward pass may use any of them."""
    old = model.get_submodule(name)
    if module is old:
        return
    for place in [place for place, found in model.named_modules(remove_duplicate=False) if found is old]:
        parent, _, child = place.rpartition(".")
        setattr(model.get_submodule(parent), child, module)


def _stored_tensors(model: nn.Module) -> Iterator[tuple[str, StoredTensor]]:
    for name, module in model.named_modules():
        # The tensors of a form belong to the layer's weight.
        if ".parametrizations" in f".{name}":
            continue
        own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        if isinstance(module, WEIGHTED):
            yield _joined(name, "weight"), stored_weight(module)
            own = {leaf: value for leaf, value in own.items() if leaf not in ("weight", *INPUT_RANGE)}
        for leaf, value in own.items():
            if leaf != "num_batches_tracked" and leaf not in module._non_persistent_buffers_set:
                yield _joined(name, leaf), DenseTensor(value.detach().contiguous().numpy().copy())


def _joined(name: str, leaf: str) -> str:
    return f"{name}.{leaf}" if name else leaf
