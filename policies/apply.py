"""Plan + model -> compressed model, on a copy."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .batch_norms import STATISTICS_BATCH, settle_and_record
from .branches import stand_ins
from .channel_labels import Labels
from .coding.tensors import StoredTensor
from .collapsing import collapse
from .compact import named
from .copying import put_in_place
from .dead import drop_dead_channels, drop_some
from .errors import CandidateError, FormatError
from .forms import (
    INPUT_RANGE,
    WEIGHTED,
    drop_input_range,
    form_of,
    plain,
    set_binary_input,
    set_input_range,
    significant,
    stored_weight,
    weighted_modules,
)
from .graph import ModelGraph, drop_channels
from .importance import Choice, Importance, fold_channels
from .own_network import into_evaluation
from .plan import LayerPlan, Plan
from .recording import record_gradients
from .silencing import is_near
from .state import is_extra, to_dense
from .techniques import Calibration, Phase, Technique
from .techniques.base import Resumable, outline
from .techniques.hessians import SecondOrder
from .techniques.input_ranges import RangeMethod, input_range, what_is_needed
from .ties import names_told, ties_touched, untie
from .wiring import check_wiring

# Bits a weight below which batch norms are estimated anew. Without training, ResNet-20 on CIFAR-10 errs on 10.8 % of 1000
# pictures; with 3 bits in its blocks on 23.4 %, on 12.8 % with new estimates from 256 pictures; with 2 bits on 87.2 and
# 19.2 %; with a binary last stage on 82.6 and 18.0 %; with 4 bits everywhere on 12.4 and 12.5 %.
COARSE_BITS = 4


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

    def stored_once(self) -> dict[str, StoredTensor]:
        """The same; a tensor that layers still share stands under its first name alone."""
        told = names_told(self.model, self.plan.ties)
        return {name: tensor for name, tensor in self.stored().items() if name not in told}


def apply_plan(
    plan: Plan,
    graph: ModelGraph,
    model: nn.Module,
    calibration: Tensor,
    energies: Mapping[str, Tensor] | None = None,
    importance: Importance | None = None,
) -> CompressedModel:
    """Carry a plan out on a copy of the network.

    Parameters
    ----------
    calibration
        Input of the network (N, C, H, W), for batch-norm statistics, and for activation ranges and Hessians of layers.
    energies
        ``input_energies`` of the network, where the caller keeps them; measured on the calibration pictures otherwise.
    importance
        What decides which channels go, where that is not to be the network's own.

    Raises
    ------
    CandidateError
        Where a technique fails on the actual weights.
    """
    model = into_evaluation(copy.deepcopy(model))
    untie(model, ties_touched(plan.ties, [layer.layer.name for layer in plan.layers]))
    importance = importance or Importance(model, graph.groups, calibration[:STATISTICS_BATCH], energies)
    groups = {group.root: group for group in graph.groups}
    choices = {
        root: importance.choose(groups[root], step.chosen_by, step.keep(groups[root].channels))
        for root, step in plan.channels.items()
    }
    _drop(plan, graph, model, calibration[:1], choices, graph.moves)
    _take_turn(plan, model, calibration, bool(plan.channels or plan.dropped or plan.collapsed), early=True)
    drop_dead(plan, graph, model, calibration[:1])
    _quantize(plan, model, calibration, _is_reshaped(plan))
    return CompressedModel(into_evaluation(model), plan)


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
    model = _shaped(plan, graph, model)
    tensors = named(tensors, list(_stored_names(model)), model)
    state = {name: torch.from_numpy(np.array(tensor.decode())) for name, tensor in tensors.items()}
    counts = {root: len(state[f"{root}.weight"]) for root in plan.dead if f"{root}.weight" in state}
    drop_some(model, [group for group in graph.groups if group.root in plan.dead], counts)
    untie(model, [tie for tie in plan.ties if any(name in state for name in tie[1:])])
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise FormatError(f"the stored tensors do not fit the policy's shapes: {error}") from error
    # A layer that stands under two names is stored once.
    filled = model.state_dict()
    known = {filled[name].data_ptr() for name in state if name in filled}
    missing = [n for n in missing if not (n.endswith("num_batches_tracked") or is_extra(n))]
    missing = [n for n in missing if filled[n].data_ptr() not in known]
    if missing or unexpected:
        raise FormatError(
            f"the stored tensors do not fit the policy: missing {missing[:5]}, unexpected {unexpected[:5]}"
        )
    # Networks may keep what they have computed from their tensors for evaluation, until they train again.
    model.train()
    model.eval()
    if calibration is not None:
        _set_ranges(plan, model, calibration, changed=False)
    return model


def under_names(
    plan: Plan, graph: ModelGraph, model: nn.Module, tensors: Mapping[str, StoredTensor]
) -> Mapping[str, StoredTensor]:
    """The stored tensors of a plan's network under their names, which a compact file leaves out; see ``restore``."""
    shaped = _shaped(plan, graph, model)
    return named(tensors, list(_stored_names(shaped)), shaped)


