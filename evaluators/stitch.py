"""A network whose layers are swapped by pointer: a candidate costs its forward pass, and only from the first changed layer on."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..policies.forms import WEIGHTED
from ..policies.tracing import follow

CACHE_BYTES = 512_000_000
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)


@dataclass(frozen=True)
class Segment:
    """Nodes that run one after the other, from one tensor to the next.

    Parameters
    ----------
    nodes
        In order; the last one's value is all that later segments read.
    modules
        Names of the modules that the nodes call.
    """

    nodes: tuple[fx.Node, ...]
    modules: frozenset[str]


@dataclass
class _Memory:
    """What a batch of pictures last ran through: the modules in use, and the value before each segment."""

    used: dict[str, nn.Module] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)


class StitchedNetwork:
    """Runs a network on fixed pictures with some of its modules replaced.

    Activations are kept at the points that a single tensor passes, so that a candidate that differs from the one before
    in late layers only runs those. A network that cannot be followed by ``torch.fx`` runs whole.

    Parameters
    ----------
    model
        In evaluation mode; it is not changed.
    batches
        Inputs (N, C, H, W) of the network.
    cache_bytes
        Of kept activations, at most.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Tensor], cache_bytes: int = CACHE_BYTES) -> None:
        self._modules = {name: _out_of_place(module) for name, module in model.named_modules()}
        self._batches = tuple(batches)
        self._memories = [_Memory() for _ in batches]
        self._cache_bytes = cache_bytes
        self._kept: frozenset[int] | None = None
        self._model, self._traced = model, follow(model)
        self.segments = tuple(_segments(self._traced)) if self._traced is not None else ()

    @property
    def followed(self) -> bool:
        """Whether activations can be reused."""
        return self._traced is not None

    def run(
        self, replaced: Mapping[str, nn.Module], go_on: Callable[[int, Tensor], bool] | None = None
    ) -> list[Tensor]:
        """Logits of each batch with these modules in place of the network's own.

        Parameters
        ----------
        replaced
            Module name -> module.
        go_on
            Called with the number of each batch and its logits; where it says no, later batches are left out.
        """
        out = []
        with torch.no_grad():
            for number, memory in enumerate(self._memories):
                out.append(self._run_batch(number, memory, replaced))
                if go_on is not None and not go_on(number, out[-1]):
                    break
        return out

    def _run_batch(self, number: int, memory: _Memory, replaced: Mapping[str, nn.Module]) -> Tensor:
        if self._traced is None:
            with _swapped(self._model, replaced):
                return self._model(self._batches[number])
        used = {**self._modules, **replaced}
        start = self._first_changed(memory, used)
        value = memory.values.get(start, self._batches[number])
        memory.values = {at: kept for at, kept in memory.values.items() if at <= start}
        if start == len(self.segments):
            return value
        values: dict[int, Tensor] = {}
        for position in range(start, len(self.segments)):
            value = self._run_segment(self.segments[position], value, used, first=position == 0)
            values[position + 1] = value
        memory.used = used
        memory.values |= {at: kept for at, kept in values.items() if at in self._keeping(values)}
        return value

    def _first_changed(self, memory: _Memory, used: Mapping[str, nn.Module]) -> int:
        """The last segment with a kept value before it, up to which nothing has changed."""
        if not memory.used:
            return 0
        changed = {name for name, module in used.items() if memory.used[name] is not module}
        intact = 0
        while intact < len(self.segments) and not self.segments[intact].modules & changed:
            intact += 1
        return max((at for at in memory.values if at <= intact), default=0)

    def _run_segment(self, segment: Segment, value: Tensor, used: Mapping[str, nn.Module], first: bool) -> Tensor:
        assert self._traced is not None
        environment: dict[fx.Node, Any] = {}
        pending = [value]
        for node in segment.nodes:
            if node.op == "placeholder":
                environment[node] = pending.pop() if pending else None
            elif node.op == "get_attr":
                environment[node] = _attribute(self._traced, str(node.target))
            else:
                # What a later segment reads of an earlier one is the one tensor that it is handed.
                arguments, keywords = fx.node.map_arg((node.args, node.kwargs), lambda n: environment.get(n, value))
                environment[node] = _call(node, used, arguments, keywords)
        return environment[segment.nodes[-1]]

    def _keeping(self, values: Mapping[int, Tensor]) -> frozenset[int]:
        """Where values are kept: everywhere, or at every second, fourth ... segment if the memory would not do."""
        if self._kept is None:
            sizes = {at: tensor.numel() * tensor.element_size() for at, tensor in values.items()}
            step = 1
            while sum(size for at, size in sizes.items() if at % step == 0) * len(self._batches) > self._cache_bytes:
                step *= 2
            self._kept = frozenset(at for at in range(1, len(self.segments) + 1) if at % step == 0)
        return self._kept


