"""An ONNX graph as nodes and numpy values, with the rewrites every export gets.

Batch norm and zero padding are folded into the convolutions here and not by the exporter, so that each weight keeps its
parameter's name and the factor that batch norm brings stays known: the integer codes of an 8-bit layer must not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from ..errors import ModelError

WEIGHTED_OPS = ("Conv", "Gemm", "MatMul")


@dataclass
class Graph:
    """A network as ONNX nodes in topological order.

    Parameters
    ----------
    model
        Where inputs, outputs and opset are taken from.
    nodes
        In topological order; a node is known by its first output.
    values
        Initializers and constants by name.
    parameters
        For each value made from a parameter (scaled or transposed): the parameter's name.
    transposed
        Those values that are a matrix transposed.
    factors
        For each node that batch norm was folded into (by its output): the factor of each output channel, (C,) float64.
    literals
        Those values that the graph itself holds as constants: they are the same in every network of its structure.
    settled
        Parameters of the layers that read nothing of the pictures and are values by now.
    """

    model: onnx.ModelProto
    nodes: list[onnx.NodeProto]
    values: dict[str, np.ndarray]
    parameters: dict[str, str]
    transposed: set[str]
    factors: dict[str, np.ndarray]
    literals: set[str]
    settled: set[str] = field(default_factory=set)

    @property
    def inputs(self) -> list[str]:
        return [value.name for value in self.model.graph.input]

    @property
    def outputs(self) -> list[str]:
        return [value.name for value in self.model.graph.output]

    def producers(self) -> dict[str, onnx.NodeProto]:
        """The node that computes each tensor."""
        return {name: node for node in self.nodes for name in node.output}

    def consumers(self) -> dict[str, list[onnx.NodeProto]]:
        """The nodes that read each tensor; a graph output counts as no node."""
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                readers.setdefault(name, []).append(node)
        return readers

    def parameter_of(self, node: onnx.NodeProto) -> str | None:
        """The parameter that a convolution or product multiplies with, or ``None`` where it is computed."""
        if node.op_type not in WEIGHTED_OPS or node.input[1] not in self.values:
            return None
        return self.parameters.get(node.input[1], node.input[1])


def read(model: onnx.ModelProto, tensors: Mapping[str, np.ndarray] | None = None) -> Graph:
    """The graph with constants, identities and transposed weights turned into values.

    Parameters
    ----------
    tensors
        Initializers that the model reads and does not hold; equal ones are the same array.
    """
    values = {**(tensors or {}), **{tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}}
    outputs = {value.name for value in model.graph.output}
    nodes: list[onnx.NodeProto] = []
    parameters: dict[str, str] = {}
    transposed: set[str] = set()
    literals: set[str] = set()
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        _replace_inputs(node, renamed)
        source, target = node.input[0] if node.input else "", node.output[0]
        constant = constant_of(node)
        if constant is not None:
            values[target] = constant
            literals.add(target)
        elif node.op_type == "Identity" and source in values and target not in outputs:
            values[target] = values[source]
            literals.update({target} if source in literals else ())
        elif node.op_type == "Identity" and target not in outputs:
            renamed[target] = source
        elif node.op_type == "Transpose" and source in values:
            values[target] = np.transpose(values[source], attribute(node, "perm"))
            parameters[target] = source
            transposed.add(target)
        else:
            nodes.append(node)
    return Graph(model, nodes, values, parameters, transposed, {}, literals)


def constant_of(node: onnx.NodeProto) -> np.ndarray | None:
    """The value of a constant."""
    if node.op_type != "Constant" or node.attribute[0].name != "value":
        return None
    return numpy_helper.to_array(node.attribute[0].t)


def has_control_flow(model: onnx.ModelProto) -> bool:
    """Whether a node carries a graph of its own (If, Loop, Scan)."""
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return any(a.type in kinds for node in model.graph.node for a in node.attribute)


def write(graph: Graph, extra_outputs: Sequence[str] = ()) -> bytes:
    """The model with only what its outputs need; equal values are stored once."""
    nodes = needed(graph.nodes, [*graph.outputs, *extra_outputs])
    outputs = [onnx.ValueInfoProto(name=name) for name in extra_outputs if name not in graph.outputs]
    return model_of(graph, nodes, list(graph.model.graph.input), [*graph.model.graph.output, *outputs])


def needed(nodes: Sequence[onnx.NodeProto], names: Sequence[str]) -> list[onnx.NodeProto]:
    """The nodes that compute these tensors, in their order."""
    wanted = set(names)
    needed: list[onnx.NodeProto] = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            needed.append(node)
            wanted.update(node.input)
    return needed[::-1]


def model_of(
    graph: Graph,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
) -> bytes:
    """A model of these nodes of the graph; equal values are stored once."""
    read = {name for node in nodes for name in node.input} | {value.name for value in outputs}
    first: dict[int, str] = {}
    alias = {name: first.setdefault(id(array), name) for name, array in graph.values.items() if name in read}
    initializers = [numpy_helper.from_array(graph.values[name], name) for name in sorted(set(alias.values()))]
    made = helper.make_graph([_copied(node, alias) for node in nodes], "network", inputs, outputs, initializers)
    model = helper.make_model(made, producer_name="paretopress", opset_imports=list(graph.model.opset_import))
    model.ir_version = graph.model.ir_version
    return model.SerializeToString()


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute."""
    for candidate in node.attribute:
        if candidate.name == name:
            return helper.get_attribute_value(candidate)
    return default