def _shaped(plan: Plan, graph: ModelGraph, model: nn.Module) -> nn.Module:
    """A copy of the network with the layers that the plan leaves, dead channels kept; their values are of no account."""
    model = into_evaluation(copy.deepcopy(model))
    channels = {root: graph.layers[root].weight_shape[0] for root in plan.channels}
    # Which of them is of no account, since all values come from the file.
    choices = {root: Choice(tuple(range(n - plan.channels[root].keep(n)))) for root, n in channels.items()}
    # Nor where the channels go: they are those of the network that was written.
    _drop(plan, graph, model, torch.zeros(1, *graph.input_shape), choices, moves=None)
    for layer in plan.layers:
        module = model.get_submodule(layer.layer.name)
        for technique in layer.techniques:
            if technique.phase == Phase.FACTORIZE:
                module = outline(technique, module)
            elif isinstance(technique, Resumable) and technique.binary_inputs:
                for _, weighted in weighted_modules(module):
                    set_binary_input(weighted)
        put_in_place(model, layer.layer.name, module)
    return model


def drop_dead(plan: Plan, graph: ModelGraph, model: nn.Module, example: Tensor) -> None:
    """Drop the channels that pruning has left without a connection where the plan says so, in place.

    Raises
    ------
    CandidateError
        Where the network is another without them.
    """
    groups = [group for group in graph.groups if group.root in plan.dead]
    if not groups:
        return
    with torch.no_grad():
        expected = model(example.clone())
        drop_dead_channels(model, groups, example)
        outputs = model(example.clone())
    if graph.moves is not None and not is_near(outputs, expected):
        raise CandidateError(
            "channels without a connection cannot be dropped: the network moves channels by their numbers, and the others"
            " would take their places"
        )


def quantize_layers(plan: Plan, model: nn.Module, calibration: Tensor) -> None:
    """Carry out the plan's techniques from quantization on, in place, on a network that holds the earlier ones."""
    _quantize(plan, into_evaluation(model), calibration, False)


def round_vectors(model: nn.Module, bits: int = 8) -> None:
    """Give biases and the batch norms' factors so many significant bits: with the 8 of bfloat16 they take a third of the bytes.

    The relative error is 2^-(bits + 1) at most. The tensors are new ones, since the network may share its old ones with
    another.
    """
    rounded: dict[nn.Parameter, nn.Parameter] = {}
    for place, module in model.named_modules():
        # A codebook is a vector too; its precision is what was asked for.
        if ".parametrizations" in f".{place}":
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 1:
                value = significant(parameter.detach(), bits)
                # What layers share stays shared.
                setattr(module, name, rounded.setdefault(parameter, nn.Parameter(value, parameter.requires_grad)))


def settle_and_quantize(plan: Plan, model: nn.Module, calibration: Tensor) -> None:
    """Estimate batch norms anew where the plan changes what they see, and set the ranges of its 8-bit inputs, in place."""
    for _, module in weighted_modules(model):
        # Ranges that were found elsewhere must not clip what the batch norms see.
        drop_input_range(module)
    _set_ranges(plan, model, calibration, _is_reshaped(plan) or is_coarse(plan))


def _quantize(plan: Plan, model: nn.Module, calibration: Tensor, changed: bool) -> None:
    """The techniques from quantization on; what the network sees behind coarse weights is found anew."""
    _take_turn(plan, model, calibration, changed, early=False)
    if is_coarse(plan):
        settle_and_quantize(plan, model, calibration)


def _set_ranges(plan: Plan, model: nn.Module, calibration: Tensor, changed: bool) -> None:
    methods = _eight_bit(plan, model)
    keep = {name: what_is_needed(method) for name, method in methods.items()}
    for name, calls in settle_and_record(model, calibration, list(methods), changed, keep=keep).items():
        set_input_range(model.get_submodule(name), *input_range(calls, methods[name]))


def is_coarse(plan: Plan) -> bool:
    """Whether quantization leaves some layer fewer than ``COARSE_BITS`` a weight."""
    late = [(p.layer, t) for p in plan.layers for t in p.techniques if t.phase >= Phase.QUANTIZE]
    return any(technique.cost(layer).weight_bits < COARSE_BITS * layer.weights for layer, technique in late)


def _is_reshaped(plan: Plan) -> bool:
    """Whether batch norms see other values by what the plan does before quantization."""
    early = any(t.phase < Phase.QUANTIZE for layer in plan.layers for t in layer.techniques)
    return early or bool(plan.channels or plan.dropped or plan.collapsed)