def norms_after(model: nn.Module) -> dict[str, str]:
    """Layer -> the batch norm that normalises its outputs and nothing else; none where the network cannot be followed."""
    traced = follow(model)
    modules = dict(model.named_modules())
    out: dict[str, str] = {}
    for node in () if traced is None else traced.graph.nodes:
        layer = node.op == "call_module" and isinstance(modules[str(node.target)], WEIGHTED)
        for user in node.users if layer and len(node.users) == 1 else ():
            if user.op == "call_module" and isinstance(modules[str(user.target)], _BatchNorm):
                out[str(node.target)] = str(user.target)
    return out


def _segments(traced: fx.GraphModule) -> Iterator[Segment]:
    traced.graph.eliminate_dead_code()
    places = {node: place for place, node in enumerate(traced.graph.nodes)}
    nodes = [node for node in places if node.op != "output"]
    last_use = {node: max((places[user] for user in node.users), default=-1) for node in nodes}
    live: set[fx.Node] = set()
    current: list[fx.Node] = []
    for place, node in enumerate(nodes):
        current.append(node)
        live = {other for other in {*live, node} if last_use[other] > place and other.op != "get_attr"}
        passes = live == {node} and node.op != "placeholder" and not any(map(_writes, node.users))
        if passes or node is nodes[-1]:
            yield Segment(tuple(current), frozenset(str(n.target) for n in current if n.op == "call_module"))
            current = [n for n in current if n.op == "get_attr"]


def _writes(node: fx.Node) -> bool:
    """Whether the node changes its argument."""
    if node.op == "call_method":
        return str(node.target).endswith("_")
    return node.op == "call_function" and (node.target in _IN_PLACE or bool(node.kwargs.get("inplace")))


def _call(node: fx.Node, used: Mapping[str, nn.Module], arguments: Any, keywords: Any) -> Any:
    if node.op == "call_module":
        return used[str(node.target)](*arguments, **keywords)
    if node.op == "call_method":
        return getattr(arguments[0], str(node.target))(*arguments[1:], **keywords)
    assert callable(node.target)
    return node.target(*arguments, **keywords)


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module


def _out_of_place(module: nn.Module) -> nn.Module:
    """The module; an activation that would overwrite a kept tensor is replaced by one that does not."""
    if not getattr(module, "inplace", False):
        return module
    copy = type(module).__new__(type(module))
    copy.__dict__.update(module.__dict__)
    vars(copy)["inplace"] = False
    return copy


@contextmanager
def _swapped(model: nn.Module, replaced: Mapping[str, nn.Module]) -> Iterator[None]:
    """Replaces modules of a network for a while, wherever they stand."""
    before: list[tuple[nn.Module, str, nn.Module | None]] = []
    for name, module in replaced.items():
        old = model.get_submodule(name)
        for place in [p for p, found in model.named_modules(remove_duplicate=False) if found is old]:
            parent, _, child = place.rpartition(".")
            owner = model.get_submodule(parent)
            before.append((owner, child, owner._modules[child]))
            owner._modules[child] = module
    try:
        yield
    finally:
        for owner, child, former in reversed(before):
            owner._modules[child] = former
