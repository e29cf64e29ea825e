"""Channels cut out of layers by indices that the trace has found: no graph is needed to do it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .errors import CandidateError

Axis = Literal["out", "in"]
Lost = Mapping[tuple[str, Axis], Set[int]]
"""Module and axis -> its channels that are dropped."""

# Modules with one number a channel in each tensor, and the attribute that counts the channels.
PER_CHANNEL: dict[type[nn.Module], str] = {
    _BatchNorm: "num_features",
    nn.GroupNorm: "num_channels",
    nn.LayerNorm: "normalized_shape",
    nn.PReLU: "num_parameters",
}
TENSORS = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}


@dataclass(frozen=True)
class Slot:
    """Where a group's channels lie in one module.

    Parameters
    ----------
    module
        Its name.
    axis
        Whether they are its output or its input channels; those of a per-channel module are ``out``.
    index
        (channels * factor,): the module's channels that the group's first channel stands for, then the second's, ...
    """

    module: str
    axis: Axis
    index: tuple[int, ...]

    def of(self, channels: Sequence[int], total: int) -> set[int]:
        """The module's channels that these of the group's ``total`` channels stand for."""
        factor = len(self.index) // total
        return {place for channel in channels for place in self.index[channel * factor : (channel + 1) * factor]}


def can_cut(module: nn.Module) -> bool:
    """Whether channels can be cut out of the module here: its kind is known and it has no tensors of its own beside."""
    if scaled_channels(module):
        return True
    if not TENSORS.issuperset([*module._parameters, *module._buffers]):
        return False
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
        return False
    if isinstance(module, nn.Conv2d):
        return "weight" in module._parameters and (module.groups == 1 or _is_depthwise(module))
    return "weight" in module._parameters and isinstance(module, (nn.Linear, *PER_CHANNEL))


def scaled_channels(module: nn.Module) -> int:
    """How many channels a module of an unknown kind has, where each of its tensors holds one number a channel; otherwise 0.

    Such are the scales of residual branches and learned affine functions.
    """
    known = isinstance(module, (nn.Conv2d, nn.Linear, *PER_CHANNEL))
    tensors = [] if known or any(True for _ in module.children()) else [*module.parameters(), *module.buffers()]
    counts = {tensor.numel() for tensor in tensors}
    alone = all(max(tensor.shape, default=0) == tensor.numel() for tensor in tensors)
    return counts.pop() if len(counts) == 1 and alone and max(counts) > 1 else 0


def cut_channels(model: nn.Module, slots: Mapping[str, Sequence[Slot]], dropped: Mapping[str, Sequence[int]]) -> Lost:
    """Cut the dropped channels of each root out of all its group's modules, in place.

    Parameters
    ----------
    slots
        Root -> its group's slots.
    dropped
        Root -> indices of its output channels.

    Returns
    -------
    mapping
        Module and axis -> its channels that are gone.

    Raises
    ------
    CandidateError
        Where a module would lose its last channel; the network is then as it was.
    """
    modules = dict(model.named_modules())
    lost: dict[tuple[str, Axis], set[int]] = {}
    for root, channels in dropped.items():
        for slot in slots[root]:
            places = lost.setdefault((slot.module, slot.axis), set())
            places |= slot.of(channels, channel_count(modules[root], "out"))
            if len(places) >= channel_count(modules[slot.module], slot.axis):
                raise CandidateError(
                    f"layer '{root}': dropping {len(channels)} channels would empty a layer; drop fewer"
                )
    for (name, axis), places in lost.items():
        cut(modules[name], axis, places)
    return lost


def channel_count(module: nn.Module, axis: Axis) -> int:
    """How many channels the module has on this axis."""
    if count := scaled_channels(module):
        return count
    count = getattr(module, _count_name(module, axis))
    return int(count[0] if isinstance(count, tuple) else count)


def _count_name(module: nn.Module, axis: Axis) -> str:
    if isinstance(module, nn.Conv2d):
        return f"{axis}_channels"
    if isinstance(module, nn.Linear):
        return f"{axis}_features"
    return next(name for kind, name in PER_CHANNEL.items() if isinstance(module, kind))


def _is_depthwise(module: nn.Conv2d) -> bool:
    return module.groups == module.in_channels == module.out_channels


def cut(module: nn.Module, axis: Axis, places: Set[int]) -> None:
    """Cut channels out of one module that ``can_cut`` knows, in place."""
    kept = torch.tensor([i for i in range(channel_count(module, axis)) if i not in places])
    if scaled_channels(module):
        for name, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is not None:
                _take(module, name, kept, value.shape.index(value.numel()))
        return
    depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
    # A group norm of one channel a group keeps one a group.
    if isinstance(module, nn.GroupNorm) and module.num_groups == module.num_channels:
        module.num_groups = len(kept)
    for name in ("weight",) if axis == "in" else tuple(TENSORS):
        value = getattr(module, name, None)
        if value is not None and value.ndim:
            _take(module, name, kept, int(axis == "in"))
    for attribute in ("in_channels", "out_channels", "groups") if depthwise else (_count_name(module, axis),):
        is_tuple = isinstance(getattr(module, attribute), tuple)
        setattr(module, attribute, (len(kept),) if is_tuple else len(kept))


def _take(module: nn.Module, name: str, kept: Tensor, dim: int) -> None:
    """Keep these places of a tensor of the module."""
    value = getattr(module, name)
    chosen = value.detach().index_select(dim, kept)
    trained = isinstance(value, nn.Parameter)
    setattr(module, name, nn.Parameter(chosen, requires_grad=value.requires_grad) if trained else chosen)
