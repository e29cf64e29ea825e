"""Early exits: classifiers at some of a network's modules, so that easy pictures leave it early (1709.01686, section 3)."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from .errors import ModelError
from .own_network import into_evaluation

SIDE = 4
"""Maps are averaged to at most so many places a side before they are classified."""
MOST_SHARE = 0.9
"""Of the network's cost before an exit: later ones save nothing."""


class ExitHead(nn.Sequential):
    """One linear layer on normalised features (N, C), or on maps (N, C, H, W) averaged to at most 4x4 places.

    Parameters
    ----------
    features
        What it reads, for its shape.
    num_classes
        Outputs.
    channels
        Of a 3x3 convolution of stride 2 in front of it, on maps; none where 0. The exits of 1709.01686 have one or more.
    """

    def __init__(self, features: Tensor, num_classes: int, channels: int = 0) -> None:
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        if features.ndim == 4:
            if channels:
                parts["conv"] = nn.Conv2d(features.shape[1], channels, 3, stride=2, padding=1, bias=False)
                parts["bn"], parts["relu"] = nn.BatchNorm2d(channels), nn.ReLU()
                features = features.new_zeros(1, channels, *(-(-side // 2) for side in features.shape[2:]))
            height, width = (-(-side // SIDE) for side in features.shape[2:])
            parts["pool"] = nn.AvgPool2d((height, width), ceil_mode=True)
            features = parts["pool"](features).flatten(1)
        count = features.shape[1]
        super().__init__(
            parts | {"flatten": nn.Flatten(), "norm": nn.BatchNorm1d(count), "fc": nn.Linear(count, num_classes)}
        )


class ExitNetwork(nn.Module):
    """A network with exits.

    Parameters
    ----------
    backbone
        The network; it is copied.
    after
        Names of modules behind whose output there is an exit, in the order of the forward pass.
    example
        A picture (1, C, H, W).
    channels
        Of each exit's convolution on maps; without one where 0.

    Raises
    ------
    ModelError
        Where a module is unknown, is not called once, gives something else than maps or features, or comes out of order.
    """

    def __init__(self, backbone: nn.Module, after: Sequence[str], example: Tensor, channels: int = 0) -> None:
        super().__init__()
        self.backbone = into_evaluation(copy.deepcopy(backbone))
        self.after = tuple(after)
        self.is_frozen = True
        self.latest: tuple[Tensor, ...] = ()
        outputs = _outputs_of(self.backbone, self.after, example)
        with torch.no_grad():
            num_classes = self.backbone(example).shape[1]
        self.heads = nn.ModuleList([ExitHead(features, num_classes, channels) for features in outputs])

    def forward(self, x: Tensor) -> Tensor:
        """The last logits (N, K); while it trains, those of all exits are ``latest``, for a loss of them all."""
        logits = self.exits(x)
        self.latest = logits if self.training else ()
        return logits[-1]

    def exits(self, x: Tensor, upto: int | None = None) -> tuple[Tensor, ...]:
        """The logits (N, K) of every exit and at last of the network itself, or of one exit alone: the rest is not run."""
        if upto is not None:
            return (self.heads[upto](self.features(x, upto)),)
        seen: dict[str, Tensor] = {}
        learns = torch.is_grad_enabled() and not self.is_frozen
        with _recorded(self.backbone, self.after, seen, stop=False), torch.set_grad_enabled(learns):
            last = self.backbone(x)
        return (*(head(seen[name]) for head, name in zip(self.heads, self.after)), last)

    def features(self, x: Tensor, number: int) -> Tensor:
        """What an exit reads; nothing behind it is run."""
        name, seen = self.after[number], dict[str, Tensor]()
        with _recorded(self.backbone, [name], seen, stop=True), suppress(_LeftError):
            self.backbone(x)
        return seen[name]

    def tuned(self, is_tuned: bool) -> ExitNetwork:
        """This network, whose backbone learns too or stays as it is."""
        self.is_frozen = not is_tuned
        self.backbone.requires_grad_(is_tuned)
        return self

    def train(self, mode: bool = True) -> ExitNetwork:
        """A frozen backbone stays in evaluation mode: its batch norms must not move."""
        super().train(mode)
        self.latest = ()
        if self.is_frozen:
            self.backbone.eval()
        return self


class EveryExit(nn.Module):
    """The logits of all exits side by side (N, exits * K): what is exported, and cut apart again in the graph."""

    def __init__(self, network: ExitNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.network.exits(x), 1)


def places_for_exits(cost_before: Mapping[str, float], count: int) -> list[str]:
    """Modules at about equal shares of the network's cost, behind each of which there may be an exit.

    Parameters
    ----------
    cost_before
        Module -> the cost of all that is run until its output stands, for modules that may be chosen.
    count
        How many exits.
    """
    total = max(cost_before.values(), default=0.0)
    # Of modules at one cost the last: what a batch norm and an activation have made of a convolution.
    last = {cost: name for name, cost in cost_before.items() if cost < MOST_SHARE * total}
    chosen: list[str] = []
    for share in range(1, count + 1):
        left = [name for name in last.values() if name not in chosen]
        if left:
            wanted = total * share / (count + 1)
            chosen.append(min(left, key=lambda name: abs(cost_before[name] - wanted)))
    return sorted(chosen, key=lambda name: cost_before[name])


def candidates_for_exits(model: nn.Module, example: Tensor) -> list[str]:
    """Modules of the first two levels that are called once and give maps or features, in the order of the forward pass."""
    names = [name for name, _ in model.named_modules() if name and name.count(".") <= 1]
    calls: dict[str, list[Any]] = {name: [] for name in names}
    order: list[str] = []

    def note(name: str, output: Any) -> None:
        calls[name].append(output)
        order.append(name)

    handles = [
        model.get_submodule(name).register_forward_hook(lambda *args, name=name: note(name, args[-1])) for name in names
    ]
    try:
        with torch.no_grad():
            into_evaluation(model)(example)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in dict.fromkeys(order) if len(calls[name]) == 1 and _is_classifiable(calls[name][0])]


class _LeftError(Exception):
    """The exit that was asked for is reached."""


@contextmanager
def _recorded(model: nn.Module, names: Sequence[str], seen: dict[str, Tensor], stop: bool) -> Iterator[None]:
    def note(name: str, output: Tensor) -> None:
        # What comes later in the network may overwrite it.
        seen[name] = output if stop else output.clone()
        if stop:
            raise _LeftError

    handles = [
        model.get_submodule(name).register_forward_hook(lambda *args, name=name: note(name, args[-1])) for name in names
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _outputs_of(model: nn.Module, after: Sequence[str], example: Tensor) -> list[Tensor]:
    known = candidates_for_exits(model, example)
    unknown = [name for name in after if name not in known]
    if unknown or not after:
        raise ModelError(
            f"exits.after: expected modules that are called once and give maps or features, such as {', '.join(known[:12])};"
            f" got {', '.join(unknown) or 'none'}"
        )
    if sorted(after, key=known.index) != list(after):
        raise ModelError(
            f"exits.after: expected the order of the forward pass, {', '.join(sorted(after, key=known.index))}"
        )
    seen: dict[str, Tensor] = {}
    with _recorded(model, after, seen, stop=False), torch.no_grad():
        model(example)
    return [seen[name] for name in after]


def _is_classifiable(output: object) -> bool:
    return isinstance(output, Tensor) and output.ndim in (2, 4) and output.is_floating_point()
