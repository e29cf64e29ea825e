"""Menus of a layer's options, and units of tied layers that share one choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..policies.errors import ConfigError
from ..policies.graph import ModelGraph
from .precision import precision_pair
from .steps import REWRITES

KNOBS = ("blocks", "channels", "rewrite", "rank", "sparsity", "precision")
BLOCKS = (("keep",), ("keep", "drop"), ("drop",))
AUTO_TIE_ABOVE = 16


@dataclass(frozen=True)
class Menu:
    """Options of one layer.

    Parameters
    ----------
    sparsity
        Shares of weights dropped.
    precision
        Words of ``precision.WORDS``, such as ``float32``, ``w8a8``, ``k16`` or ``binary``.
    rank
        Shares of the weights that factors keep.
    channels
        Shares of the channels kept.
    blocks
        ``keep``, and ``drop`` for the residual branch that starts with the layer.
    rewrite
        ``keep``, and words of ``steps.REWRITES`` for the layers that may stand in this one's place; a layer that is
        rewritten is not factorized.
    """

    sparsity: tuple[float, ...] = (0.0,)
    precision: tuple[str, ...] = ("float32",)
    rank: tuple[float, ...] = (1.0,)
    channels: tuple[float, ...] = (1.0,)
    blocks: tuple[str, ...] = ("keep",)
    rewrite: tuple[str, ...] = ("keep",)

    def __post_init__(self) -> None:
        for name in KNOBS:
            if not getattr(self, name):
                raise ConfigError(f"space.{name}: a menu needs at least one option")
        if self.blocks not in BLOCKS:
            raise ConfigError(
                f"space.blocks: expected [keep], [keep, drop] or [drop] in this order; got [{', '.join(self.blocks)}]"
            )
        for word in self.rewrite:
            if word not in REWRITES:
                raise ConfigError(f"space.rewrite: expected words of {', '.join(REWRITES)}; got '{word}'")
        for text in self.precision:
            precision_pair(text)
        for share in self.sparsity:
            if not 0 <= share < 1:
                raise ConfigError(f"space.sparsity: shares lie in [0, 1), 0 leaves the layer as it is; got {share}")
        for name in ("rank", "channels"):
            for share in getattr(self, name):
                if not 0 < share <= 1:
                    raise ConfigError(f"space.{name}: shares lie in (0, 1], 1 leaves the layer as it is; got {share}")


def make_units(
    graph: ModelGraph, tie: str | Sequence[Sequence[str]], skip: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Units of tied layers: each layer alone, by stage, all together, or by lists of name patterns.

    Raises
    ------
    ConfigError
        Where a pattern matches no layer, or nothing is left.
    """
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in graph.layers):
            raise ConfigError(f"space.skip: '{pattern}' matches no layer; the network has {', '.join(graph.layers)}")
    names = [name for name in graph.layers if not any(fnmatchcase(name, pattern) for pattern in skip)]
    if not names:
        raise ConfigError("space.skip leaves no layer to compress; skip fewer")
    if tie == "auto":
        tie = "none" if len(names) <= AUTO_TIE_ABOVE else "stage"
    if tie == "none":
        return {name: (name,) for name in names}
    if tie == "all":
        return {"all": tuple(names)}
    if tie == "stage":
        return _grouped({name: _stage(name) for name in names})
    assert not isinstance(tie, str)
    return _tied(names, tie)


def _tied(names: Sequence[str], tie: Sequence[Sequence[str]]) -> dict[str, tuple[str, ...]]:
    owner: dict[str, str] = {}
    for patterns in tie:
        matched = [name for name in names if any(fnmatchcase(name, p) for p in patterns) and name not in owner]
        if not matched:
            raise ConfigError(
                f"space.tie: {list(patterns)} matches no layer that is still free; the network has {', '.join(names)}"
            )
        owner |= dict.fromkeys(matched, "+".join(patterns))
    return _grouped({name: owner.get(name, name) for name in names})


def _grouped(owner: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    units: dict[str, list[str]] = {}
    for name, unit in owner.items():
        units.setdefault(unit, []).append(name)
    return {unit: tuple(members) for unit, members in units.items()}


def _stage(name: str) -> str:
    parts = name.split(".")
    return (
        ".".join(parts[:2])
        if len(parts) > 2 and parts[1].isdigit() and parts[0] in ("blocks", "stages", "features", "layers")
        else parts[0]
    )
