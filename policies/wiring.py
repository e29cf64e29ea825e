"""Whether a smaller network's channels go where the larger one's went: labels are followed through it and compared.

A shuffle, a split or a slice moves channels by their numbers. Once some are dropped others have these numbers, and the
network may run, with the right shapes, and add up channels that have nothing to do with each other.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from .channel_labels import Labels
from .errors import CandidateError
from .labels import follow_channels
from .slicing import Axis, Lost


class RemainingLabels(Labels):
    """The labels that a larger network's modules have for the channels that are left of them.

    Parameters
    ----------
    larger
        The labels of the larger network.
    lost
        What was dropped from it.
    """

    def __init__(self, larger: Labels, lost: Lost) -> None:
        super().__init__(first=larger.first, count=larger.count)
        self._larger, self._lost = larger, lost

    def own(self, name: str, axis: Axis, channels: int) -> Tensor:
        if (name, axis) not in self._larger.first:
            raise CandidateError(f"'{name}' would work on channels that it does not work on now")
        start, total = self._larger.first[name, axis]
        gone = self._lost.get((name, axis), frozenset())
        labels = [start + place for place in range(total) if place not in gone]
        if len(labels) != channels:
            raise CandidateError(f"'{name}' would get {channels} channels of which {len(labels)} are known")
        return torch.tensor(labels, dtype=torch.int32)

    def scaled(self, name: str, module: nn.Module) -> int:
        # Of a module with one number for each channel, one may be left, which alone does not tell that it is such a module.
        tensors = [*module._parameters.values(), *module._buffers.values()]
        is_single = len(tensors) > 0 and all(tensor is not None and tensor.numel() == 1 for tensor in tensors)
        return int(is_single and (name, "out") in self._larger.first)


def check_wiring(larger: Labels, model: nn.Module, lost: Lost, example: Tensor) -> None:
    """Follow the channels of a smaller network, and compare what meets with what met in the larger one.

    Parameters
    ----------
    larger
        The larger network's labels, as ``follow_channels`` found them.
    model
        The smaller network.
    lost
        What it lost.
    example
        (1, C, H, W).

    Raises
    ------
    CandidateError
        Where a layer would work on other channels than in the larger network.
    """
    labels = RemainingLabels(larger, lost)
    try:
        follow_channels(model, example, labels)
    except CandidateError:
        raise
    # The forward pass is the user's own code and may raise anything once its shapes change.
    except Exception as error:
        raise CandidateError(f"the network no longer runs without the channels: {error}") from error
    dropped = [larger.first[key][0] + place for key, places in lost.items() if key in larger.first for place in places]
    is_left = np.ones(larger.count, bool)
    is_left[dropped] = False
    before = larger.pairs()
    expected = _codes(before[:, is_left[before].all(0)], larger.count)
    different = np.setxor1d(expected, _codes(labels.pairs(), larger.count))
    if len(different):
        number = max(divmod(int(different[0]), larger.count))
        raise CandidateError(f"'{_holder(larger, number)}' would work on other channels than it does now")


def _codes(pairs: np.ndarray, count: int) -> np.ndarray:
    """Return one number for each pair of labels (2, k), the same for both orders."""
    ordered = np.sort(pairs.astype(np.int64), axis=0)
    return np.unique(ordered[0] * count + ordered[1])


def _holder(labels: Labels, number: int) -> str:
    """Return the module that a label belongs to."""
    places = {key: range(start, start + channels) for key, (start, channels) in labels.first.items()}
    return next(name for (name, _), numbers in places.items() if number in numbers)
