"""What a plan says of layers that become one: which may, what shape they have then, and which steps have no place left. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

from .activations import Activation
from .collapsing import Collapsed, merged_info, why_not_merged
from .graph import ModelGraph
from .techniques.base import LayerInfo
from .techniques.collapse import Collapse


def collapsed_layers(wanted: Mapping[str, Collapse], graph: ModelGraph, complaints: list[str]) -> tuple[Collapsed, ...]:
    """The ReLUs behind these layers, in the network's order; complaints on those that cannot go."""
    found = []
    for name in (name for name in graph.layers if name in wanted):
        activation, merge = graph.activation_of(name), wanted[name].merge
        reason = why_not_collapsed(name, activation, graph, merge)
        if reason is None and activation is not None:
            found.append(Collapsed(activation, merge))
        else:
            complaints.append(f"layer '{name}': {Collapse.name} cannot be applied: {reason}")
    return tuple(found)


def why_not_collapsed(name: str, activation: Activation | None, graph: ModelGraph, merge: bool) -> str | None:
    """Why the ReLU behind a layer cannot go or, to ``merge``, why the layer and its reader cannot be one; or ``None``."""
    if activation is None:
        return "no nn.ReLU that is called once stands right behind it"
    if not merge:
        return None
    group = graph.group_of(name)
    if not activation.reader or group is None or group.refusal is not None:
        return "its ReLU is not read by one layer alone; merge: false leaves the ReLU out and keeps the layer"
    if {slot.module for slot in group.slots} != {name, activation.reader}:
        return "its channels are shared with other layers; merge: false leaves the ReLU out and keeps the layer"
    return why_not_merged(graph.layers[name], graph.layers[activation.reader])


def with_merged(shapes: Mapping[str, LayerInfo], collapsed: Iterable[Collapsed]) -> dict[str, LayerInfo]:
    """The layers' shapes where some are one with the next, which has their place and name."""
    found = dict(shapes)
    for one in collapsed:
        if one.merge:
            reader = one.activation.reader
            found[reader] = merged_info(found[one.activation.layer], found[reader])
    return found


def on_merged(
    collapsed: Iterable[Collapsed], graph: ModelGraph, treated: Collection[str], dead: Collection[str]
) -> Iterator[str]:
    """Complaints about steps on layers that are one with the next, and about dead channels that these would read."""
    for one in collapsed:
        name, reader = one.activation.layer, one.activation.reader
        touched = {slot.module for root in dead if (group := graph.group_of(root)) for slot in group.slots}
        if one.merge and name in {*treated, *touched}:
            yield f"layer '{name}': collapse makes it one with '{reader}'; put its other steps there or leave them out"
