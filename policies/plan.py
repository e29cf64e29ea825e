"""Policy + graph -> plan: every complaint is raised here, before a weight is touched. Pure."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from .architectures.shapes import canonical
from .branches import Branch
from .collapsing import Collapsed
from .dead import why_kept
from .errors import PolicyError
from .graph import ChannelGroup, ModelGraph
from .merged_layers import collapsed_layers, on_merged, with_merged
from .policy import Policy, Scalar, Step
from .techniques import (
    ChannelTechnique,
    Collapse,
    DropBranch,
    DropDead,
    MergeNeurons,
    Technique,
    WholeTechnique,
    build,
    spelled_out,
)
from .techniques.base import Clashing, LayerInfo, Phase


@dataclass(frozen=True)
class LayerPlan:
    """What is done to one layer, in the order of the phases.

    Parameters
    ----------
    layer
        The layer as it stands when its turn comes, channels already dropped.
    techniques
        At most one a phase, ordered.
    """

    layer: LayerInfo
    techniques: tuple[Technique, ...]


@dataclass(frozen=True)
class Plan:
    """A policy that fits a network.

    Parameters
    ----------
    policy
        Normalised: steps without effect left out, those on layers of a dropped branch too, defaults written out, channel
        steps moved to the root of their group. Its digest is the identity of a candidate.
    channels
        The channel step of each group's root.
    layers
        What is done to each layer that is touched by itself.
    dropped
        Residual branches that are dropped whole.
    dead
        Roots of the groups whose channels without a connection are dropped once weights are pruned.
    collapsed
        ReLUs that go, and with some the layers before them, in the network's order.
    ties
        The names of each tensor that several layers of the network share.
    """

    policy: Policy
    channels: Mapping[str, ChannelTechnique]
    layers: tuple[LayerPlan, ...]
    dropped: tuple[Branch, ...] = ()
    dead: tuple[str, ...] = ()
    collapsed: tuple[Collapsed, ...] = ()
    ties: tuple[tuple[str, ...], ...] = ()


def make_plan(policy: Policy, graph: ModelGraph) -> Plan:
    """Fit a policy to a network.

    Raises
    ------
    PolicyError
        With every complaint, a line each: a shape that cannot be or is not the network's, unknown layers or techniques,
        hyper-parameters out of range, techniques that cannot be applied to their layer, two of one phase, coupled layers
        that are given different channel steps.
    """
    complaints: list[str] = []
    shape = _shape(policy, graph, complaints)
    if policy.exits:
        complaints.append("exits: a network with early exits is made by 'paretopress exits', not by a plan")
    channels: dict[str, tuple[ChannelTechnique, Step]] = {}
    wanted: dict[str, list[tuple[Technique, Step]]] = {}
    dead: list[str] = []
    asked = _read(policy, graph, complaints)
    dropped = _dropped([name for name, technique in asked if isinstance(technique, DropBranch)], graph, complaints)
    gone = {layer for branch in dropped for layer in branch.layers}
    collapses = {name: t for name, t in asked if isinstance(t, Collapse) and name not in gone}
    collapsed = collapsed_layers(collapses, graph, complaints)
    for name, technique in asked:
        if isinstance(technique, DropBranch | Collapse) or name in gone:
            continue
        if isinstance(technique, DropDead):
            dead.append(name)
            continue
        step = spelled_out(technique)
        if isinstance(technique, ChannelTechnique):
            complaints.extend(_place_channels(name, technique, step, graph, channels))
        else:
            wanted.setdefault(name, []).append((technique, step))
    channels = {root: pair for root, pair in channels.items() if root not in gone}
    kept = {root: (t, s) for root, (t, s) in channels.items() if not t.is_identity(graph.layers[root])}
    shapes = with_merged(_shapes_after(graph, {root: technique for root, (technique, _) in kept.items()}), collapsed)
    plans, normalised = [], {root: [step] for root, (_, step) in kept.items()}
    normalised |= {branch.root: [Step.of(DropBranch.name)] for branch in dropped}
    for one in collapsed:
        normalised.setdefault(one.activation.layer, []).append(spelled_out(Collapse(one.merge)))
    complaints.extend(on_merged(collapsed, graph, {*kept, *wanted}, dead))
    for name, pairs in wanted.items():
        plan, steps_kept = _plan_layer(shapes[name], graph.layers[name], pairs, complaints)
        normalised.setdefault(name, []).extend(steps_kept)
        if plan.techniques:
            plans.append(plan)
    emptied = _emptied(dead, graph, plans, complaints)
    for root in emptied:
        normalised.setdefault(root, []).append(Step.of(DropDead.name))
    if complaints:
        raise PolicyError("the policy does not fit the network:\n  " + "\n  ".join(complaints))
    final = Policy({name: tuple(steps) for name, steps in normalised.items()}, shape=shape)
    order = {name: position for position, name in enumerate(graph.layers)}
    plans.sort(key=lambda p: order[p.layer.name])
    channel_steps = {root: technique for root, (technique, _) in kept.items()}
    return Plan(final, channel_steps, tuple(plans), dropped, emptied, collapsed, graph.ties)


def before(plan: Plan, phase: Phase) -> Plan:
    """The plan's earlier phases alone, dead channels kept: what is pruned while it trains may come back."""
    return _only(plan, lambda t: t.phase < phase)


