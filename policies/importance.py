"""Which channels of a group go: by one of several scores of importance, or merged into a channel that is alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from .coupling import ChannelGroup
from .errors import CandidateError
from .graph import group_scores, input_energies
from .merging import merge_alike, outgoing_energy, own_weights
from .ranges import read_ranges
from .second_order import damped, hessian_of_calls
from .slicing import Slot
from .techniques.keep_channels import ONLY
from .watching import feature_means, watching

SLOPE_PICTURES, SLOPE_BATCH = 256, 32
MERGE = "merge"


@dataclass(frozen=True)
class Choice:
    """Which of a group's channels go.

    Parameters
    ----------
    dropped
        Their indices, in ascending order.
    into
        Channel that goes -> channel that is kept and takes its outgoing weights over; empty where channels are only dropped.
    """

    dropped: tuple[int, ...]
    into: Mapping[int, int] = field(default_factory=dict)


@dataclass
class Importance:
    """Scores of a network's channels; what they need is measured when first asked for.

    Parameters
    ----------
    model
        The dense network, in evaluation mode; not changed.
    groups
        Its channel groups.
    pictures
        Calibration pictures (N, C, H, W).
    energies
        ``input_energies`` of the network, where the caller keeps them.
    """

    model: nn.Module
    groups: Sequence[ChannelGroup]
    pictures: Tensor
    energies: Mapping[str, Tensor] | None = None
    _activities: Mapping[str, Tensor] | None = field(default=None, repr=False)
    _slopes: Mapping[str, Tensor] | None = field(default=None, repr=False)

    def choose(self, group: ChannelGroup, by: str, keep: int) -> Choice:
        """The channels that go when so many are kept: the least important by a score, by ``merge``, or all but those named."""
        if by.startswith(ONLY):
            named = set(read_ranges(by.removeprefix(ONLY)))
            return Choice(tuple(channel for channel in range(group.channels) if channel not in named))
        if by == MERGE:
            owner = self.model.get_submodule(group.root)
            into = merge_alike(own_weights(owner), outgoing_energy(self.model, group), group.channels - keep)
            return Choice(tuple(sorted(into)), into)
        order = torch.argsort(self.scores(group, by), stable=True)[: group.channels - keep]
        return Choice(tuple(sorted(order.tolist())))

    def scores(self, group: ChannelGroup, by: str) -> Tensor:
        """Importance (channels,) of each channel.

        ``energy`` and ``magnitude`` are those of ``group_scores``. ``activity`` is the share of positions and pictures where
        what the readers see of a channel is not zero, one minus the APoZ of 1607.03250, eq. 1. ``taylor`` is what the loss
        changes by to first order when all readers see 0 in its place, ``mean |sum x dL/dx|`` over pictures (Molchanov 2017,
        1611.06440, eq. 7). ``hessian`` is what the readers' outputs err by when their other weights make up for the channel,
        ``tr w ([H^-1]_KK)^-1 w^T / 2`` (2208.11580, section 3). Where nothing reads a group, squared weights decide.

        With several readers, activity is their mean; saliencies are scaled to mean 1 and added up.
        """
        if by == "magnitude" or not self._wide(group):
            return group_scores(self.model, group)
        if by == "energy":
            return group_scores(self.model, group, self._energies())
        if by == "activity":
            active = self._active()
            return torch.stack([active[name].reshape(group.channels, -1).mean(1) for name in self._wide(group)]).mean(0)
        if by == "taylor":
            return self._taylor(group)
        assert by == "hessian", by
        saliencies = self._saliencies(group)
        return torch.stack([share / share.mean().clamp_min(1e-12) for share in saliencies]).sum(0)

    def _energies(self) -> Mapping[str, Tensor]:
        if self.energies is None:
            self.energies = input_energies(self.model, self.pictures, self.groups)
        return self.energies

    def _active(self) -> Mapping[str, Tensor]:
        if self._activities is None:
            self._activities = input_activities(self.model, self.pictures, self.groups)
        return self._activities

    def _taylor(self, group: ChannelGroup) -> Tensor:
        if self._slopes is None:
            self._slopes = input_slopes(self.model, self.pictures[:SLOPE_PICTURES], self.groups)
        slopes = self._slopes
        parts = [
            slopes[name].reshape(len(self.pictures[:SLOPE_PICTURES]), group.channels, -1) for name in self._wide(group)
        ]
        return torch.stack([part.sum(2) for part in parts]).sum(0).abs().mean(0)

    def _saliencies(self, group: ChannelGroup) -> list[Tensor]:
        """Of each reader (channels,)."""
        readers = {name: self.model.get_submodule(name) for name in self._wide(group)}
        calls: dict[str, list[Tensor]] = {name: [] for name in readers}
        # A tensor of its own, since what comes later may overwrite it.
        with watching(readers, lambda name, x: calls[name].append(x.clone())), torch.no_grad():
            self.model(self.pictures)
        return [
            group_saliencies(cast(Tensor, module.weight), hessian_of_calls(module, calls[name]), group.channels)
            for name, module in readers.items()
        ]

    def _wide(self, group: ChannelGroup) -> list[str]:
        """Readers whose inputs are this group's channels and no others."""
        sizes = {member.layer: group.channels * member.factor for member in group.members if member.axis == "in"}
        weights = {name: cast(Tensor, self.model.get_submodule(name).weight) for name in sizes}
        return [name for name, size in sizes.items() if weights[name].shape[1] == size]


