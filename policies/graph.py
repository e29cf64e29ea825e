"""What a network is made of: its layers with their shapes, and which channels hang together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from .activations import Activation, find_activations
from .branches import Branch, find_branches
from .channel_labels import Labels
from .coupling import ChannelGroup, find_groups
from .coupling import drop_channels as drop_channels
from .errors import ModelError
from .forms import WEIGHTED, weighted_modules
from .labelled_groups import labelled_groups
from .labels import follow_channels
from .own_forward import calls_of, has_own_forward, why_left_alone
from .policy import Scalar
from .reading import attributes_read
from .slicing import Slot, can_cut
from .techniques.base import LayerInfo
from .ties import tied_names
from .trials import Trial
from .unreached import tensors_read
from .watching import feature_means


@dataclass(frozen=True)
class ModelGraph:
    """Layers in the order of the forward pass, and the groups of coupled channels.

    Parameters
    ----------
    layers
        Convolutions and linear layers that the forward pass reached.
    groups
        Groups of coupled channels; empty where the network's coupling cannot be found.
    input_shape
        (C, H, W) of one picture.
    coupling_error
        Why there are no groups, or ``None``.
    branches
        Residual branches that can be dropped whole; empty where the network cannot be followed.
    shape
        The shape that a policy gave the network; empty where it came as it is.
    activations
        ReLUs that stand right behind a layer.
    left_alone
        Convolutions and linear layers that no policy may name -> why.
    ties
        The names of each tensor that several layers share.
    moves
        The labels of its channels where they are moved by their numbers; ``check_wiring`` compares a smaller network's with
        them.
    """

    layers: Mapping[str, LayerInfo]
    groups: tuple[ChannelGroup, ...]
    input_shape: tuple[int, ...]
    coupling_error: str | None = None
    branches: tuple[Branch, ...] = ()
    shape: Mapping[str, Scalar] = field(default_factory=dict)
    activations: tuple[Activation, ...] = ()
    left_alone: Mapping[str, str] = field(default_factory=dict)
    ties: tuple[tuple[str, ...], ...] = ()
    moves: Labels | None = field(default=None, compare=False, repr=False)

    @classmethod
    def trace(cls, model: nn.Module, example: Tensor, of_shape: Mapping[str, Scalar] | None = None) -> ModelGraph:
        """Run the network once on an example (1, C, H, W) and look at what happens.

        Parameters
        ----------
        of_shape
            The policy's shape that the network was built from, where it was.

        Raises
        ------
        ModelError
            Where the forward pass fails, or reaches no convolution and no linear layer.
        """
        layers, left_alone = _trace_layers(model, example)
        if not layers:
            reasons = "".join(f"\n  '{name}': {reason}" for name, reason in left_alone.items())
            raise ModelError(
                "the network has no nn.Conv2d and no nn.Linear that its forward pass calls as such; nothing to"
                f" compress{reasons}"
            )
        shape, branches, given = tuple(example.shape[1:]), find_branches(model, example), dict(of_shape or {})
        relus = find_activations(model, example, layers)
        try:
            groups, labels = _groups(model, example, layers)
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return cls(layers, (), shape, reason, branches, given, relus, left_alone, tied_names(model))
        groups = _around(groups, left_alone)
        moves = labels if labels.moved else None
        placed = _with_positions(layers, groups)
        return cls(placed, groups, shape, None, branches, given, relus, left_alone, tied_names(model), moves)

    def group_of(self, layer: str) -> ChannelGroup | None:
        """The group that the layer's outputs belong to."""
        return next((group for group in self.groups if layer in group.producers), None)

    def activation_of(self, layer: str) -> Activation | None:
        """The ReLU right behind the layer."""
        return next((found for found in self.activations if found.layer == layer), None)

    def branch_of(self, layer: str) -> Branch | None:
        """The smallest branch that the layer lies in."""
        return min((b for b in self.branches if layer in b.layers), key=lambda b: len(b.layers), default=None)


def group_scores(model: nn.Module, group: ChannelGroup, energies: Mapping[str, Tensor] | None = None) -> Tensor:
    """Importance (channels,) of each channel: how much the layers that read it would lose.

    A reader loses the channel's squared weights times the mean square of what comes in, the diagonal of the layer-wise
    second-order error (OBD, LeCun 1990, with the layer Hessian ``X^T X`` of 2208.11580). Each reader's share is scaled to
    mean 1 before the sum, so that large layers do not drown small ones. Without energies the squared weights of readers
    and makers are summed alone (the group norm of 2301.12900); they say little of a channel that a batch norm rescales.

    Parameters
    ----------
    energies
        Layer -> mean square of each input feature (in,), as ``input_energies`` measures them.
    """
    modules = dict(model.named_modules())
    total = torch.zeros(group.channels)
    for member in group.members:
        weight = cast(Tensor, modules[member.layer].weight).detach()
        reads = member.axis == "in"
        if weight.shape[1 if reads else 0] != group.channels * member.factor:
            continue
        features = (weight.transpose(0, 1) if reads else weight).flatten(1).square().sum(1)
        if energies is not None and group.readers:
            if not reads:
                continue
            features = features * energies[member.layer]
        share = features.reshape(group.channels, -1).sum(1)
        total += share / share.mean().clamp_min(1e-12)
    return total


