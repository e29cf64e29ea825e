"""What a network is made of: its layers with their shapes, and which channels hang together."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
            return cls(layers, tuple(_find_groups(model, example, layers)), shape)
        except Exception as error:
            return cls(layers, (), shape, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")

    def group_of(self, layer: str) -> ChannelGroup | None:
        """The group that the layer's outputs belong to."""
        return next((group for group in self.groups if layer in group.producers), None)


def group_scores(model: nn.Module, group: ChannelGroup) -> Tensor:
    """Importance (channels,) of each channel: its squared weights summed over the layers that make or read it.

    Each layer's share is scaled to mean 1 before the sum, so that large layers do not drown small ones (the group norm of
    2301.12900, with this scaling).
    """
    modules = dict(model.named_modules())
    total = torch.zeros(group.channels)
    for member in group.members:
        weight = cast(Tensor, modules[member.layer].weight).detach()
        if member.axis == "in" and weight.shape[1] != group.channels * member.factor:
            continue
        if member.axis == "out" and weight.shape[0] != group.channels * member.factor:
            continue
        squares = weight.square().transpose(0, 1) if member.axis == "in" else weight.square()
        share = squares.reshape(group.channels, -1).sum(1)
        total += share / share.mean().clamp_min(1e-12)
    return total


def drop_channels(model: nn.Module, example: Tensor, dropped: Mapping[str, Sequence[int]]) -> None:
    """Drop channels of the named roots, with everything coupled to them, in place.

    Raises
    ------
    CandidateError
        Where a group would lose its last channel or cannot be pruned.
    """
    modules = dict(model.named_modules())
    graph = _dependency_graph(model, example)
    for root, indices in dropped.items():
        module = modules[root]
        group = graph.get_pruning_group(module, _out_pruner(module), idxs=sorted(indices))
        if not graph.check_pruning_group(group):
            raise CandidateError(f"layer '{root}': dropping {len(indices)} channels would empty a layer; drop fewer")
        group.prune()
    for parameter in model.parameters():
        parameter.grad = None


def _dependency_graph(model: nn.Module, example: Tensor) -> torch_pruning.DependencyGraph:
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        return torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example, verbose=False)


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