def before_rising_sparsity(plan: Plan) -> Plan:
    """The plan without what is left to pruning while training, and without what follows on pruning."""
    return _only(plan, lambda t: t.phase < Phase.PRUNE or (t.phase == Phase.PRUNE and not hasattr(t, "sparsity")))


def _only(plan: Plan, wanted: Callable[[Technique], bool]) -> Plan:
    layers = [replace(p, techniques=tuple(t for t in p.techniques if wanted(t))) for p in plan.layers]
    return replace(plan, layers=tuple(p for p in layers if p.techniques), dead=())


def _shape(policy: Policy, graph: ModelGraph, complaints: list[str]) -> dict[str, Scalar]:
    """The policy's shape, written one way."""
    try:
        wanted = canonical(policy.shape)
    except PolicyError as error:
        complaints.append(str(error))
        return {}
    if wanted and wanted != canonical(graph.shape):
        given = f"has {_shown(canonical(graph.shape))}" if graph.shape else "was not built from a shape"
        complaints.append(
            f"shape: the policy asks for {_shown(wanted)}; the network {given}; build it by architectures.shapes.network_of"
        )
    return wanted


def _shown(shape: Mapping[str, Scalar]) -> str:
    return ", ".join(f"{name}={value}" for name, value in shape.items())


def _read(
    policy: Policy, graph: ModelGraph, complaints: list[str]
) -> list[tuple[str, Technique | WholeTechnique | ChannelTechnique]]:
    """The techniques that the policy names, each with its layer."""
    found = []
    for name, steps in policy.layers.items():
        if name not in graph.layers:
            complaints.append(_unknown_layer(name, graph.layers))
            continue
        for step in steps:
            try:
                found.append((name, build(step)))
            except PolicyError as error:
                complaints.append(f"layer '{name}': {error}")
    return found


def _dropped(names: Iterable[str], graph: ModelGraph, complaints: list[str]) -> tuple[Branch, ...]:
    """The branches that start with these layers, in the network's order; none that lies in another of them."""
    roots = {branch.root: branch for branch in graph.branches}
    wanted = set(names)
    for name in sorted(wanted - set(roots)):
        known = f"these layers do: {', '.join(roots)}" if roots else "the network has none"
        complaints.append(
            f"layer '{name}': drop_branch cannot be applied: it does not start a residual branch that can be dropped;"
            f" {known}"
        )
    chosen = [branch for root, branch in roots.items() if root in wanted]
    return tuple(b for b in chosen if not any(b.root in other.layers for other in chosen if other is not b))


def _plan_layer(
    layer: LayerInfo, whole: LayerInfo, pairs: Iterable[tuple[Technique, Step]], complaints: list[str]
) -> tuple[LayerPlan, list[Step]]:
    chosen: dict[int, tuple[Technique, Step]] = {}
    for technique, step in sorted(pairs, key=lambda pair: pair[0].phase):
        reason = technique.check(layer)
        # Factors that pay on the whole layer but not on what is left of it are as a full rank: without effect.
        if reason is not None and technique.phase == Phase.FACTORIZE and technique.check(whole) is None:
            continue
        if reason is not None:
            complaints.append(f"layer '{layer.name}': {technique.name} cannot be applied: {reason}")
        elif technique.is_identity(layer):
            continue
        elif technique.phase in chosen:
            other = chosen[technique.phase][0].name
            complaints.append(f"layer '{layer.name}': {other} and {technique.name} exclude each other; keep one")
        else:
            chosen[technique.phase] = (technique, step)
    for first, second in itertools.permutations([technique for technique, _ in chosen.values()], 2):
        reason = first.clash(second) if isinstance(first, Clashing) else None
        if reason is not None:
            pair = f"{first.name} and {second.name}"
            complaints.append(f"layer '{layer.name}': {pair} exclude each other: {reason}; keep one")
    return LayerPlan(layer, tuple(t for t, _ in chosen.values())), [s for _, s in chosen.values()]