def input_energies(model: nn.Module, calibration: Tensor, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    """Mean square (in,) of each input feature of the groups' readers, over calibration pictures (N, C, H, W)."""
    readers = dict.fromkeys(name for group in groups for name in group.readers)
    return feature_means(model, calibration, readers, torch.square)


def _trace_layers(model: nn.Module, example: Tensor) -> tuple[dict[str, LayerInfo], dict[str, str]]:
    """The layers that the forward pass calls, and why some of its convolutions and linear layers are left alone."""
    layers: dict[str, LayerInfo] = {}
    hooks = []
    for name, module in weighted_modules(model):

        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            known = layers.get(name)
            if known is None:
                layers[name] = _layer_info(name, module, inputs[0], output)
                return
            outputs = (*known.later_outputs, tuple(output.shape[1:]))
            layers[name] = replace(known, calls=known.calls + 1, later_outputs=outputs)

        hooks.append(module.register_forward_hook(record))
    try:
        model.eval()
        with torch.no_grad():
            model(example)
    except Exception as error:
        shape = tuple(example.shape)
        raise ModelError(
            f"the network fails on an input of shape {shape}: {error}; check data and model fit"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    left_alone = _left_alone(model, example, layers)
    read = attributes_read(model, example, layers)
    infos = {name: replace(layer, read=read.get(name, ())) for name, layer in layers.items() if name not in left_alone}
    return infos, left_alone


def _left_alone(model: nn.Module, example: Tensor, called: Collection[str]) -> dict[str, str]:
    modules = dict(weighted_modules(model))
    own = {name: modules[name] for name in called if has_own_forward(modules[name])}
    calls = calls_of(model, own, example) if own else {}
    reasons = {name: reason for name in own if (reason := why_left_alone(own[name], calls[name])) is not None}
    uncalled = {name: module for name, module in modules.items() if name not in called}
    read = tensors_read(model, example) if uncalled else set()
    passed_by = [name for name, module in uncalled.items() if any(id(p) in read for p in module.parameters())]
    return reasons | dict.fromkeys(passed_by, "the forward pass uses its weight without calling it")


def _around(groups: Sequence[ChannelGroup], left_alone: Mapping[str, str]) -> tuple[ChannelGroup, ...]:
    """The groups; refused are those that a layer belongs to which is left alone."""

    def refusal(group: ChannelGroup) -> str | None:
        if not left_alone or group.refusal is not None:
            return group.refusal
        if not group.slots:
            return "it is coupled in a way that cannot be followed beside layers with a forward pass of their own"
        name = next((slot.module for slot in group.slots if slot.module in left_alone), None)
        return None if name is None else f"it goes through '{name}', which is left as it is: {left_alone[name]}"

    return tuple(replace(group, refusal=refusal(group)) for group in groups)


def _layer_info(name: str, module: nn.Module, x: Tensor, y: Tensor) -> LayerInfo:
    shape, before, after = tuple(cast(Tensor, module.weight).shape), tuple(x.shape[1:]), tuple(y.shape[1:])
    if not isinstance(module, nn.Conv2d):
        return LayerInfo(name, "linear", shape, before, after, module.bias is not None)
    pair = tuple[int, int]
    return LayerInfo(
        name,
        "conv2d",
        shape,
        before,
        after,
        module.bias is not None,
        cast(pair, module.stride),
        module.padding if isinstance(module.padding, str) else cast(pair, module.padding),
        cast(pair, module.dilation),
        module.groups,
    )


def _groups(
    model: nn.Module, example: Tensor, layers: Mapping[str, LayerInfo]
) -> tuple[tuple[ChannelGroup, ...], Labels]:
    """The groups as labels tell them; where the network does not run without some of these, autograd's record may know more.

    It alone tells of parameters that are no layer's own, as a transformer's positions; it is followed within a bound, see
    ``coupling.MAX_FOLLOWED``.
    """
    labels = follow_channels(model, example)
    trial = Trial(model, example, labels)
    labelled = tuple(labelled_groups(model, labels, layers))
    followed = trial.refuse(labelled)
    if followed == labelled or not _has_loose_parameters(model):
        return followed, labels
    try:
        recorded = trial.refuse(tuple(find_groups(model, example, layers)))
    # torch_pruning raises all kinds of errors on what it cannot follow.
    except Exception:
        return followed, labels
    best = max((followed, recorded), key=lambda groups: sum(group.refusal is None for group in groups))
    return best, labels


def _with_positions(layers: Mapping[str, LayerInfo], groups: Sequence[ChannelGroup]) -> dict[str, LayerInfo]:
    """The layers; of linear ones that read a flattened map it is told how many features each of its channels has."""
    read: dict[str, list[tuple[int, Slot]]] = {}
    for group in groups:
        for slot in group.slots:
            if slot.axis == "in" and slot.module in layers and layers[slot.module].kind == "linear":
                read.setdefault(slot.module, []).append((len(slot.index) // group.channels, slot))
    found = dict(layers)
    for name, slots in read.items():
        sizes = {size for size, _ in slots}
        places = [place for _, slot in slots for place in slot.index]
        whole = len(layers[name].input_shape) == 1 and len(places) == layers[name].weight_shape[1]
        if whole and len(sizes) == 1 and all(_in_a_row(slot.index, size) for size, slot in slots):
            found[name] = replace(layers[name], positions=sizes.pop())
    return found


def _in_a_row(index: Sequence[int], size: int) -> bool:
    """Whether the features of each channel, ``size`` of them, are neighbours."""
    starts = index[::size]
    return all(start % size == 0 for start in starts) and list(index) == [s + i for s in starts for i in range(size)]


def _has_loose_parameters(model: nn.Module) -> bool:
    holders = [module for module in model.modules() if any(True for _ in module.parameters(recurse=False))]
    return not all(isinstance(module, WEIGHTED) or can_cut(module) for module in holders)
