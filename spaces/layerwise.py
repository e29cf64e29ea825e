"""Per-layer menus of sparsity, precision, rank, rewrites, channels and blocks; tied layers share one choice."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..policies.dead import why_kept
from ..policies.graph import ChannelGroup, ModelGraph
from ..policies.plan import unmergeable
from ..policies.policy import Policy, Step
from ..policies.techniques import build
from ..policies.techniques.base import Clashing, LayerInfo
from .base import Choices, SuggestTrial
from .groups import group_steps
from .menus import KNOBS, Menu, make_units
from .precision import is_generated, precision_pair
from .steps import DROPPERS, factor_step, factor_steps, pruning_step, rewrite_steps
from .thresholds import sparsities_by_threshold

__all__ = ["KNOBS", "LayerwiseSpace", "Menu", "factor_step", "make_units"]

DROP, DROP_DEAD = Step.of("drop_branch"), Step.of("drop_dead")
PROPOSAL = "proposal"
MOST_OPERATIONS = 1e12
"""Solving a layer's rows takes about as many; above it a layer falls back to magnitude and to the nearest value."""


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
    second_order
        Whether weights that are left make up for those that go or are rounded, and factors are those of the outputs, where
        a layer allows it.
    prune
        Which weights go: a word of ``steps.PRUNERS``; ``auto``: ``obs`` where ``second_order`` allows it, else ``magnitude``; or
        ``n_of_m``: as many of each group of inputs.
    drop
        Which channels go: a word of ``steps.DROPPERS``; where neurons cannot be merged, those of least energy.
    drop_dead
        Whether channels that pruning leaves without a connection are dropped.
    added
        Sparsities of each unit's menu that are there for the proposals alone.
    proposals
        Unit -> its sparsity, for each sparsity of the whole network; see ``with_thresholds``.
    """

    graph: ModelGraph
    units: Mapping[str, tuple[str, ...]]
    menus: Mapping[str, Menu]
    multiple: int = 8
    factorize: str = "svd_spatial"
    second_order: bool = False
    prune: str = "auto"
    drop: str = "energy"
    drop_dead: bool = False
    added: Mapping[str, frozenset[float]] = field(default_factory=dict)
    proposals: tuple[Mapping[str, float], ...] = ()
    _cache: dict[tuple[object, ...], tuple[Step, ...]] = field(default_factory=dict, repr=False, compare=False)

    def menu(self) -> dict[str, Sequence[object]]:
        """Knobs that are a real choice, ``unit/knob`` -> options."""
        knobs: dict[str, Sequence[object]] = {}
        gone = self._gone({name: (DROP,) for u, names in self.units.items() if self._drops(u) for name in names})
        for unit, names in self.units.items():
            layers = [self.graph.layers[name] for name in names if name not in gone]
            for knob in KNOBS:
                options = getattr(self.menus[unit], knob)
                if len(options) > 1 and self._matters(unit, layers, knob, options):
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
        gone = self._gone(layers)
        return Policy({name: steps for name, steps in layers.items() if name not in gone})

    def choices(self, policy: Policy) -> Choices | None:
        """The choices that give this policy, unit by unit."""
        chosen: Choices = {}
        knobs, gone = self.menu(), self._gone(policy.layers)
        for unit, members in self.units.items():
            names = [name for name in members if name not in gone]
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
        """Every layer alike: the dense network, each option alone, then precision with sparsity and with channels.

        Then the proposals: one threshold for all layers, alone and with each precision.

        No block is dropped: without all of them at once, little is left of a network.
        """
        knobs = self.menu()
        plain = {name: self._plain(name, options) for name, options in knobs.items()}
        longest = {
            knob: max((len(i) for name, i in plain.items() if name.endswith("/" + knob)), default=1) for knob in KNOBS
        }
        settings: list[dict[str, int]] = [{}]
        settings += [{knob: i} for knob in reversed(KNOBS[1:]) for i in range(1, longest[knob])]
        for other in ("channels", "sparsity", "rank", "rewrite"):
            pairs = itertools.product(range(1, longest[other]), range(1, longest["precision"]))
            settings += [{other: i, "precision": j} for i, j in pairs]
        pairs = itertools.product(range(len(self.proposals)), range(longest["precision"]))
        settings += [{PROPOSAL: i, "precision": j} for i, j in pairs]
        seen = set()
        for setting in settings:
            chosen: Choices = {
                name: i[min(setting.get(name.rpartition("/")[2], 0), len(i) - 1)] for name, i in plain.items()
            }
            chosen |= self._at_thresholds(knobs, setting.get(PROPOSAL))
            if tuple(chosen.values()) not in seen:
                seen.add(tuple(chosen.values()))
                yield chosen

    def _plain(self, knob: str, options: Sequence[object]) -> list[int]:
        """Indices of the options that were given, not added for a proposal."""
        unit, _, kind = knob.rpartition("/")
        added = self.added.get(unit, frozenset()) if kind == "sparsity" else frozenset()
        return [index for index, option in enumerate(options) if option not in added]

    def _at_thresholds(self, knobs: Mapping[str, Sequence[object]], proposal: int | None) -> Choices:
        """Each unit's sparsity in a proposal."""
        wanted = {} if proposal is None else self.proposals[proposal]
        names = {unit: f"{unit}/sparsity" for unit in wanted if f"{unit}/sparsity" in knobs}
        return {name: list(knobs[name]).index(wanted[unit]) for unit, name in names.items()}

    def variants(self, most: int) -> dict[str, tuple[Choices, ...]]:
        """The product of each unit's menus; of long menus, interior options are left out until ``most`` variants remain."""
        knobs = self.menu()
        out: dict[str, tuple[Choices, ...]] = {}
        for unit, names in self.units.items():
            mine = {knob: len(knobs[f"{unit}/{knob}"]) for knob in KNOBS if f"{unit}/{knob}" in knobs}
            if not mine:
                continue
            distinct: dict[tuple[tuple[Step, ...], ...], Choices] = {}
            # Of a layer that starts a block, all variants without the block are one.
            alone = "blocks" in mine and all(self._starts_branch(name) for name in names)
            for indices in itertools.product(*_thinned(list(mine.values()), 2 * most - 2 if alone else most)):
                chosen: Choices = {f"{unit}/{knob}": index for knob, index in zip(mine, indices)}
                layers = self.policy(chosen).layers
                distinct.setdefault(tuple(layers.get(name, ()) for name in names), chosen)
            out[unit] = tuple(distinct.values())
        return out

    def central(self) -> Choices:
        """The middle option of each knob, with all channels and blocks kept and no layer rewritten by choice."""
        kept = ("/blocks", "/channels", "/rewrite")
        return {name: 0 if name.endswith(kept) else len(options) // 2 for name, options in self.menu().items()}

    def alone(self, unit: str, chosen: Mapping[str, float | int | str]) -> Policy:
        """The policy that treats one unit as chosen and leaves all other layers dense."""
        whole = self.policy(chosen)
        return Policy({name: whole.layers.get(name, ()) for name in self.units[unit]})

    def without(self, units: Collection[str]) -> LayerwiseSpace:
        """The same space with some units left dense."""
        return replace(self, units={unit: names for unit, names in self.units.items() if unit not in units}, _cache={})

    def with_thresholds(self, weights: Mapping[str, np.ndarray], totals: Sequence[float]) -> LayerwiseSpace:
        """The same space that also proposes one magnitude threshold for all these units, for each total sparsity.

        Parameters
        ----------
        weights
            Unit -> the weights of its layers; units that are not named take no part.
        totals
            Shares of all these weights that go, in (0, 1).
        """
        proposals = tuple(sparsities_by_threshold(weights, total) for total in totals)
        menus, added = dict(self.menus), {}
        for unit in weights:
            given = menus[unit].sparsity
            added[unit] = frozenset(proposal[unit] for proposal in proposals) - set(given)
            menus[unit] = replace(menus[unit], sparsity=tuple(sorted({*given, *added[unit]})))
        return replace(self, menus=menus, added=added, proposals=proposals, _cache={})

    def _starts_branch(self, layer: str) -> bool:
        branch = self.graph.branch_of(layer)
        return branch is not None and branch.root == layer

    def _gone(self, layers: Mapping[str, tuple[Step, ...]]) -> set[str]:
        """Layers that are gone with a branch that starts before them."""
        dropped = [branch for branch in self.graph.branches if DROP in layers.get(branch.root, ())]
        return {name for branch in dropped for name in branch.layers if name != branch.root}

    def _drops(self, unit: str) -> bool:
        """Whether blocks that start in the unit are dropped without a choice."""
        return self.menus[unit].blocks == ("drop",)

    def _matters(self, unit: str, layers: Sequence[LayerInfo], knob: str, options: Sequence[object]) -> bool:
        neutral = {name: getattr(self.menus[unit], name)[0] for name in KNOBS}
        return any(len({self._steps(layer, {**neutral, knob: option}) for option in options}) > 1 for layer in layers)

    def _steps(self, layer: LayerInfo, options: Mapping[str, object]) -> tuple[Step, ...]:
        key = (layer.name, *options.values())
        if key not in self._cache:
            steps = [step for step in self._wanted(layer, options) if _fits(step, layer)]
            self._cache[key] = tuple(steps)
        return self._cache[key]

    def _wanted(self, layer: LayerInfo, options: Mapping[str, object]) -> Iterator[Step]:
        if options["blocks"] == "drop" and self._starts_branch(layer.name):
            yield DROP
            return
        channels = float(str(options["channels"]))
        if channels < 1:
            group = self.graph.group_of(layer.name)
            if group is not None and group.refusal is None and group.root == layer.name:
                yield self._dropping(group, round(1 - channels, 6))
        factors = self._in_place(layer, str(options["rewrite"]), float(str(options["rank"])))
        if factors is not None:
            yield factors
        sparsity, precision = float(str(options["sparsity"])), str(options["precision"])
        # Zeros would not be kept in a weight that is made from few parameters.
        # A depthwise layer has few weights and each of them matters: leaving some out costs much and saves next to nothing.
        pruned = sparsity > 0 and layer.groups == 1 and not is_generated(precision)
        if pruned:
            yield self._pruning(layer, sparsity, factors)
        # Behind second-order pruning it costs seconds a layer and lowers the network's error no further.
        steps = precision_pair(precision)
        if steps is not None:
            yield steps[0] if sparsity > 0 else self._best(layer, steps, factors)
        if pruned and self.drop_dead and self._can_empty(layer):
            yield DROP_DEAD

    def _in_place(self, layer: LayerInfo, rewrite: str, rank: float) -> Step | None:
        """What puts several layers in the layer's place: the rewrite where it fits, else the factorization where one does."""
        pairs = [rewrite_steps(layer, rewrite), factor_steps(layer, rank, self.factorize) if rank < 1 else None]
        wanted = [self._best(layer, pair) for pair in pairs if pair is not None]
        return next((step for step in wanted if _fits(step, layer)), None)

    def _can_empty(self, layer: LayerInfo) -> bool:
        group = self.graph.group_of(layer.name)
        makes = group is not None and group.refusal is None and group.root == layer.name
        return makes and group is not None and why_kept(group, ()) is None

    def _dropping(self, group: ChannelGroup, sparsity: float) -> Step:
        instead = self.drop == "merge" and unmergeable(group, self.graph) is not None
        technique, fixed = DROPPERS["energy" if instead else self.drop]
        return Step.of(technique, sparsity=sparsity, multiple=self.multiple, **fixed)

    def _pruning(self, layer: LayerInfo, sparsity: float, factors: Step | None) -> Step:
        plain = pruning_step("magnitude", sparsity)
        if self.prune == "auto":
            return self._best(layer, (plain, pruning_step("obs", sparsity)), factors)
        if self.prune == "n_of_m":
            return self._best(layer, group_steps(sparsity), factors)
        step = pruning_step(self.prune, sparsity)
        return step if build(step).check(layer) is None else plain

    def _best(self, layer: LayerInfo, steps: tuple[Step, Step], factors: Step | None = None) -> Step:
        """The second-order step of a pair, if it is wanted and the layer and its factors can have it."""
        plain, second_order = steps
        affordable = layer.weights * math.prod(layer.weight_shape[1:]) ** 2 <= MOST_OPERATIONS
        if not self.second_order or not affordable or build(second_order).check(layer) is not None:
            return plain
        before, technique = None if factors is None else build(factors), build(second_order)
        clashes = isinstance(before, Clashing) and before.clash(technique) is not None
        return plain if clashes else second_order


def _fits(step: Step, layer: LayerInfo) -> bool:
    technique = build(step)
    return technique.check(layer) is None and not technique.is_identity(layer)


def _thinned(counts: list[int], most: int) -> list[list[int]]:
    """Indices of each menu, evenly spread, such that their product is at most ``most``."""
    kept = list(counts)
    while math.prod(kept) > most and max(kept) > 2:
        kept[kept.index(max(kept))] -= 1
    return [sorted({round(i * (n - 1) / max(1, k - 1)) for i in range(k)}) for n, k in zip(counts, kept)]
