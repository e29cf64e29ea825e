"""Channels without a connection: found in the weights, dropped with all that is coupled to them (1606.07326, section 2.2).

This is done to a network between pruning and quantization, not to a layer: a channel is dead by the weights on both of its
sides, the pruning that killed it may have happened while training, and what is quantized later should have the final shape.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from . import forms
from .coupling import ChannelGroup
from .slicing import Slot, channel_count, cut
from .watching import watching


def drop_dead_channels(model: nn.Module, groups: Sequence[ChannelGroup], example: Tensor) -> None:
    """Drop dead channels of these groups, in place, until there are none.

    A channel whose readers' weights are all zero goes at once. One whose makers' weights are all zero is a constant, which
    is worked into its readers' biases; it stays where that is not exact: in front of a padded convolution unless it is 0,
    where a reader has no bias, or where its inputs are quantized. A group keeps a channel at least.

    Parameters
    ----------
    groups
        Those that ``why_kept`` has nothing against; their numbers of channels may have become smaller.
    example
        (1, C, H, W).
    """
    found = True
    while found:
        found = False
        for group in groups:
            dead = _dead(model, group, example)
            if dead:
                _drop(model, group, dead)
                found = True


def drop_some(model: nn.Module, groups: Sequence[ChannelGroup], kept: dict[str, int]) -> None:
    """Drop any channels, in place, until each root has so many: for a network whose values come later."""
    for group in groups:
        surplus = channel_count(model.get_submodule(group.root), "out") - kept.get(group.root, 0)
        if group.root in kept and surplus > 0:
            _drop(model, group, range(surplus))


def why_kept(group: ChannelGroup, factorized: Collection[str]) -> str | None:
    """Why dead channels of a group cannot be dropped, or ``None``."""
    if not group.slots:
        return "its channels cannot be cut without tracing the network again"
    for slot in group.slots:
        if slot.index != tuple(range(len(slot.index))):
            return f"'{slot.module}' holds its channels in another order, or those of other layers too"
        if slot.module in factorized:
            return f"'{slot.module}' is factorized"
    return None


def _dead(model: nn.Module, group: ChannelGroup, example: Tensor) -> list[int]:
    channels = channel_count(model.get_submodule(group.root), "out")
    readers = [slot for slot in group.slots if slot.axis == "in"]
    if not readers:
        return []
    unread = torch.stack([_columns(model, slot, channels).eq(0).all(1) for slot in readers]).all(0)
    unmade = torch.stack(
        [
            cast(Tensor, model.get_submodule(name).weight).detach().flatten(1).eq(0).all(1)
            for name in group.producers
            if getattr(model.get_submodule(name), "groups", 1) == 1
        ]
    ).all(0)
    constant = unmade & ~unread
    values = _constants(model, readers, example) if constant.any() else {}
    for slot in readers if values else ():
        constant &= _can_take(model.get_submodule(slot.module), *values[slot.module]).reshape(channels, -1).all(1)
    dead = unread | constant
    # A layer without any channel is no layer.
    if dead.all():
        dead[0] = False
    for slot in readers if values else ():
        _take(model.get_submodule(slot.module), values[slot.module][0], constant & dead)
    return dead.nonzero()[:, 0].tolist()


def _columns(model: nn.Module, slot: Slot, channels: int) -> Tensor:
    """What a reader multiplies each channel with (channels, out * positions)."""
    weight = cast(Tensor, model.get_submodule(slot.module).weight).detach()
    return weight.transpose(0, 1).reshape(channels, -1)


def _constants(model: nn.Module, readers: Sequence[Slot], example: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each reader: the first value (in,) of each input feature, and whether it is the same everywhere, in every call."""
    layers = {slot.module: model.get_submodule(slot.module) for slot in readers}
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def record(name: str, x: Tensor) -> None:
        features = x.detach().transpose(0, 1 if isinstance(layers[name], nn.Conv2d) else -1).flatten(1)
        first, constant = found.get(name, (features[:, 0].clone(), torch.ones(len(features), dtype=torch.bool)))
        found[name] = first, constant & (features == first[:, None]).all(1)

    with watching(layers, record), torch.no_grad():
        model(example)
    return found


def _can_take(layer: nn.Module, constants: Tensor, is_constant: Tensor) -> Tensor:
    """Which constant input features (in,) the layer's bias can stand for."""
    padded = isinstance(layer, nn.Conv2d) and layer.padding not in ("valid", (0, 0))
    exact = layer.bias is not None and not padded and not forms.is_input_quantized(layer)
    return is_constant & ((constants == 0) | exact)


def _take(layer: nn.Module, constants: Tensor, chosen: Tensor) -> None:
    """Add to the bias what the chosen channels (channels,) contribute."""
    added = torch.where(chosen.repeat_interleave(len(constants) // len(chosen)), constants, 0.0)
    if added.any():
        weight = cast(Tensor, layer.weight).detach()
        old = cast(nn.Parameter, layer.bias)
        share = (weight.flatten(2).sum(2) if weight.ndim > 2 else weight) @ added
        layer.bias = nn.Parameter(old.detach() + share, requires_grad=old.requires_grad)


def _drop(model: nn.Module, group: ChannelGroup, dead: Sequence[int]) -> None:
    for slot in group.slots:
        module = model.get_submodule(slot.module)
        factor = len(slot.index) // group.channels
        places = {channel * factor + place for channel in dead for place in range(factor)}
        mask = forms.mask_of(module) if isinstance(module, forms.WEIGHTED) else None
        if isinstance(module, forms.WEIGHTED):
            forms.drop_form(module)
        cut(module, slot.axis, places)
        if mask is not None:
            axis = int(slot.axis == "in")
            kept = torch.tensor([i for i in range(mask.shape[axis]) if i not in places])
            forms.set_form(module, forms.MaskedWeight(mask.index_select(axis, kept)))