def fold_batch_norm(graph: Graph) -> None:
    """Fold each batch norm into the layer before it (1712.05877, eq. 14), where nothing else reads that layer."""
    producers, consumers = graph.producers(), graph.consumers()
    kept = []
    for node in graph.nodes:
        before = producers.get(node.input[0]) if _is_settled_batch_norm(graph, node) else None
        if before is None or not _can_take_factor(graph, before) or len(consumers[before.output[0]]) > 1:
            kept.append(node)
            continue
        gamma, beta, mean, variance = (graph.values[name].astype(np.float64) for name in node.input[1:5])
        factor = gamma / np.sqrt(variance + attribute(node, "epsilon", 1e-5))
        bias = graph.values[before.input[2]] if len(before.input) > 2 else 0.0
        _set_bias(graph, before, (bias - mean) * factor + beta)
        _scale_weight(graph, before, factor)
        # The node keeps its place in the order and takes over the batch norm's output name.
        before.output[0] = node.output[0]
        graph.factors[node.output[0]] = factor
    graph.nodes = kept


def drop_zero_additions(graph: Graph) -> None:
    """Leave out the additions of zero that dropped branches leave behind, and each ReLU that then follows a ReLU."""
    producers = graph.producers()
    renamed: dict[str, str] = {}
    kept = []
    for node in graph.nodes:
        _replace_inputs(node, renamed)
        source = None if node.output[0] in graph.outputs else _passed_on(graph, node, producers)
        if source is None:
            kept.append(node)
        else:
            renamed[node.output[0]] = source
    graph.nodes = kept


