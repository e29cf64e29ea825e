"""Per-layer menus of sparsity, precision, rank and channels; layers may be tied so that they share one choice."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from ..policies.errors import ConfigError
from ..policies.graph import ModelGraph
from ..policies.policy import Policy, Step
from ..policies.techniques import build
from ..policies.techniques.base import LayerInfo
from .base import Choices, SuggestTrial

KNOBS = ("channels", "rank", "sparsity", "precision")
AUTO_TIE_ABOVE = 16
_PRECISION = re.compile(r"float32|w(?P<bits>[2-8])(?P<act>a8)?|k(?P<clusters>\d{1,3})", re.ASCII)


@dataclass(frozen=True)
class Menu:
    """Options of one layer.

    Parameters
    ----------
    sparsity
        Shares of weights dropped.
    precision
        ``float32``, ``wBa8``, ``wB`` or ``kN``.
    rank
        Shares of the weights that factors keep.
    channels
        Shares of the channels kept.
    """

    sparsity: tuple[float, ...] = (0.0,)
    precision: tuple[str, ...] = ("float32",)
    rank: tuple[float, ...] = (1.0,)
    channels: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for name in KNOBS:
            if not getattr(self, name):
                raise ConfigError(f"space.{name}: a menu needs at least one option")
        for text in self.precision:
            match = _PRECISION.fullmatch(text)
            if match is None or (match["clusters"] and not 2 <= int(match["clusters"]) <= 256):
                raise ConfigError(
                    f"space.precision: expected float32, wBa8, wB (B from 2 to 8) or kN (N from 2 to 256); got '{text}'"
                )
        for share in self.sparsity:
            if not 0 <= share < 1:
                raise ConfigError(f"space.sparsity: shares lie in [0, 1), 0 leaves the layer as it is; got {share}")
        for name in ("rank", "channels"):
            for share in getattr(self, name):
                if not 0 < share <= 1:
                    raise ConfigError(f"space.{name}: shares lie in (0, 1], 1 leaves the layer as it is; got {share}")


@dataclass(frozen=True)
class LayerwiseSpace:
    """Menus for units of tied layers.

    Parameters
    ----------
    graph
        The network.
    units
        Layer names of each unit, in the order of the forward pass.
    menus
        Options of each unit.
    multiple
        Grid of channel counts.
    factorize
        Technique for convolutions.
    """

    graph: ModelGraph
    units: Mapping[str, tuple[str, ...]]
    menus: Mapping[str, Menu]
    multiple: int = 8
    factorize: str = "svd_spatial"
    _cache: dict[tuple[object, ...], tuple[Step, ...]] = field(default_factory=dict, repr=False, compare=False)

    def menu(self) -> dict[str, Sequence[object]]:
        """Knobs that are a real choice, ``unit/knob`` -> options."""
        knobs: dict[str, Sequence[object]] = {}
        for unit in self.units:
            for knob in KNOBS:
                options = getattr(self.menus[unit], knob)
                if len(options) > 1 and self._matters(unit, knob, options):
                    knobs[f"{unit}/{knob}"] = options
        return knobs

    def suggest(self, trial: SuggestTrial) -> Policy:
        """Ask for an index into each menu (options are ordered, so samplers may learn from neighbours)."""
        chosen: dict[str, int] = {}
        for knob, options in self.menu().items():
            chosen[knob] = trial.suggest_int(knob, 0, len(options) - 1)
        return self.policy(chosen)

    def policy(self, chosen: Mapping[str, float | int | str]) -> Policy:
        """The policy of the choices; a knob that is not named takes its menu's first option."""
        layers: dict[str, tuple[Step, ...]] = {}
        for unit, names in self.units.items():
            options = {knob: getattr(self.menus[unit], knob)[int(chosen.get(f"{unit}/{knob}", 0))] for knob in KNOBS}
            for name in names:
                layers[name] = self._steps(self.graph.layers[name], options)
        return Policy(layers)

    def choices(self, policy: Policy) -> Choices | None:
        """The choices that give this policy, unit by unit."""
        chosen: Choices = {}
        knobs = self.menu()
        for unit, names in self.units.items():
            mine = [knob for knob in KNOBS if f"{unit}/{knob}" in knobs]
            ranges = [range(len(getattr(self.menus[unit], knob))) for knob in mine]
            for indices in itertools.product(*ranges):
                attempt: Choices = {f"{unit}/{knob}": index for knob, index in zip(mine, indices)}
                made = self.policy(attempt).layers
                if all(made.get(name, ()) == policy.layers.get(name, ()) for name in names):
                    chosen |= attempt
                    break
            else:
                return None
        return chosen if self.policy(chosen) == policy else None

    def uniform(self) -> Iterator[Choices]:
        """Every layer alike: the dense network, each option alone, then precision with sparsity and with channels."""
        knobs = self.menu()
        longest = {
            knob: max((len(o) for name, o in knobs.items() if name.endswith("/" + knob)), default=1) for knob in KNOBS
        }
        settings: list[dict[str, int]] = [{}]
        settings += [{knob: i} for knob in reversed(KNOBS) for i in range(1, longest[knob])]
        for other in ("channels", "sparsity", "rank"):
            pairs = itertools.product(range(1, longest[other]), range(1, longest["precision"]))
            settings += [{other: i, "precision": j} for i, j in pairs]
        seen = set()
        for setting in settings:
            chosen: Choices = {
                name: min(setting.get(name.rpartition("/")[2], 0), len(o) - 1) for name, o in knobs.items()
            }
            if tuple(chosen.values()) not in seen:
                seen.add(tuple(chosen.values()))
                yield chosen

    def _matters(self, unit: str, knob: str, options: Sequence[object]) -> bool:
        neutral = {name: getattr(self.menus[unit], name)[0] for name in KNOBS}
        layers = [self.graph.layers[name] for name in self.units[unit]]
        return any(len({self._steps(layer, {**neutral, knob: option}) for option in options}) > 1 for layer in layers)

    def _steps(self, layer: LayerInfo, options: Mapping[str, object]) -> tuple[Step, ...]:
        key = (layer.name, *options.values())
        if key not in self._cache:
            steps = [step for step in self._wanted(layer, options) if _fits(step, layer)]
            self._cache[key] = tuple(steps)
        return self._cache[key]

    def _wanted(self, layer: LayerInfo, options: Mapping[str, object]) -> Iterator[Step]:
        channels, rank = float(str(options["channels"])), float(str(options["rank"]))
        if channels < 1:
            group = self.graph.group_of(layer.name)
            if group is not None and group.refusal is None and group.root == layer.name:
                yield Step.of("prune_channels", sparsity=round(1 - channels, 6), multiple=self.multiple)
        if rank < 1:
            yield factor_step(layer, rank, self.factorize)
        # A depthwise layer has few weights and each of them matters: leaving some out costs much and saves next to nothing.
        if float(str(options["sparsity"])) > 0 and layer.groups == 1:
            yield Step.of("prune_magnitude", sparsity=float(str(options["sparsity"])))
        yield from precision_step(str(options["precision"]))


