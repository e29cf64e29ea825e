"""Every group of channels by itself: the network without some is the network that does not read them, or the group is refused."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import torch
from paretopress.policies.copying import sharing_copy
from paretopress.policies.coupling import ChannelGroup
from paretopress.policies.errors import CandidateError, PolicyError
from paretopress.policies.graph import ModelGraph, drop_channels
from paretopress.policies.slicing import Lost
from paretopress.policies.wiring import check_wiring
from torch import Tensor, nn

from .networks import draw_pictures

PICTURES = 2
SEED = 2
TOLERANCE = 1e-5
SHARES = (0.5, 0.0)
COUNTS = ("exact", "refused", "wrong")


def silence_channels(model: nn.Module, pictures: Tensor) -> tuple[dict[str, float], tuple[str, ...]]:
    """Drop a half of each group's channels, then one, then a half of all groups' at once; none may change the outputs.

    Before that the weights of the layers that read these channels are set to zero there; of a group that no layer reads,
    what makes the channels is set to zero.

    Returns
    -------
    tuple
        How many groups are exact, refused and wrong, by name; and what is wrong.
    """
    graph = ModelGraph.trace(model, pictures[:1])
    if graph.coupling_error is not None:
        raise PolicyError(f"the coupling of the network's channels could not be found ({graph.coupling_error})")
    x = draw_pictures(PICTURES, pictures.shape[-1], SEED)
    groups = [group for group in graph.groups if group.channels > 1]
    exact: list[ChannelGroup] = []
    complaints: list[str] = []
    for group in groups:
        if group.refusal is None:
            distance = max(_distance(model, graph, [group], share, x) for share in SHARES)
            # A distance that is not a number is not near.
            if distance <= TOLERANCE:
                exact.append(group)
            else:
                complaints.append(f"'{group.root}' changes the outputs by {distance:.2g} of their spread")
    wrong = len(complaints)
    together = _distance(model, graph, exact, SHARES[0], x) if exact else 0.0
    if not together <= TOLERANCE:
        complaints.append(f"all groups together change the outputs by {together:.2g} of their spread")
    figures = {
        "groups_exact": len(exact),
        "groups_refused": sum(group.refusal is not None for group in groups),
        "groups_wrong": wrong,
        "exact_ratio": len(exact) / len(groups),
    }
    return figures, tuple(complaints)


def _distance(model: nn.Module, graph: ModelGraph, groups: Sequence[ChannelGroup], share: float, x: Tensor) -> float:
    """Return the largest change of an output over the outputs' standard deviation; infinity where there is no network.

    Where rounding may have made it, it is found again with 64-bit numbers.
    """
    distance = _change(model, graph, groups, share, x)
    if TOLERANCE < distance < float("inf"):
        distance = _change(copy.deepcopy(model).double(), graph, groups, share, x.double())
    return distance


def _change(model: nn.Module, graph: ModelGraph, groups: Sequence[ChannelGroup], share: float, x: Tensor) -> float:
    dropped = {group.root: _draw(group.channels, share) for group in groups}
    small = sharing_copy(model)
    try:
        lost = drop_channels(small, graph.groups, dropped, x[:1])
        if graph.moves is not None:
            check_wiring(graph.moves, small, lost, x[:1])
        with torch.no_grad():
            outputs = small(x)
    except (CandidateError, RuntimeError):
        return float("inf")
    with torch.no_grad():
        expected = _silenced(model, lost, set(_unread(groups)))(x)
    return float((outputs - expected).abs().max() / expected.std())


def _silenced(model: nn.Module, lost: Lost, unread: Set[str]) -> nn.Module:
    silent = sharing_copy(model)
    for (name, axis), places in lost.items():
        module = silent.get_submodule(name)
        if axis == "in":
            _set_zero(module, "weight", (slice(None), sorted(places)))
        elif name in unread:
            _set_zero(module, "weight", (sorted(places),))
            _set_zero(module, "bias", (sorted(places),))
    return silent


def _set_zero(module: nn.Module, name: str, places: tuple[slice | list[int], ...]) -> None:
    parameter = module._parameters.get(name)
    if parameter is not None:
        values = parameter.detach().clone()
        values[places] = 0
        module._parameters[name] = nn.Parameter(values)


def _unread(groups: Sequence[ChannelGroup]) -> Iterator[str]:
    """Yield the modules whose outputs are channels of groups that no layer reads."""
    for group in groups:
        if not group.readers:
            yield from (*group.producers, *(slot.module for slot in group.slots))


def _draw(channels: int, share: float) -> list[int]:
    count = max(1, int(share * channels))
    generator = torch.Generator().manual_seed(SEED)
    return sorted(torch.randperm(channels, generator=generator)[:count].tolist())


def describe_groups(figures: Mapping[str, float]) -> str:
    """Return the counts of a cell, or of several added up, in words."""
    return ", ".join(f"{figures[f'groups_{name}']:.0f} {name}" for name in COUNTS)


def add_groups(cells: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Add up the groups that cells counted."""
    figures = [cell["figures"] for cell in cells]
    return {f"groups_{name}": sum(own.get(f"groups_{name}", 0) for own in figures) for name in COUNTS}
