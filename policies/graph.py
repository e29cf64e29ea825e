"""What a network is made of: its layers with their shapes, and which channels hang together."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
import torch_pruning
from torch import Tensor, nn

from .errors import CandidateError, ModelError
from .forms import weighted_modules
from .techniques.base import LayerInfo


@dataclass(frozen=True)
class Coupled:
    """A layer that loses channels when its group does.

    Parameters
    ----------
    layer
        Name of a convolution or linear layer.
    axis
        Whether output or input channels are lost.
    factor
        Channels lost here for each one of the group (more than 1 behind a flatten).
    """

    layer: str
    axis: Literal["out", "in"]
    factor: int


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be dropped together: residual sums, batch norms, the layers that read them.

    Parameters
    ----------
    root
        The group's first layer in the order of the forward pass; it names the group.
    channels
        Number of channels.
    members
        Every convolution and linear layer that the group touches.
    refusal
        Why no channel may be dropped, or ``None``.
    """

    root: str
    channels: int
    members: tuple[Coupled, ...]
    refusal: str | None = None

    @property
    def producers(self) -> tuple[str, ...]:
        """Layers whose outputs the group is."""
        return tuple(member.layer for member in self.members if member.axis == "out")

    @property
    def readers(self) -> tuple[str, ...]:
        """Layers whose inputs the group is."""
        return tuple(member.layer for member in self.members if member.axis == "in")


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
    """

    layers: Mapping[str, LayerInfo]
    groups: tuple[ChannelGroup, ...]
    input_shape: tuple[int, ...]
    coupling_error: str | None = None

    @classmethod
    def trace(cls, model: nn.Module, example: Tensor) -> ModelGraph:
        """Run the network once on an example (1, C, H, W) and look at what happens.

        Raises
        ------
        ModelError
            Where the forward pass fails, or reaches no convolution and no linear layer.
        """
        layers = _trace_layers(model, example)
        if not layers:
            raise ModelError(
                "the network has no nn.Conv2d and no nn.Linear that its forward pass reaches; nothing to compress"
            )
        shape = tuple(example.shape[1:])
        try:
            return cls(layers, _tried(model, example, tuple(_find_groups(model, example, layers))), shape)
        except Exception as error:
            return cls(layers, (), shape, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")

    def group_of(self, layer: str) -> ChannelGroup | None:
        """The group that the layer's outputs belong to."""
        return next((group for group in self.groups if layer in group.producers), None)


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
    energies: dict[str, Tensor] = {}
    handles = []
    for name in {name for group in groups for name in group.readers}:

        def record(module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
            features = inputs[0].transpose(0, 1) if isinstance(module, nn.Conv2d) else inputs[0].transpose(0, -1)
            energies[name] = features.flatten(1).square().mean(1)

        handles.append(model.get_submodule(name).register_forward_pre_hook(record))
    try:
        with torch.no_grad():
            model(calibration)
    finally:
        for handle in handles:
            handle.remove()
    return energies


def drop_channels(model: nn.Module, example: Tensor, dropped: Mapping[str, Sequence[int]]) -> None:
    """Drop channels of the named roots, with everything coupled to them, in place.

    Raises
    ------
    CandidateError
        Where a group would lose its last channel or cannot be pruned.
    """
    modules = dict(model.named_modules())
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    graph = _dependency_graph(model, example)
    for root, indices in dropped.items():
        module = modules[root]
        group = graph.get_pruning_group(module, _out_pruner(module), idxs=sorted(indices))
        if not graph.check_pruning_group(group):
            raise CandidateError(f"layer '{root}': dropping {len(indices)} channels would empty a layer; drop fewer")
        group.prune()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains[name])
        parameter.grad = None


def _dependency_graph(model: nn.Module, example: Tensor) -> torch_pruning.DependencyGraph:
    with warnings.catch_warnings(), torch.enable_grad(), _all_trainable(model):
        warnings.simplefilter("ignore")
        return torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example, verbose=False)


