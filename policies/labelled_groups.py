"""Groups of coupled channels from labels: exact where numbers are moved about, as by a channel shuffle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from torch import nn

from .channel_labels import Labels
from .coupling import ChannelGroup, Coupled
from .slicing import Axis, Slot, can_cut
from .techniques.base import LayerInfo

Holders = Mapping[tuple[str, Axis], np.ndarray]


def labelled_groups(model: nn.Module, found: Labels, layers: Mapping[str, LayerInfo]) -> Iterator[ChannelGroup]:
    """The groups of the layers, in the order of the forward pass."""
    sets = found.sets()
    holders = {key: sets[start : start + channels] for key, (start, channels) in found.first.items()}
    reasons: dict[int, str] = {}
    for labels, reason in found.lost:
        for number in sets[labels.numpy()]:
            reasons.setdefault(int(number), reason)
    for rows in found.shares:
        members = sets[rows.numpy()]
        for number in np.unique(members[(members != members[:, :1]).any(1)]):
            reasons.setdefault(int(number), "a softmax is taken over its channels")
    reasons.pop(0, None)
    placed: set[str] = set()
    contracted = {int(number) for labels in found.contracted for number in sets[labels.numpy()]} - {0}
    for name in layers:
        if (name, "out") in holders and name not in placed:
            group = _group(name, holders, reasons, layers, model)
            # Without readers a channel is silent where its makers' weights are 0; with some, where theirs are.
            if group.readers and contracted.intersection(holders[name, "out"].tolist()):
                reason = "products of its channels are added up, where no layer's weights can leave some out"
                group = replace(group, refusal=group.refusal or reason, slots=())
            placed.update(group.producers)
            yield group


def _group(
    root: str, holders: Holders, reasons: Mapping[int, str], layers: Mapping[str, LayerInfo], model: nn.Module
) -> ChannelGroup:
    own = holders[root, "out"]
    slots, members, refusal = [], [], next((reasons[int(number)] for number in own if int(number) in reasons), None)
    if len(set(own.tolist())) < len(own):
        refusal = refusal or "its channels hang together with one another"
    for (name, axis), numbers in holders.items():
        order = np.argsort(own)
        channel = order[np.clip(np.searchsorted(own[order], numbers), 0, len(own) - 1)]
        places = np.flatnonzero(own[channel] == numbers)
        if not len(places):
            continue
        counts = np.bincount(channel[places], minlength=len(own))
        if (counts != counts[0]).any():
            refusal = refusal or f"'{name}' has only some of its channels"
        elif not can_cut(model.get_submodule(name)):
            refusal = refusal or f"'{name}' is of a kind that no channels can be cut out of"
        index = places[np.argsort(channel[places], kind="stable")]
        slots.append(Slot(name, axis, tuple(index.tolist())))
        if name in layers:
            members.append(Coupled(name, axis, max(1, len(places) // len(own))))
    return ChannelGroup(root, len(own), tuple(members), refusal, () if refusal else tuple(slots))
