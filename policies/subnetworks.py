"""A smaller network of a family inside a larger one: which of the larger one's weights are its own.

Every layer takes the first channels of the larger one's layer of the same name (1812.08928, section 3.1). What reads them
takes the inputs that stand for the same channels, found by following channels through both networks, so that joined maps
(SqueezeNet, Inception) fit too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from .errors import PolicyError
from .labels import follow_channels
from .slicing import Axis

Along = slice | Tensor
Slices = dict[str, tuple[Along, ...]]


@dataclass(frozen=True)
class Channels:
    """A network with its channels followed.

    Parameters
    ----------
    model
        The network.
    holders
        Module and axis -> (channels,) the number of the set that each channel hangs together with.
    """

    model: nn.Module
    holders: Mapping[tuple[str, Axis], np.ndarray]

    @classmethod
    def of(cls, model: nn.Module, example: Tensor) -> Channels:
        """Follow the channels of a network on a picture (1, C, H, W)."""
        was_training = model.training
        found = follow_channels(model.eval(), example)
        model.train(was_training)
        sets = found.sets()
        return cls(model, {key: sets[start : start + count] for key, (start, count) in found.first.items()})


def sliced(whole: Mapping[str, Tensor], slices: Slices) -> dict[str, Tensor]:
    """The part's tensors out of the whole's; gradients reach the whole's."""
    return {name: whole[name][index] if index else whole[name] for name, index in slices.items()}


def slices_of(whole: Channels, part: Channels) -> Slices:
    """For each tensor of the part's state the index of its numbers in the whole's tensor of the same name.

    Raises
    ------
    PolicyError
        Where the part is not contained in the whole: a layer that the whole has not, or has of another kind, with another
        kernel, or with fewer channels.
    """
    containment = _Containment(whole, part, _matched(whole, part))
    state = whole.model.state_dict()
    return {name: containment.index(name, tensor, state) for name, tensor in part.model.state_dict().items()}


def _matched(whole: Channels, part: Channels) -> dict[int, int]:
    """The part's sets of channels -> the whole's: the first channels of each layer that makes channels of its own."""
    found: dict[int, int] = {}
    for (name, axis), sets in part.holders.items():
        if axis == "in" or not _makes_channels(part.model.get_submodule(name)):
            continue
        theirs = whole.holders.get((name, axis))
        if theirs is None or len(theirs) < len(sets):
            raise PolicyError(
                f"shape: its '{name}' of {len(sets)} channels is not in the network that it is to be cut out of"
            )
        for ours, other in zip(sets.tolist(), theirs.tolist()):
            found.setdefault(ours, other)
    return found


def _makes_channels(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


@dataclass(frozen=True)
class _Containment:
    whole: Channels
    part: Channels
    sets: Mapping[int, int]

    def index(self, name: str, tensor: Tensor, state: Mapping[str, Tensor]) -> tuple[Along, ...]:
        """Of a tensor of the part."""
        layer = name.rpartition(".")[0]
        if name not in state:
            raise PolicyError(f"shape: its '{layer}' is not in the network that it is to be cut out of")
        if not tensor.ndim:
            return ()
        module = self.part.model.get_submodule(layer)
        along: tuple[Along, ...] = (self._along(layer, "out", len(tensor)),)
        if isinstance(module, nn.Linear | nn.Conv2d) and tensor.ndim > 1:
            in_groups = isinstance(module, nn.Conv2d) and module.groups > 1
            along += (slice(0, tensor.shape[1]) if in_groups else self._along(layer, "in", tensor.shape[1]),)
        if state[name][along].shape != tensor.shape:
            sides = f"{tuple(tensor.shape)} in {tuple(state[name].shape)}"
            raise PolicyError(f"shape: its '{name}' does not fit in that which it is to be cut out of: {sides}")
        return along

    def _along(self, layer: str, axis: Axis, channels: int) -> Along:
        """Where a layer's channels lie in the whole's layer."""
        if (layer, axis) not in self.part.holders or (layer, axis) not in self.whole.holders:
            raise PolicyError(f"shape: '{layer}' cannot be cut out of a larger layer: its channels are not followed")
        theirs = self.whole.holders[layer, axis]
        wanted = [self.sets.get(int(number)) for number in self.part.holders[layer, axis]]
        # Pictures have no channels of their own. Where blocks are left out, the next reads what came before them.
        if not set(wanted) & set(theirs.tolist()):
            return slice(0, channels)
        places = _places(theirs.tolist(), wanted)
        if places is None:
            raise PolicyError(f"shape: '{layer}' reads channels that the layer which it is to be cut out of does not")
        return slice(0, channels) if places == list(range(channels)) else torch.tensor(places)


def _places(sets: Iterable[int], wanted: list[int | None]) -> list[int] | None:
    """The place of each wanted set, the first one not taken yet; ``None`` where there is none."""
    free: dict[int | None, list[int]] = {}
    for place, number in reversed(list(enumerate(sets))):
        free.setdefault(number, []).append(place)
    places = [free[number].pop() if free.get(number) else None for number in wanted]
    return None if None in places else cast(list[int], places)