def fold_channels(module: nn.Module, slot: Slot, into: Mapping[int, int], channels: int) -> None:
    """Add the input weights of channels that go to those of the channels that they are merged into, in place.

    Equation 4 of 1507.06149, with ``a_i + a_j`` as the new outgoing weights. The weight is a new tensor: the old one may be
    shared with the network that the module was copied from.
    """
    factor = len(slot.index) // channels
    weight = cast(nn.Parameter, module.weight)
    folded = weight.detach().clone()
    for gone, kept in into.items():
        source, target = (list(slot.index[c * factor : (c + 1) * factor]) for c in (gone, kept))
        folded[:, target] += weight.detach()[:, source]
    module.weight = nn.Parameter(folded, requires_grad=weight.requires_grad)


def input_activities(model: nn.Module, pictures: Tensor, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    """Share (in,) of pictures and positions where each input feature of the groups' readers is not zero."""
    readers = dict.fromkeys(name for group in groups for name in group.readers)
    return feature_means(model, pictures, readers, lambda features: (features != 0).float())


def input_slopes(model: nn.Module, pictures: Tensor, groups: Sequence[ChannelGroup]) -> dict[str, Tensor]:
    """``x dL/dx`` (N, in) of each input feature of the groups' readers, summed over positions, picture by picture.

    The loss is the cross-entropy with the network's own most likely class; the slope is that through this reader alone.
    """
    readers = {name: model.get_submodule(name) for group in groups for name in group.readers}
    found: dict[str, list[Tensor]] = {name: [] for name in readers}
    for batch in pictures.split(SLOPE_BATCH):
        totals = {name: torch.zeros(1) for name in readers}
        handles = [module.register_forward_pre_hook(_watch(module, name, totals)) for name, module in readers.items()]
        try:
            with torch.enable_grad():
                # The gradient must flow even through a network that is handed over frozen, or overwrites its input.
                source = batch.detach().requires_grad_(True)
                logits = model(source.clone())
                functional.cross_entropy(logits, logits.detach().argmax(1), reduction="sum").backward(inputs=[source])
        finally:
            for handle in handles:
                handle.remove()
        for name, total in totals.items():
            found[name].append(total)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _watch(module: nn.Module, name: str, totals: dict[str, Tensor]) -> Any:
    axis = 1 if isinstance(module, nn.Conv2d) else -1

    def record(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # A tensor of its own, so that its gradient is that of this reader and not of all.
        own, values = arguments[0].clone(), arguments[0].detach().clone()

        def add(gradient: Tensor) -> None:
            products = (
                (gradient.detach() * values).movedim(axis, 1).flatten(2) if values.ndim > 2 else gradient * values
            )
            totals[name] = totals[name] + (products.sum(2) if values.ndim > 2 else products)

        own.register_hook(add)
        return (own, *arguments[1:])

    return record


def group_saliencies(weight: Tensor, hessian: Tensor, channels: int) -> Tensor:
    """``tr w_K ([H^-1]_KK)^-1 w_K^T / 2`` of each channel's features K (channels,), with the Hessian damped.

    Parameters
    ----------
    weight
        (out, in, ...) of a reader.
    hessian
        (d, d), see ``second_order.layer_hessian``.
    """
    # What is always 0 costs nothing, whatever the damping says.
    live = weight.detach().flatten(1).double() * (hessian.diagonal() > 0)
    rows = live.reshape(len(weight), channels, -1)
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped(hessian)))
    except torch.linalg.LinAlgError as error:
        raise CandidateError(f"the Hessian of a channel's reader cannot be inverted: {error}") from error
    size = rows.shape[2]
    blocks = inverse.reshape(channels, size, channels, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    own = rows.permute(1, 2, 0)
    return (own * torch.linalg.solve(blocks, own)).sum((1, 2)).float() / 2