def _eight_bit(plan: Plan, model: nn.Module) -> dict[str, RangeMethod]:
    """How the range is found of each layer that the plan gives 8-bit inputs, by its name."""
    methods: dict[str, RangeMethod] = {}
    for layer in plan.layers:
        for technique in layer.techniques:
            if getattr(technique, "activations", "") == "int8":
                inside = weighted_modules(model.get_submodule(layer.layer.name))
                names = [_joined(layer.layer.name, name) if name else layer.layer.name for name, _ in inside]
                methods |= dict.fromkeys(names, getattr(technique, "calibration", "minmax"))
    return methods


def _drop(
    plan: Plan,
    graph: ModelGraph,
    model: nn.Module,
    example: Tensor,
    choices: Mapping[str, Choice],
    moves: Labels | None,
) -> None:
    """Drop channels, branches and layers, in place; with labels, check that the channels that are left go where they went."""
    if not (plan.channels or plan.dropped or plan.collapsed):
        return
    for group in graph.groups:
        if group.root in choices and choices[group.root].into:
            for slot in group.slots:
                if slot.axis == "in":
                    fold_channels(model.get_submodule(slot.module), slot, choices[group.root].into, group.channels)
    lost = drop_channels(model, graph.groups, {root: choice.dropped for root, choice in choices.items()}, example)
    if moves is not None and lost:
        check_wiring(moves, model, lost, example)
    for branch in plan.dropped:
        for name, module in stand_ins(branch).items():
            put_in_place(model, name, module)
    collapse(model, plan.collapsed)
    with torch.no_grad():
        try:
            model(example)
        except Exception as error:
            raise CandidateError(f"the network no longer runs without the channels or branches: {error}") from error


def _take_turn(plan: Plan, model: nn.Module, calibration: Tensor, changed: bool, early: bool) -> None:
    """Every layer's techniques before quantization, or those from it on, with what they ask for."""
    names: list[str] = []
    many: list[str] = []
    sloped: list[str] = []
    for layer in plan.layers:
        turn = [t for t in layer.techniques if (t.phase < Phase.QUANTIZE) == early]
        asking = [t for t in turn if t.needs_calibration or t.needs_gradients]
        names += [layer.layer.name] if asking else []
        many += [layer.layer.name] if any(isinstance(t, SecondOrder) and t.second_order for t in asking) else []
        sloped += [layer.layer.name] if any(t.needs_gradients for t in asking) else []
    # Statistics are re-estimated once all that moves them is done; before that, only where inputs depend on them.
    inputs = settle_and_record(model, calibration, names, changed, many) if names or not early else {}
    seen = {name: Calibration.from_calls(calls) for name, calls in inputs.items()}
    if sloped:
        # With gradients the inputs are those of the same pass: batch norms are at rest, each row is one picture's.
        seen |= record_gradients(model, {name: model.get_submodule(name) for name in sloped}, calibration)
    for layer in plan.layers:
        _carry_out(layer, model, seen, early)


def _carry_out(plan: LayerPlan, model: nn.Module, seen: Mapping[str, Calibration], early: bool) -> None:
    name = plan.layer.name
    module = model.get_submodule(name)
    for technique in plan.techniques:
        if (technique.phase < Phase.QUANTIZE) == early:
            module = _apply_one(technique, name, module, seen.get(name))
    put_in_place(model, name, module)


def _apply_one(technique: Technique, name: str, module: nn.Module, seen: Calibration | None) -> nn.Module:
    try:
        with torch.no_grad():
            return technique.apply(module, seen)
    except (RuntimeError, ValueError, np.linalg.LinAlgError) as error:
        raise CandidateError(f"layer '{name}': {technique.name} failed: {error}") from error


def _stored_tensors(model: nn.Module) -> Iterator[tuple[str, StoredTensor]]:
    for name, module in model.named_modules():
        for leaf in _stored_leaves(name, module):
            if leaf == "weight" and isinstance(module, WEIGHTED):
                yield _joined(name, leaf), stored_weight(module)
            else:
                yield _joined(name, leaf), to_dense(getattr(module, leaf))


def _stored_names(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        yield from (_joined(name, leaf) for leaf in _stored_leaves(name, module))


def _stored_leaves(name: str, module: nn.Module) -> list[str]:
    """A module's own tensors that inference needs; a layer's weight comes first."""
    # The tensors of a form belong to the layer's weight.
    if ".parametrizations" in f".{name}":
        return []
    own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    first = ["weight"] if isinstance(module, WEIGHTED) and ("weight" in own or form_of(module) is not None) else []
    left_out = {*first, "num_batches_tracked", *module._non_persistent_buffers_set, *(INPUT_RANGE if first else ())}
    return first + [leaf for leaf in own if leaf not in left_out]


def _joined(name: str, leaf: str) -> str:
    return f"{name}.{leaf}" if name else leaf