def precision_step(text: str) -> Iterator[Step]:
    """The step of a precision such as ``w4a8`` or ``k16``; none for ``float32``."""
    match = _PRECISION.fullmatch(text)
    assert match is not None
    if match["bits"]:
        yield Step.of("quantize", bits=int(match["bits"]), activations="int8" if match["act"] else "float32")
    elif match["clusters"]:
        yield Step.of("share", clusters=int(match["clusters"]))


def factor_step(layer: LayerInfo, share: float, factorize: str) -> Step:
    """The factorization whose factors hold about this share of the layer's weights."""
    out, into = layer.weight_shape[:2]
    if layer.kind == "linear":
        return Step.of("svd", rank=_grid(share * out * into / (out + into)))
    height, width = layer.weight_shape[2:]
    if factorize == "svd_spatial":
        return Step.of("svd_spatial", rank=_grid(share * layer.weights / (into * height + out * width)))
    a, b = out * into * height * width, out * out + into * into
    scale = (-b + (b * b + 4 * a * share * layer.weights) ** 0.5) / (2 * a)
    return Step.of("tucker2", rank_in=_grid(scale * into), rank_out=_grid(scale * out))


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


def _fits(step: Step, layer: LayerInfo) -> bool:
    technique = build(step)
    return technique.check(layer) is None and not technique.is_identity(layer)


def _grid(rank: float) -> int:
    return max(1, round(rank)) if rank < 12 else round(rank / 8) * 8
