"""Parameters that several layers share: one tensor under several names.

A tie holds as long as all its layers keep the very tensor; it is then stored once. Where a policy changes one of the layers,
each of them has its own tensor from there on, and each is stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from torch import Tensor, nn


def tied_names(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """The names of each tensor that stands in several modules; a module in two places counts once."""
    names: dict[int, list[str]] = {}
    for name, tensor in _named(model).items():
        names.setdefault(id(tensor), []).append(name)
    return tuple(tuple(tied) for tied in names.values() if len(tied) > 1)


def names_told(model: nn.Module, ties: Sequence[Sequence[str]]) -> set[str]:
    """Names of tensors that the first names of their ties tell, where these hold in the network."""
    tensors = _named(model)
    held = [tie for tie in ties if len({id(tensors.get(name)) for name in tie}) == 1 and tie[0] in tensors]
    return {name for tie in held for name in tie[1:]}


def untie(model: nn.Module, ties: Iterable[Sequence[str]]) -> None:
    """Give each layer of these ties its own tensor, in place."""
    tensors = _named(model)
    for name in (name for tie in ties for name in tie[1:] if name in tensors):
        place, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(place), leaf, _own(tensors[name]))


def ties_touched(ties: Sequence[Sequence[str]], layers: Collection[str]) -> list[Sequence[str]]:
    """The ties that one of these layers has a part in."""
    return [tie for tie in ties if any(name.rpartition(".")[0] in layers for name in tie)]


def _own(tensor: Tensor) -> Tensor:
    value = tensor.detach().clone()
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{place}.{leaf}" if place else leaf: tensor
        for place, module in model.named_modules()
        for leaf, tensor in [*module._parameters.items(), *module._buffers.items()]
        if tensor is not None
    }
