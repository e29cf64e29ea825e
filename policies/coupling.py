"""Which channels hang together, as autograd's record of one forward pass tells (torch_pruning, 2301.12900)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from .errors import CandidateError
from .labels import OUTPUTS
from .slicing import Axis, Lost, Slot, can_cut, channel_count, cut_channels
from .techniques.base import LayerInfo

MAX_FOLLOWED = 10_000_000
"""Channel numbers that are followed along autograd's record; a DenseNet-121 takes 4 million of them, a CaiT of 24 blocks 8."""


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
    axis: Axis
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
    slots
        Where the channels lie in every module that has them; none where only a new trace can tell.
    """

    root: str
    channels: int
    members: tuple[Coupled, ...]
    refusal: str | None = None
    slots: tuple[Slot, ...] = field(default=(), repr=False)

    @property
    def producers(self) -> tuple[str, ...]:
        """Layers whose outputs the group is."""
        return tuple(member.layer for member in self.members if member.axis == "out")

    @property
    def readers(self) -> tuple[str, ...]:
        """Layers whose inputs the group is."""
        return tuple(member.layer for member in self.members if member.axis == "in")


def find_groups(model: nn.Module, example: Tensor, layers: Mapping[str, LayerInfo]) -> Iterator[ChannelGroup]:
    """The groups of the layers, in the order of the forward pass.

    torch_pruning raises all kinds of errors on what it cannot follow; ``OverflowError`` where that takes too long.
    """
    order = {name: position for position, name in enumerate(layers)}
    graph = _dependency_graph(model, example)
    _bound_work(graph)
    graph.module2node = _Settled(graph.module2node)
    names = {module: name for name, module in model.named_modules()}
    with torch.no_grad():
        outputs = model(example)
    classes = int(outputs.shape[-1])
    last = max(
        (name for name, info in layers.items() if info.weight_shape[0] == classes), key=order.__getitem__, default=""
    )
    shared = _sharing_modules(model)
    found = []
    for group in list(graph.get_all_groups(ignored_layers=[], root_module_types=[nn.Conv2d, nn.Linear])):
        members = _members(group, names, layers)
        producers = [member.layer for member in members if member.axis == "out"]
        if not producers:
            continue
        root = min(producers, key=lambda name: order[name])
        channels = layers[root].weight_shape[0]
        slots = _slots(graph, model.get_submodule(root), channels, names)
        refusal = _refusal(members, last, layers)
        if any(item.dep.target.module in shared for item in group):
            refusal = refusal or "a parameter of it stands in two layers"
        found.append(ChannelGroup(root, channels, members, refusal, slots))
    yield from sorted(found, key=lambda group: order[group.root])


@dataclass
class _Work:
    """Channel numbers that may still be followed."""

    left: int

    def bounded(self, mapping: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
        """A mapping of channel numbers (``None``: they stay) that counts them."""

        def follow(indices: Any) -> Any:
            self.left -= len(indices)
            if self.left < 0:
                raise OverflowError(f"more than {MAX_FOLLOWED:,} channel numbers to follow")
            return indices if mapping is None else mapping(indices)

        return follow


def _bound_work(graph: torch_pruning.DependencyGraph) -> None:
    """Let torch_pruning follow ``MAX_FOLLOWED`` channel numbers and no more.

    Each reshape of attention that mixes its heads multiplies them: EfficientFormerV2-S0, of 4 million parameters, took minutes
    and 10 GB.
    """
    work = _Work(MAX_FOLLOWED)
    for node in graph.module2node.values():
        for dependency in node.dependencies:
            dependency.index_mapping = [work.bounded(mapping) for mapping in dependency.index_mapping]


class _Settled(dict[nn.Module, Any]):
    """The nodes of a graph that nothing is pruned from: what torch_pruning would work out for all anew with each group stands."""

    def items(self) -> Any:
        return {}.items()


def _sharing_modules(model: nn.Module) -> set[nn.Module]:
    """Modules with a parameter that another module has too."""
    owners: dict[nn.Parameter, set[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(module)
    return {module for modules in owners.values() if len(modules) > 1 for module in modules}


def _members(group: Any, names: Mapping[nn.Module, str], layers: Mapping[str, LayerInfo]) -> tuple[Coupled, ...]:
    channels = len(group[0].idxs)
    members: dict[tuple[str, str], Coupled] = {}
    for item in group:
        name = names.get(item.dep.target.module, "")
        if name not in layers:
            continue
        depthwise = layers[name].groups > 1
        out = depthwise or "out_channels" in item.dep.handler.__name__
        axis: Axis = "out" if out else "in"
        members[name, axis] = Coupled(name, axis, max(1, len(item.idxs) // channels))
    return tuple(members.values())


def _slots(
    graph: torch_pruning.DependencyGraph, root: nn.Module, channels: int, names: Mapping[nn.Module, str]
) -> tuple[Slot, ...]:
    """Where the root's channels lie; none where a module cannot be cut by indices, or channels are not coupled one by one."""
    items = _touched(_pruning_group(graph, root, range(channels)), names)
    if not all(isinstance(module, nn.Module) and can_cut(module) for module, _, _ in items):
        return ()
    slots = []
    for module, axis, item in items:
        places: dict[int, list[int]] = {}
        for place, channel in zip(item.idxs, item.root_idxs):
            places.setdefault(channel, []).append(place)
        if set(places) != set(range(channels)) or len({len(own) for own in places.values()}) != 1:
            return ()
        slots.append(
            Slot(names[module], axis, tuple(place for channel in range(channels) for place in places[channel]))
        )
    # Of two channels that take each other along, the whole group tells only that both are in it.
    for probe in (range(0, channels, 2), range(channels // 3)):
        part = _touched(_pruning_group(graph, root, probe), names)
        taken = {(names[module], axis): set(item.idxs) for module, axis, item in part}
        if probe and taken != {(slot.module, slot.axis): slot.of(probe, channels) for slot in slots}:
            return ()
    return tuple(slots)


def _touched(group: Any, names: Mapping[nn.Module, str]) -> list[tuple[nn.Module, Axis, Any]]:
    """What of a group changes when it is pruned, with the axis; what only passes channels on is left out."""
    touched: list[tuple[nn.Module, Axis, Any]] = []
    for item in group:
        module = item.dep.target.module
        one_for_all = isinstance(module, nn.PReLU) and module.num_parameters == 1
        if (module in names and not one_for_all) or isinstance(module, nn.Parameter):
            reads = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)
            out = not reads or "out_channels" in item.dep.handler.__name__
            touched.append((module, "out" if out else "in", item))
    return touched


def _refusal(members: Sequence[Coupled], last: str, layers: Mapping[str, LayerInfo]) -> str | None:
    for member in members:
        info = layers[member.layer]
        if member.axis == "out" and member.layer == last:
            return OUTPUTS
        if info.groups > 1 and info.weight_shape[1] != 1:
            return f"'{member.layer}' is a grouped convolution that is not depthwise"
        if member.axis == "out" and info.weight_shape[0] % member.factor:
            return f"'{member.layer}' is coupled in a way that cannot be followed"
    return None


def drop_channels(
    model: nn.Module, groups: Sequence[ChannelGroup], dropped: Mapping[str, Sequence[int]], example: Tensor
) -> Lost:
    """Drop channels of the named roots, with everything coupled to them, in place.

    Parameters
    ----------
    groups
        Those of the network as it is now.
    dropped
        Root -> indices of its channels.
    example
        (1, C, H, W), to trace the network again where a group does not know its slots.

    Returns
    -------
    mapping
        Module and axis -> its channels that are gone.

    Raises
    ------
    CandidateError
        Where a group would lose its last channel or cannot be pruned.
    """
    slots = {group.root: group.slots for group in groups}
    if all(slots.get(root) for root in dropped):
        lost = cut_channels(model, slots, dropped)
    else:
        lost = drop_by_trace(model, example, dropped)
    for parameter in model.parameters():
        parameter.grad = None
    return lost


def drop_by_trace(model: nn.Module, example: Tensor, dropped: Mapping[str, Sequence[int]]) -> Lost:
    """Drop channels of the named roots, in place, as a new trace of the network on an example (1, C, H, W) couples them.

    Returns
    -------
    mapping
        Module and axis -> its channels that are gone.

    Raises
    ------
    CandidateError
        Where a group would lose its last channel.
    """
    modules = dict(model.named_modules())
    # A parameter under several names is no longer one once each module has dropped its channels.
    trains = {name: parameter.requires_grad for name, parameter in model.named_parameters(remove_duplicate=False)}
    graph = _dependency_graph(model, example)
    names = {module: name for name, module in modules.items()}
    remaining: dict[tuple[str, Axis], list[int]] = {}
    lost: dict[tuple[str, Axis], set[int]] = {}
    for root, indices in dropped.items():
        group = _pruning_group(graph, modules[root], sorted(indices))
        if not graph.check_pruning_group(group):
            raise CandidateError(f"layer '{root}': dropping {len(indices)} channels would empty a layer; drop fewer")
        for module, axis, item in _touched(group, names):
            # A parameter that is no layer's own has no labels.
            if isinstance(module, nn.Module) and can_cut(module):
                key = (names[module], axis)
                left = remaining.setdefault(key, list(range(channel_count(module, axis))))
                gone = {left[place] for place in item.idxs}
                lost.setdefault(key, set()).update(gone)
        group.prune()
        remaining = {key: [place for place in left if place not in lost[key]] for key, left in remaining.items()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trains[name])
    return lost


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


def _pruning_group(graph: torch_pruning.DependencyGraph, module: nn.Module, channels: Sequence[int]) -> Any:
    if isinstance(module, nn.Linear):
        pruner = torch_pruning.prune_linear_out_channels
    elif isinstance(module, nn.Conv2d) and module.groups > 1:
        pruner = torch_pruning.prune_depthwise_conv_out_channels
    else:
        pruner = torch_pruning.prune_conv_out_channels
    return graph.get_pruning_group(module, pruner, idxs=list(channels))
