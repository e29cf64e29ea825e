"""What a graph computes from shapes alone, remembered with a trace, and from its network's tensors alone, each time anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from .onnx_graph import Graph, model_of, needed, open_session, write

# Operators whose output is drawn anew each time.
DRAWN = frozenset({"Bernoulli", "Dropout", "Multinomial", "RandomNormalLike", "RandomUniformLike"})


@dataclass(frozen=True)
class ShapeConstants:
    """What a graph computes from shapes alone.

    Parameters
    ----------
    values
        By tensor.
    reshapes
        The shape that a reshape is given, by its output; -1 for the number of pictures.
    """

    values: dict[str, np.ndarray]
    reshapes: dict[str, np.ndarray]

    def equals(self, other: ShapeConstants) -> bool:
        """Whether both hold the same."""
        pairs = ((self.values, other.values), (self.reshapes, other.reshapes))
        return all(
            one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one) for one, two in pairs
        )


def shape_constants(graph: Graph, example: np.ndarray) -> ShapeConstants:
    """What is computed from shapes alone and does not change with the number of pictures.

    The exporter writes each size as a chain of small operators; the network is run on one and on three copies of
    ``example`` (1, C, H, W), and what comes out equal is a constant.
    """
    edges = _shape_edges(graph)
    if not edges:
        return ShapeConstants({}, {})
    reshapes = [node for node in graph.nodes if node.op_type == "Reshape" and node.input[1] in edges]
    names = [*edges, *(node.output[0] for node in reshapes)]
    session, source = open_session(write(graph, names)), graph.inputs[0]
    one, three = (dict(zip(names, session.run(names, {source: np.repeat(example, n, 0)}))) for n in (1, 3))
    values = {name: one[name] for name in edges if np.array_equal(one[name], three[name])}
    targets = {}
    for node in reshapes:
        first, second = (np.array(found[node.output[0]].shape) for found in (one, three))
        if node.input[1] not in values and (first != second).sum() == 1:
            targets[node.output[0]] = np.where(first == second, first, -1)
    return ShapeConstants(values, targets)


def settle_shapes(graph: Graph, constants: ShapeConstants) -> None:
    """Put the constants in the place of what computes them."""
    graph.values.update(constants.values)
    for node in graph.nodes:
        target = constants.reshapes.get(node.output[0])
        if target is not None:
            node.input[1] = f"{node.output[0]}_shape"
            graph.values[node.input[1]] = target
    graph.nodes = [node for node in graph.nodes if node.output[0] not in graph.values]


def fold_constants(graph: Graph) -> None:
    """Put values in the place of what is computed from values alone: of the network's tensors as they are now.

    A scale that is viewed, a weight that is standardised, a table that is looked up: each network has its own, so they are
    never remembered with its trace.
    """
    settled: set[str] = set()
    read: dict[str, None] = {}
    left: list[onnx.NodeProto] = []
    for node in graph.nodes:
        inputs = [name for name in node.input if name]
        known = inputs and all(name in graph.values or name in settled for name in inputs)
        if known and node.op_type not in DRAWN and not set(graph.outputs).intersection(node.output):
            settled.update(node.output)
            parameter = graph.parameter_of(node)
            graph.settled.update(() if parameter is None else (parameter,))
        else:
            left.append(node)
            read.update(dict.fromkeys(inputs))
    names = [name for name in read if name in settled]
    if names:
        nodes = needed(graph.nodes, names)
        session = open_session(model_of(graph, nodes, [], [onnx.ValueInfoProto(name=name) for name in names]))
        graph.values.update(zip(names, session.run(names, {})))
    graph.nodes = left


def _shape_edges(graph: Graph) -> list[str]:
    """Tensors computed from shapes alone, whatever the network's own tensors hold, that another node reads."""
    shapes: set[str] = set()
    edges: dict[str, None] = {}
    for node in graph.nodes:
        computed = [name for name in node.input if name and name not in graph.literals]
        if node.op_type == "Shape" or (node.input and shapes.issuperset(computed)):
            shapes.update(node.output)
        else:
            edges.update(dict.fromkeys(name for name in computed if name in shapes))
    return list(edges)
