"""A network whose layers are swapped by pointer: a candidate costs its forward pass, and only from the first changed layer on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from ..policies.forms import WEIGHTED
from ..policies.tracing import follow

CACHE_BYTES = 512_000_000
Statistics = tuple[Tensor, Tensor]
"""Mean and variance (C,) of a batch norm's input."""


@dataclass(frozen=True)
class Segment:
    """Nodes that run one after the other, from one value to the next.

    Parameters
    ----------
    nodes
        In order; the last one's value is all that later segments read.
    spent
        For each node, the nodes whose values are read no more once it has run.
    modules
        Names of the modules that the nodes call.
    """

    nodes: tuple[fx.Node, ...]
    spent: tuple[tuple[fx.Node, ...], ...]
    modules: frozenset[str]


class _Kept:
    """A tensor as it was: whatever overwrites it later, be it through a view, raises its version."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self._version = tensor, tensor._version

    @property
    def intact(self) -> bool:
        return self.tensor._version == self._version


@dataclass
class _Memory:
    """What a batch of pictures last ran through: the modules in use, and the value before each segment."""

    used: Mapping[str, nn.Module] = field(default_factory=dict)
    values: dict[int, _Kept] = field(default_factory=dict)


class StitchedNetwork:
    """Runs a network on fixed pictures with some of its modules replaced.

    Activations are kept at the points that a single tensor passes, so that a candidate that differs from the one before
    in late layers only runs those. A network that ``torch.fx`` cannot follow, or follows wrongly, runs whole; so does a
    candidate that replaces a module which the network does not call by itself.

    Batch norms follow what reaches them, as if estimated anew: the mean by as much as the pictures' mean differs from the
    dense network's, the variance by the ratio. Without that, a dropped branch looks far worse than it is.

    Parameters
    ----------
    model
        In evaluation mode; it is not changed, and must not be while this is in use.
    batches
        Inputs (N, C, H, W) of the network, at least one.
    cache_bytes
        Of kept activations, at most.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Tensor], cache_bytes: int = CACHE_BYTES) -> None:
        self._model, self._batches = model, tuple(batches)
        self._modules = {name: _out_of_place(module) for name, module in model.named_modules()}
        self._memories = [_Memory() for _ in batches]
        self._traced = follow(model)
        self.segments = () if self._traced is None else tuple(_segments(self._traced.graph))
        called = frozenset().union(*(segment.modules for segment in self.segments))
        self._replaceable = called - _read_directly(self.segments)
        self._points = self._points_to_keep(cache_bytes)
        self._dense_norms = {name: m for name, m in model.named_modules() if _has_statistics(m)}
        self._seen = [self._statistics(batch) for batch in self._batches]

    @property
    def followed(self) -> bool:
        """Whether activations can be reused."""
        return self._points is not None

    def run(
        self,
        replaced: Mapping[str, nn.Module],
        go_on: Callable[[int, Tensor], bool] | None = None,
        kept: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> list[Tensor]:
        """Logits of each batch with these modules in place of the network's own.

        Parameters
        ----------
        replaced
            Module name, as ``named_modules`` gives it -> module; it must not be changed afterwards.
        go_on
            Called with the number of each batch and its logits; where it says no, later batches are left out.
        kept
            Batch norm -> indices of its channels that are left, where some are not.
        """
        out = []
        with torch.no_grad():
            for number in range(len(self._batches)):
                out.append(self._run_batch(number, replaced, kept))
                if go_on is not None and not go_on(number, out[-1]):
                    break
        return out

    def forget(self) -> None:
        """Free the kept activations; the next candidate runs whole, and keeps them anew."""
        self._memories = [_Memory() for _ in self._batches]

    def _run_batch(self, number: int, replaced: Mapping[str, nn.Module], kept: Mapping[str, Tensor]) -> Tensor:
        if self._points is None or not self._replaceable.issuperset(replaced):
            with _swapped(self._model, replaced), self._following(number, kept):
                return self._run_whole(self._batches[number])
        memory, used = self._memories[number], {**self._modules, **replaced}
        same = self._unchanged(memory.used, used)
        memory.values = {at: kept for at, kept in memory.values.items() if at <= same and kept.intact}
        memory.used = used
        start = max(memory.values, default=0)
        value = memory.values[start].tensor if start else self._batches[number].clone()
        for position in range(start, len(self.segments)):
            value = self._run_segment(self.segments[position], value, used, self._seen[number], kept)
            if position + 1 in self._points:
                memory.values[position + 1] = _Kept(value)
        return value

    def _run_whole(self, batch: Tensor) -> Tensor:
        # Networks may overwrite their input.
        logits: Tensor = self._model(batch.clone())
        return logits

    def _unchanged(self, before: Mapping[str, nn.Module], used: Mapping[str, nn.Module]) -> int:
        """How many of the first segments call the same modules as before."""
        changed = {name for name, module in used.items() if before.get(name) is not module}
        clashes = (at for at, segment in enumerate(self.segments) if segment.modules & changed)
        return next(clashes, len(self.segments))

    def _run_segment(
        self,
        segment: Segment,
        value: Any,
        used: Mapping[str, nn.Module],
        seen: Mapping[str, Statistics] = MappingProxyType({}),
        kept: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Any:
        environment: dict[fx.Node, Any] = {}
        inputs, result = [value], value
        for node, spent in zip(segment.nodes, segment.spent):
            if node.op == "placeholder":
                result = inputs.pop() if inputs else next(iter(node.args), None)
            elif node.op == "get_attr":
                result = _attribute(self._traced, str(node.target))
            else:
                # What a later segment reads of an earlier one is the one value that it is handed.
                arguments, keywords = fx.node.map_arg((node.args, node.kwargs), lambda n: environment.get(n, value))
                name = str(node.target)
                if node.op == "call_module" and name in seen and _has_statistics(used[name]):
                    x, dense = cast(Tensor, arguments[0]), self._dense_norms[name]
                    result = _followed(used[name], dense, x, seen[name], kept.get(name))
                else:
                    result = _call(node, used, arguments, keywords)
            environment[node] = result
            for old in spent:
                environment.pop(old, None)
        return result

    def _statistics(self, batch: Tensor) -> dict[str, Statistics]:
        """Of what each batch norm of the dense network sees, where it is called once."""
        found: dict[str, Statistics] = {}
        calls: Counter[str] = Counter()

        def record(name: str, x: Tensor) -> None:
            calls[name] += 1
            found[name] = _mean_and_variance(x)

        handles = [
            norm.register_forward_pre_hook(lambda _, args, name=name: record(name, args[0]))
            for name, norm in self._dense_norms.items()
        ]
        try:
            with torch.no_grad():
                self._run_whole(batch)
        finally:
            for handle in handles:
                handle.remove()
        return {name: statistics for name, statistics in found.items() if calls[name] == 1}

    @contextmanager
    def _following(self, number: int, kept: Mapping[str, Tensor]) -> Iterator[None]:
        """The batch norms of the network as it stands do as ``_followed`` says."""
        seen = self._seen[number]

        def follow_on(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
            dense, statistics, left = self._dense_norms[name], seen[name], kept.get(name)
            return lambda norm, args, _: _followed(norm, dense, args[0], statistics, left)

        standing = {name: m for name, m in self._model.named_modules() if name in seen and _has_statistics(m)}
        handles = [norm.register_forward_hook(follow_on(name)) for name, norm in standing.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _points_to_keep(self, cache_bytes: int) -> frozenset[int] | None:
        """Where values are kept: everywhere, or at every second, fourth ... segment if the memory would not do.

        One picture tells the sizes. ``None`` where the graph does not compute what the network computes.
        """
        if self._traced is None:
            return None
        picture = self._batches[0][:1]
        values: list[Any] = [picture.clone()]
        with torch.no_grad():
            expected = self._run_whole(picture)
            try:
                for segment in self.segments:
                    values.append(self._run_segment(segment, values[-1], self._modules))
            # The recorded path may not be the one that the network takes with real values, and then fail in any way.
            except Exception:
                return None
        if not _equal(values[-1], expected):
            return None
        pictures = sum(map(len, self._batches))
        sizes = {at: pictures * x.nbytes for at, x in enumerate(values) if at and isinstance(x, Tensor)}
        step = 1
        while sum(size for at, size in sizes.items() if at % step == 0) > cache_bytes:
            step *= 2
        return frozenset(at for at in sizes if at % step == 0)


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None


def _mean_and_variance(x: Tensor) -> Statistics:
    """(C,) each, of (N, C, ...); by sums, since torch's own variance takes twenty times as long over these dimensions."""
    others = [d for d in range(x.ndim) if d != 1]
    count = x.numel() // x.shape[1]
    mean = x.sum(others) / count
    return mean, ((x * x).sum(others) / count - mean.square()).clamp_min_(0.0)


def _followed(norm: nn.Module, dense: nn.Module, x: Tensor, seen: Statistics, kept: Tensor | None) -> Tensor:
    """The batch norm with the dense network's statistics moved from what that saw to what ``x`` (N, C, ...) has."""
    assert isinstance(norm, _BatchNorm) and isinstance(dense, _BatchNorm)
    whole = (cast(Tensor, dense.running_mean), cast(Tensor, dense.running_var), *seen)
    mean, variance, mean_seen, variance_seen = whole if kept is None else (tensor[kept] for tensor in whole)
    mean_now, variance_now = _mean_and_variance(x)
    mean = mean + (mean_now - mean_seen)
    variance = variance * ((variance_now + norm.eps) / (variance_seen + norm.eps))
    return functional.batch_norm(x, mean, variance, norm.weight, norm.bias, False, 0.0, norm.eps)


def norms_after(model: nn.Module) -> dict[str, str]:
    """Layer -> the batch norm that normalises its outputs and nothing else; none where the network cannot be followed."""
    traced = follow(model)
    calls = [] if traced is None else [node for node in traced.graph.nodes if node.op == "call_module"]
    times, modules = Counter(str(node.target) for node in calls), dict(model.named_modules())
    out: dict[str, str] = {}
    for node in calls:
        if len(node.users) != 1 or not isinstance(modules[str(node.target)], WEIGHTED):
            continue
        user = next(iter(node.users))
        norm = user.op == "call_module" and isinstance(modules[str(user.target)], _BatchNorm)
        if norm and times[str(node.target)] == times[str(user.target)] == 1:
            out[str(node.target)] = str(user.target)
    return out


def _segments(graph: fx.Graph) -> Iterator[Segment]:
    """Cut wherever a single value is all that is read later."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    last_use = {node: max((places[user] for user in node.users), default=place) for node, place in places.items()}
    spent: dict[int, list[fx.Node]] = {}
    for node, place in last_use.items():
        spent.setdefault(place, []).append(node)
    live: set[fx.Node] = set()
    current: list[fx.Node] = []
    for node, place in places.items():
        current.append(node)
        live = {other for other in {*live, node} if last_use[other] > place and other.op != "get_attr"}
        if (live == {node} and node.op != "placeholder") or node.op == "output":
            freed = tuple(tuple(spent.get(places[n], ())) for n in current)
            yield Segment(tuple(current), freed, frozenset(str(n.target) for n in current if n.op == "call_module"))
            current = [n for n in current if n.op == "get_attr"]


def _read_directly(segments: Sequence[Segment]) -> frozenset[str]:
    """Modules whose tensors the network reads without calling them."""
    read = (str(node.target) for segment in segments for node in segment.nodes if node.op == "get_attr")
    return frozenset(name.rpartition(".")[0] for name in read)


def _equal(value: Any, expected: Any) -> bool:
    tensors = isinstance(value, Tensor) and isinstance(expected, Tensor) and value.shape == expected.shape
    return tensors and torch.allclose(value, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def _call(node: fx.Node, used: Mapping[str, nn.Module], arguments: Any, keywords: Any) -> Any:
    if node.op == "output":
        return arguments[0]
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
