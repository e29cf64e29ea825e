"""Residual branches that can be dropped whole: what is added to a value that goes on without them."""

from __future__ import annotations

import itertools
import operator
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.dropout import _DropoutNd

from .copying import with_modules
from .forms import WEIGHTED
from .tracing import follow

OPERATORS = (operator.add, operator.iadd)
PASSING = (nn.Identity, _DropoutNd)


@dataclass(frozen=True)
class Branch:
    """A residual branch, ``skip + branch(skip)``, which nothing else reads.

    Parameters
    ----------
    root
        Its first layer in the order of the forward pass; it names the branch.
    layers
        Its convolutions and linear layers.
    modules
        All modules that work for it alone, ``layers`` among them.
    last
        The module whose output is added.
    by_operator
        Whether Python's ``+`` or ``+=`` adds it, and not a function of torch.
    """

    root: str
    layers: tuple[str, ...]
    modules: tuple[str, ...]
    last: str
    by_operator: bool = True


class Nothing(nn.Module):
    """Stands in the place of a module of a dropped branch: whatever comes in, zero goes out.

    Parameters
    ----------
    form
        ``tiny``: a tensor with as many dimensions as the input, each of size 1, so that what is left of the branch costs
        next to nothing. ``scalar``: a tensor without dimensions. ``number``: a number of Python's, which unlike a tensor
        may stand on the left of ``branch += skip``.
    """

    def __init__(self, form: Literal["tiny", "scalar", "number"]) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor, *_: object, **__: object) -> Tensor | float:
        if self.form == "number":
            return 0.0
        return x.new_zeros((1,) * x.ndim if self.form == "tiny" else ())


def stand_ins(branch: Branch) -> dict[str, nn.Module]:
    """What stands in the place of each of a dropped branch's modules; it has no parameters."""
    made: dict[str, nn.Module] = {name: Nothing("tiny") for name in branch.modules}
    made[branch.last] = Nothing("number" if branch.by_operator else "scalar")
    return made


def find_branches(model: nn.Module, example: Tensor) -> tuple[Branch, ...]:
    """The branches that can be dropped, in the order of the forward pass; none where the network cannot be followed.

    Parameters
    ----------
    model
        In evaluation mode.
    example
        (1, C, H, W).
    """
    traced = follow(model)
    if traced is None:
        return ()
    traced.graph.eliminate_dead_code()
    candidates = list(_candidates(traced.graph, dict(model.named_modules())))
    shapes = _shapes(traced, example) if candidates else {}
    smallest: dict[str, Branch] = {}
    for branch, skip, end in candidates:
        known = smallest.get(branch.root)
        alike = skip in shapes and shapes[skip] == shapes.get(end)
        if alike and (known is None or len(branch.modules) < len(known.modules)):
            smallest[branch.root] = branch
    return _droppable(model, example, tuple(smallest.values()))


def _candidates(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> Iterator[tuple[Branch, fx.Node, fx.Node]]:
    """Each branch with the node that it starts from and the node that is added."""
    calls = Counter(str(node.target) for node in graph.nodes if node.op == "call_module")
    places = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        for skip, end in itertools.permutations(_summands(node), 2):
            for origin in _origins(skip, modules):
                nodes = sorted(_between(origin, end), key=places.__getitem__)
                own = [str(n.target) for n in nodes if n.op == "call_module" and calls[str(n.target)] == 1]
                layers = [str(n.target) for n in nodes if n.op == "call_module" and _is_weighted(n, modules)]
                # A layer that is called elsewhere too cannot be dropped, and some module must bring the zero.
                if layers and {*layers, str(end.target)} <= {*own} and not _overwritten(origin, nodes, modules):
                    by_operator = node.target in OPERATORS
                    yield Branch(layers[0], tuple(layers), tuple(own), str(end.target), by_operator), origin, end


def _summands(node: fx.Node) -> tuple[fx.Node, ...]:
    """The two values that the node adds; none where it does something else."""
    function = node.op == "call_function" and node.target in (*OPERATORS, torch.add)
    method = node.op == "call_method" and node.target == "add"
    found = tuple(argument for argument in node.args if isinstance(argument, fx.Node))
    return found if (function or method) and len(found) == len(node.args) == 2 and not node.kwargs else ()


def _origins(skip: fx.Node, modules: Mapping[str, nn.Module]) -> Iterator[fx.Node]:
    """Where the skip may start: the value that is added, or what it was before it went through modules that pass it on."""
    yield skip
    while skip.op == "call_module" and isinstance(modules[str(skip.target)], PASSING):
        (skip,) = skip.all_input_nodes
        yield skip


def _between(origin: fx.Node, end: fx.Node) -> set[fx.Node]:
    """The nodes that ``end`` is computed by from ``origin``; none where it needs others, or others need them."""
    found: set[fx.Node] = set()
    pending = [end]
    while pending:
        node = pending.pop()
        if node is origin or node in found:
            continue
        if node.op not in ("call_module", "call_function", "call_method"):
            return set()
        found.add(node)
        pending += node.all_input_nodes
    alone = len(end.users) == 1 and all(found.issuperset(node.users) for node in found - {end})
    return found if alone else set()


def _overwritten(origin: fx.Node, nodes: Sequence[fx.Node], modules: Mapping[str, nn.Module]) -> bool:
    """Whether the branch changes the value that it starts from, so that the skip would not be the same without it."""
    for node in nodes:
        if node.args and node.args[0] is origin:
            inside = node.op == "call_module" and getattr(modules[str(node.target)], "inplace", False)
            method = node.op == "call_method" and str(node.target).endswith("_")
            if inside or method or node.target is operator.iadd or node.kwargs.get("inplace"):
                return True
    return False


def _is_weighted(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    return isinstance(modules[str(node.target)], WEIGHTED)


def _shapes(traced: fx.GraphModule, example: Tensor) -> dict[fx.Node, torch.Size]:
    """Shapes of all values that are tensors."""
    found: dict[fx.Node, torch.Size] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                found[n] = value.shape
            return value

    try:
        with torch.no_grad():
            Recorder(traced).run(example)
    # The forward pass is the user's own code; what cannot be run once it is followed has no known branches.
    except Exception:
        return {}
    return found


def _droppable(model: nn.Module, example: Tensor, branches: tuple[Branch, ...]) -> tuple[Branch, ...]:
    """Those without which the network runs: what is left of a branch may be a reshape with a channel count written in."""
    if not branches or _runs_without(model, example, branches):
        return branches
    return tuple(branch for branch in branches if _runs_without(model, example, (branch,)))


def _runs_without(model: nn.Module, example: Tensor, branches: Sequence[Branch]) -> bool:
    # Of a branch within a branch, the outer one's module for the sum must not be replaced by the inner one's.
    replaced: dict[str, nn.Module] = {}
    for branch in sorted(branches, key=lambda branch: len(branch.modules)):
        replaced |= stand_ins(branch)
    try:
        with torch.no_grad():
            return bool(with_modules(model, replaced)(example).shape == model(example).shape)
    # The forward pass is the user's own code and may raise anything once its layers are gone.
    except Exception:
        return False