@contextmanager
def _all_trainable(model: nn.Module) -> Iterator[None]:
    """Coupling is read from what autograd records, and of frozen parameters it records nothing."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def _out_pruner(module: nn.Module) -> Any:
    if isinstance(module, nn.Linear):
        return torch_pruning.prune_linear_out_channels
    if isinstance(module, nn.Conv2d) and module.groups > 1:
        return torch_pruning.prune_depthwise_conv_out_channels
    return torch_pruning.prune_conv_out_channels


def _trace_layers(model: nn.Module, example: Tensor) -> dict[str, LayerInfo]:
    layers: dict[str, LayerInfo] = {}
    hooks = []
    for name, module in weighted_modules(model):

        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            layers.setdefault(name, _layer_info(name, module, inputs[0], output))

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
    return layers


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


def _find_groups(model: nn.Module, example: Tensor, layers: Mapping[str, LayerInfo]) -> Iterator[ChannelGroup]:
    order = {name: position for position, name in enumerate(layers)}
    graph = _dependency_graph(model, example)
    names = {module: name for name, module in model.named_modules()}
    with torch.no_grad():
        outputs = model(example)
    classes = int(outputs.shape[-1])
    last = max(
        (name for name, info in layers.items() if info.weight_shape[0] == classes), key=order.__getitem__, default=""
    )
    roots = [nn.Conv2d, nn.Linear]
    found = []
    for group in graph.get_all_groups(ignored_layers=[], root_module_types=roots):
        members = _members(group, names, layers)
        producers = [member.layer for member in members if member.axis == "out"]
        if not producers:
            continue
        root = min(producers, key=lambda name: order[name])
        channels = layers[root].weight_shape[0]
        found.append(ChannelGroup(root, channels, members, _refusal(members, last, layers)))
    yield from sorted(found, key=lambda group: order[group.root])


def _members(group: Any, names: Mapping[nn.Module, str], layers: Mapping[str, LayerInfo]) -> tuple[Coupled, ...]:
    channels = len(group[0].idxs)
    members: dict[tuple[str, str], Coupled] = {}
    for item in group:
        name = names.get(item.dep.target.module, "")
        if name not in layers:
            continue
        depthwise = layers[name].groups > 1
        out = depthwise or "out_channels" in item.dep.handler.__name__
        axis: Literal["out", "in"] = "out" if out else "in"
        members[name, axis] = Coupled(name, axis, max(1, len(item.idxs) // channels))
    return tuple(members.values())


def _refusal(members: Sequence[Coupled], last: str, layers: Mapping[str, LayerInfo]) -> str | None:
    for member in members:
        info = layers[member.layer]
        if member.axis == "out" and member.layer == last:
            return "its channels are the network's outputs"
        if info.groups > 1 and info.weight_shape[1] != 1:
            return f"'{member.layer}' is a grouped convolution that is not depthwise"
        if member.axis == "out" and info.weight_shape[0] % member.factor:
            return f"'{member.layer}' is coupled in a way that cannot be followed"
    return None


def _tried(model: nn.Module, example: Tensor, groups: tuple[ChannelGroup, ...]) -> tuple[ChannelGroup, ...]:
    """The groups; refused are those that cannot in fact be dropped, as where a reshape has a channel count written in."""
    free = [group for group in groups if group.refusal is None and group.channels > 1]
    if _trial(model, example, free) is None:
        return groups
    refusals = {group.root: _trial(model, example, [group]) for group in free}
    return tuple(replace(group, refusal=group.refusal or refusals.get(group.root)) for group in groups)


def _trial(model: nn.Module, example: Tensor, groups: Sequence[ChannelGroup]) -> str | None:
    """Why the first half of each group's channels cannot be dropped from a copy, or ``None``."""
    trial = copy.deepcopy(model)
    expected = {name: list(cast(Tensor, module.weight).shape[:2]) for name, module in weighted_modules(trial)}
    for group in groups:
        for member in group.members:
            expected[member.layer][member.axis == "in"] -= group.channels // 2 * member.factor
    try:
        drop_channels(trial, example, {group.root: range(group.channels // 2) for group in groups})
        with torch.no_grad():
            before, after = model(example), trial(example)
    # The forward pass is the user's own code and may raise anything once its shapes change.
    except Exception as error:
        return f"the network does not run without some of them ({next(iter(str(error).splitlines()), '')})"
    if before.shape != after.shape:
        return "its channels are the network's outputs"
    if any(list(cast(Tensor, module.weight).shape[:2]) != expected[name] for name, module in weighted_modules(trial)):
        return "it is coupled in a way that cannot be followed"
    return None