def _place_channels(
    name: str,
    technique: ChannelTechnique,
    step: Step,
    graph: ModelGraph,
    channels: dict[str, tuple[ChannelTechnique, Step]],
) -> Iterable[str]:
    group = graph.group_of(name)
    reason = _why_not(name, technique, graph, group)
    if reason is not None:
        yield f"layer '{name}': {technique.name} cannot be applied: {reason}"
        return
    assert group is not None
    known = channels.get(group.root)
    if known is not None and known[0] != technique:
        yield f"layers '{group.root}' and '{name}' share their channels but are given different channel steps; keep one"
    channels[group.root] = (technique, step)


def _why_not(
    name: str, technique: ChannelTechnique | DropDead, graph: ModelGraph, group: ChannelGroup | None
) -> str | None:
    if graph.coupling_error is not None:
        return f"the coupling of the network's channels could not be found ({graph.coupling_error})"
    if group is None:
        return "its channels belong to no group that can be pruned"
    reason = group.refusal or technique.check(graph.layers[name])
    return unmergeable(group, graph) if reason is None and isinstance(technique, MergeNeurons) else reason


def _emptied(
    names: Iterable[str], graph: ModelGraph, plans: Iterable[LayerPlan], complaints: list[str]
) -> tuple[str, ...]:
    """Roots of the groups of these layers, in the network's order."""
    factorized = {p.layer.name for p in plans if any(t.phase == Phase.FACTORIZE for t in p.techniques)}
    roots = set()
    for name in names:
        group = graph.group_of(name)
        reason = _why_not(name, DropDead(), graph, group)
        if reason is None and group is not None:
            reason = why_kept(group, factorized)
            roots.add(group.root)
        if reason is not None:
            complaints.append(f"layer '{name}': {DropDead.name} cannot be applied: {reason}")
    return tuple(name for name in graph.layers if name in roots)


def unmergeable(group: ChannelGroup, graph: ModelGraph) -> str | None:
    """Why the group's channels are not the same function of their own weights, or ``None``."""
    if not group.slots or len(group.producers) != 1:
        return "neurons are merged where one layer makes them, and by index; its channels are shared with other layers"
    between = [slot.module for slot in group.slots if slot.module not in graph.layers]
    if between:
        return f"'{between[0]}' gives each of its channels a scale of its own, so that equal weights do not make them alike"
    return None


def _shapes_after(graph: ModelGraph, channels: Mapping[str, ChannelTechnique]) -> dict[str, LayerInfo]:
    lost: dict[tuple[str, str], int] = {}
    for group in graph.groups:
        if group.root in channels:
            dropped = group.channels - channels[group.root].keep(group.channels)
            for member in group.members:
                key = (member.layer, member.axis)
                lost[key] = lost.get(key, 0) + dropped * member.factor
    return {
        name: _shrunk(info, lost.get((name, "out"), 0), lost.get((name, "in"), 0))
        for name, info in graph.layers.items()
    }


def _shrunk(info: LayerInfo, out: int, into: int) -> LayerInfo:
    if not out and not into:
        return info
    depthwise = info.groups > 1
    into = out if depthwise else into
    shape = (info.weight_shape[0] - out, info.weight_shape[1] - (0 if depthwise else into), *info.weight_shape[2:])
    if info.kind == "conv2d":
        before = (info.input_shape[0] - into, *info.input_shape[1:])
        after = (info.output_shape[0] - out, *info.output_shape[1:])
    else:
        before = (*info.input_shape[:-1], info.input_shape[-1] - into)
        after = (*info.output_shape[:-1], info.output_shape[-1] - out)
    groups = info.groups - out if depthwise else info.groups
    return replace(info, weight_shape=shape, input_shape=before, output_shape=after, groups=groups)


def _unknown_layer(name: str, layers: Mapping[str, LayerInfo]) -> str:
    near = difflib.get_close_matches(name, layers, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"the network has {', '.join(list(layers)[:12])}"
    return f"layer '{name}' is unknown: {hint}"
