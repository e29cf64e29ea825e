"""Which groups of channels can in fact lose some: tried on copies of the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from .channel_labels import Labels
from .copying import sharing_copy
from .coupling import ChannelGroup, drop_channels
from .forms import weighted_modules
from .labels import OUTPUTS
from .silencing import enliven, is_silenced
from .wiring import check_wiring

# Of a group's channels, what is dropped to try whether it can lose some: a half, and one, since what is right for an even
# number may be wrong for an odd one.
SHARES = (0.5, 0.0)
# Of one whose channels are moved by their numbers, more: what is left may fall into the right places by chance.
MORE_SHARES = (0.5, 0.0, 0.75, 0.25)


class Trial:
    """Tries whether groups can lose channels: whether the network runs then, and is what it was with these silenced.

    Parameters
    ----------
    example
        (1, C, H, W).
    labels
        Those of the network's channels.
    """

    def __init__(self, model: nn.Module, example: Tensor, labels: Labels) -> None:
        self._model, self._example, self._labels = enliven(model), example, labels
        with torch.no_grad():
            self._shape = self._model(example.clone()).shape

    def refuse(self, groups: tuple[ChannelGroup, ...]) -> tuple[ChannelGroup, ...]:
        """The groups; refused are those that cannot in fact be dropped, as where a reshape has a channel count written in."""
        free = [group for group in groups if group.refusal is None and group.channels > 1]
        moved = {root: self.reason([group], MORE_SHARES) for root, group in self._moved(free).items()}
        refusals = {root: reason for root, reason in moved.items() if reason is not None}
        free = [group for group in free if group.root not in refusals]
        if self.reason(free) is not None:
            refusals |= self._refusals(free)
            together = [group for group in free if group.root not in refusals]
            if self.reason(together) is not None:
                refusals |= self._refusals_together(together)
        if not refusals:
            return groups
        return tuple(replace(group, refusal=group.refusal or refusals.get(group.root)) for group in groups)

    def _moved(self, groups: Sequence[ChannelGroup]) -> dict[str, ChannelGroup]:
        """Those whose channels are moved by their numbers, by root; several at once may be right where each alone is not."""
        if not self._labels.moved:
            return {}
        sets = self._labels.sets()
        moved = set(sets[torch.cat(self._labels.moved).numpy()].tolist()) - {0}
        holders = {group.root: self._labels.own(group.root, "out", group.channels).numpy() for group in groups}
        return {group.root: group for group in groups if moved.intersection(sets[holders[group.root]].tolist())}

    def _refusals(self, groups: Sequence[ChannelGroup]) -> dict[str, str]:
        """Why groups cannot be dropped alone, by root; what can be dropped together is not tried one by one."""
        if len(groups) == 1:
            reason = self.reason(groups)
            return {} if reason is None else {groups[0].root: reason}
        middle = len(groups) // 2
        halves = [half for half in (groups[:middle], groups[middle:]) if half and self.reason(half) is not None]
        return {root: reason for half in halves for root, reason in self._refusals(half).items()}

    def _refusals_together(self, groups: Sequence[ChannelGroup]) -> dict[str, str]:
        """Why groups that can be dropped alone cannot be dropped with those before them, by root."""
        refusals: dict[str, str] = {}
        together: list[ChannelGroup] = []
        for group in groups:
            reason = self.reason([*together, group])
            if reason is None:
                together.append(group)
            else:
                refusals[group.root] = reason
        return refusals

    def reason(self, groups: Sequence[ChannelGroup], shares: Sequence[float] = SHARES) -> str | None:
        """Why such shares of each group's channels cannot be dropped from a copy, or ``None``."""
        for share in shares:
            dropped = {group.root: _some(group.channels, share) for group in groups}
            if (reason := self._reason(groups, dropped)) is not None:
                return reason
        return None

    def _reason(self, groups: Sequence[ChannelGroup], dropped: Mapping[str, Sequence[int]]) -> str | None:
        trial = sharing_copy(self._model)
        expected = {name: list(cast(Tensor, module.weight).shape[:2]) for name, module in weighted_modules(trial)}
        for group in groups:
            for member in group.members:
                expected[member.layer][member.axis == "in"] -= len(dropped[group.root]) * member.factor
        try:
            lost = drop_channels(trial, groups, dropped, self._example)
            with torch.no_grad():
                outputs = trial(self._example.clone())
        # The forward pass is the user's own code and may raise anything once its shapes change.
        except Exception as error:
            return f"the network does not run without some of them ({next(iter(str(error).splitlines()), '')})"
        if outputs.shape != self._shape:
            return OUTPUTS
        if any(
            list(cast(Tensor, module.weight).shape[:2]) != expected[name] for name, module in weighted_modules(trial)
        ):
            return "it is coupled in a way that cannot be followed"
        if self._labels.moved:
            try:
                check_wiring(self._labels, trial, lost, self._example)
            except Exception as error:
                return f"its channels are moved by their numbers: without some, {error}"
        unread = {name for group in groups if not group.readers for name in _makers(group)}
        if not is_silenced(self._model, trial, lost, unread, self._example):
            return "the network without some of them is not what it is with these silenced"
        return None


def _makers(group: ChannelGroup) -> list[str]:
    """Return the modules whose outputs the group's channels are."""
    return [*group.producers, *(slot.module for slot in group.slots if slot.axis == "out")]


def _some(channels: int, share: float) -> list[int]:
    """Draw some of so many channels, the same each time; one at least."""
    count = max(1, int(share * channels))
    generator = torch.Generator().manual_seed(count)
    return sorted(torch.randperm(channels, generator=generator)[:count].tolist())
