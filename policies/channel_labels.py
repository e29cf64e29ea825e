"""Labels of channels: which belong to which module, which meet, and which are lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn

from .slicing import Axis


@dataclass
class Labels:
    """What one forward pass told of the channels.

    Parameters
    ----------
    first
        The first label of each module's outputs or inputs, which are labelled in order; a norm's channels are ``out``.
    count
        How many labels there are, 0 among them.
    meetings
        (2, k) labels that hang together.
    lost
        Labels (k,) of channels that must stay, and why.
    contracted
        Labels (k,) that are summed over in a product of two activations, as queries and keys are: no weight reads them there.
    moved
        Labels (k,) of channels that are moved by their numbers, as by a shuffle or a slice: once some are dropped, others
        take their places, and only the smaller network's own labels tell where these go.
    shares
        Labels (k, n) of which n together are shares of one, by a softmax: they must hang together, or all stay.
    """

    first: dict[tuple[str, Axis], tuple[int, int]] = field(default_factory=dict)
    count: int = 1
    meetings: list[Tensor] = field(default_factory=list)
    lost: list[tuple[Tensor, str]] = field(default_factory=list)
    contracted: list[Tensor] = field(default_factory=list)
    moved: list[Tensor] = field(default_factory=list)
    shares: list[Tensor] = field(default_factory=list)

    def own(self, name: str, axis: Axis, channels: int) -> Tensor:
        """The labels (channels,) of a module's outputs or inputs."""
        if (name, axis) not in self.first:
            self.first[name, axis] = (self.count, channels)
            self.count += channels
        start, channels = self.first[name, axis]
        return torch.arange(start, start + channels, dtype=torch.int32)

    def scaled(self, name: str, module: nn.Module) -> int:
        """Return how many channels a module has of which ``scaled_channels`` does not tell, 0 where none are known."""
        return 0

    def meet(self, one: Tensor, other: Tensor) -> None:
        """Note which labels of two tensors of one shape meet."""
        both = (one > 0) & (other > 0) & (one != other)
        if bool(both.any()):
            self.meetings.append(torch.stack([one[both], other[both]]).unique(dim=1))

    def pairs(self) -> np.ndarray:
        """Return the labels (2, k) that meet, a row for each of the two sides."""
        return torch.cat(self.meetings, 1).numpy() if self.meetings else np.zeros((2, 0), np.int32)

    def sets(self) -> np.ndarray:
        """(count,) for each label the least label of those that hang together with it."""
        meetings = self.pairs()
        edges = coo_matrix((np.ones(meetings.shape[1], bool), tuple(meetings)), shape=(self.count, self.count))
        _, numbers = connected_components(edges, directed=False)
        return np.asarray(np.unique(numbers, return_index=True)[1][numbers])

    def settled(self, labels: Tensor) -> Tensor:
        """The labels, each as the least of its set."""
        return torch.from_numpy(self.sets().astype(np.int32))[labels.long()]

    def are_of_one_layer(self, labels: Tensor, dims: Sequence[int]) -> bool:
        """Return whether several channels of one layer, or of one layer's inputs, lie along these dimensions."""
        starts = torch.tensor(sorted(start for start, _ in self.first.values()), dtype=torch.int32)
        rows = labels.movedim(tuple(dims), tuple(range(-len(dims), 0))).flatten(-len(dims)).sort(-1).values.contiguous()
        holders = torch.bucketize(rows, starts, right=True)
        one, other = slice(None, -1), slice(1, None)
        differ = (rows[..., one] != rows[..., other]) & (rows[..., one] > 0)
        return bool((differ & (holders[..., one] == holders[..., other])).any())

    def lose(self, labels: Tensor, reason: str) -> None:
        """Note that these labels cannot be followed any further."""
        found = labels[labels > 0].unique()
        if len(found):
            self.lost.append((found, reason))


def find_varying(labels: Tensor) -> list[int]:
    """Return the dimensions along which the labels are not all the same."""
    dims = range(labels.ndim)
    return [dim for dim in dims if labels.shape[dim] > 1 and bool((labels != labels.narrow(dim, 0, 1)).any())]


def keeps_order(before: torch.Size, dim: int, after: torch.Size) -> bool:
    """Whether a reshape leaves a dimension as it is, or only joins it with those behind it."""
    leading = math.prod(before[:dim])
    trailing = math.prod(before[dim + 1 :])
    starts = [math.prod(after[:place]) for place in range(len(after))]
    return any(start == leading and size in (before[dim], before[dim] * trailing) for start, size in zip(starts, after))