def _passed_on(graph: Graph, node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> str | None:
    """The input that comes out of the node as it is, or ``None``."""
    if node.op_type == "Relu":
        before = producers.get(node.input[0])
        return node.input[0] if before is not None and before.op_type == "Relu" else None
    if node.op_type != "Add":
        return None
    zeros = [_is_zero(graph, name, producers.get(name)) for name in node.input]
    return node.input[zeros.index(False)] if sum(zeros) == 1 else None


def _is_zero(graph: Graph, name: str, producer: onnx.NodeProto | None) -> bool:
    """Whether the tensor is a zero without dimensions, so that adding it changes no shape."""
    if name in graph.values:
        return graph.values[name].ndim == 0 and not graph.values[name].any()
    if producer is None or producer.op_type != "ConstantOfShape":
        return False
    shape, value = graph.values.get(producer.input[0]), attribute(producer, "value")
    return shape is not None and not shape.size and (value is None or not numpy_helper.to_array(value).any())


def fold_padding(graph: Graph) -> None:
    """Fold zero padding of height and width into the one convolution that reads it."""
    consumers = graph.consumers()
    kept = []
    for node in graph.nodes:
        readers = consumers.get(node.output[0], []) if node.op_type == "Pad" else []
        pads = _spatial_zero_pads(graph, node) if len(readers) == 1 and node.output[0] not in graph.outputs else None
        if pads is None or readers[0].op_type != "Conv" or attribute(readers[0], "auto_pad", b"NOTSET") != b"NOTSET":
            kept.append(node)
            continue
        conv = readers[0]
        own = np.array(attribute(conv, "pads", [0, 0, 0, 0]))
        others = [a for a in conv.attribute if a.name != "pads"]
        del conv.attribute[:]
        conv.attribute.extend([*others, helper.make_attribute("pads", [int(p) for p in own + pads])])
        conv.input[0] = node.input[0]
    graph.nodes = kept


def tensor_ranges(
    graph: Graph, names: Sequence[str], x: np.ndarray, batch_size: int = 8
) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each named tensor over pictures (N, C, H, W) in the float network."""
    if not names:
        return {}
    session, source = open_session(write(graph, names)), graph.inputs[0]
    found = dict.fromkeys(names, (np.inf, -np.inf))
    for start in range(0, len(x), batch_size):
        arrays = session.run(list(names), {source: x[start : start + batch_size]})
        for name, array in zip(names, arrays):
            low, high = found[name]
            found[name] = (float(np.minimum(low, array.min())), float(np.maximum(high, array.max())))
    return found


def open_session(data: bytes) -> onnxruntime.InferenceSession:
    """The model in the runtime, with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    # The runtime has an exception class for each status, with no common base of its own.
    except Exception as error:
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ModelError(f"ONNX Runtime cannot load the exported network: {cause}; replace what it names") from error


def _is_settled_batch_norm(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether the node normalises by stored statistics (and not by those of the batch)."""
    if node.op_type != "BatchNormalization" or attribute(node, "training_mode", 0) != 0:
        return False
    return all(name in graph.values for name in node.input[1:5])


def _can_take_factor(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether output channels lie on the first axis of a constant weight."""
    if node.output[0] in graph.outputs or node.output[0] in graph.factors or graph.parameter_of(node) is None:
        return False
    if len(node.input) > 2 and node.input[2] not in graph.values:
        return False
    plain_gemm = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
    return node.op_type == "Conv" or (node.op_type == "Gemm" and attribute(node, "transB", 0) == 1 and plain_gemm)


def _scale_weight(graph: Graph, node: onnx.NodeProto, factor: np.ndarray) -> None:
    parameter, weight = graph.parameter_of(node), graph.values[node.input[1]]
    scaled = weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))
    name = f"{node.output[0]}_weight"
    graph.values[name] = scaled.astype(np.float32)
    graph.parameters[name] = str(parameter)
    node.input[1] = name


def _set_bias(graph: Graph, node: onnx.NodeProto, bias: np.ndarray) -> None:
    name = f"{node.output[0]}_bias"
    graph.values[name] = bias.astype(np.float32)
    inputs = list(node.input[:2])
    del node.input[:]
    node.input.extend([*inputs, name])


def _spatial_zero_pads(graph: Graph, node: onnx.NodeProto) -> np.ndarray | None:
    """(top, left, bottom, right) of a zero padding that leaves batch and channels alone, or ``None``."""
    pads = graph.values.get(node.input[1])
    value = graph.values.get(node.input[2], np.ones(1)) if len(node.input) > 2 and node.input[2] else np.zeros(1)
    if attribute(node, "mode", b"constant") != b"constant" or pads is None or len(node.input) > 3 or value.any():
        return None
    if pads.size != 8 or pads[[0, 1, 4, 5]].any() or (pads < 0).any():
        return None
    return pads[[2, 3, 6, 7]]


def _replace_inputs(node: onnx.NodeProto, names: dict[str, str]) -> None:
    for index, name in enumerate(node.input):
        if name in names:
            node.input[index] = names[name]


def _copied(node: onnx.NodeProto, names: dict[str, str]) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    _replace_inputs(copy, names)
    return copy
