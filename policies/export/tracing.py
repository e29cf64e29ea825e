"""Networks traced to ONNX, and the traces remembered: networks of one structure are traced once."""

from __future__ import annotations

import io
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.onnx import TrainingMode

from ..errors import ModelError
from ..state import tensors_alone, to_array
from .onnx_graph import (
    Graph,
    ShapeConstants,
    attribute,
    constant_of,
    has_control_flow,
    read,
    settle_shapes,
    shape_constants,
)
from .structure import named_tensors, structure

# Operators whose attributes and outputs do not depend on how many channels there are, in so far as constants do not.
CHANNEL_FREE = frozenset(
    {
        "Add",
        "AveragePool",
        "BatchNormalization",
        "Concat",
        "Constant",
        "Conv",
        "Flatten",
        "Gemm",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "MatMul",
        "MaxPool",
        "Mul",
        "ReduceMean",
        "Relu",
        "Sigmoid",
        "Sub",
        "Tanh",
        "Transpose",
    }
)


@dataclass(frozen=True)
class Trace:
    """A traced network.

    Parameters
    ----------
    model
        As the exporter wrote it; where ``tensors`` says which, without the network's own.
    tensors
        Names of the network's tensors that the graph reads, in the order of the state; ``None`` where the graph may
        depend on their values and therefore keeps them.
    constants
        Computed from shapes alone.
    head
        The weight that the output comes from, and its number of outputs; ``None`` where the graph may depend on channel
        counts.
    """

    model: onnx.ModelProto
    tensors: tuple[str, ...] | None
    constants: ShapeConstants
    head: tuple[str, int] | None

    def graph(self, tensors: Mapping[str, Tensor]) -> Graph:
        """The graph with these tensors for the network's own; shapes are settled."""
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        graph = read(model, {} if self.tensors is None else merged({name: tensors[name] for name in self.tensors}))
        settle_shapes(graph, self.constants)
        return graph

    def serves(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether it serves networks of these channel counts too."""
        return self.head is not None and len(tensors[self.head[0]]) == self.head[1]


class OnnxTracer:
    """Traces networks, and knows those of its last structures again.

    Parameters
    ----------
    capacity
        How many traces are kept.
    """

    def __init__(self, capacity: int = 16) -> None:
        self.capacity = capacity
        self._traces: OrderedDict[Hashable, Trace] = OrderedDict()

    def graph(self, model: nn.Module, example: Tensor, opset: int) -> Graph | onnx.ModelProto:
        """The network's graph; where it branches or loops, the exported file as it is.

        Parameters
        ----------
        model
            Plain network in evaluation mode.
        example
            (1, C, H, W).

        Raises
        ------
        ModelError
            Where the network cannot be exported.
        """
        tensors = named_tensors(model)
        known = structure(model)
        free: Hashable = (known, tuple(example.shape), example.dtype, opset)
        exact: Hashable = (free, tuple(tuple(tensor.shape) for tensor in tensors.values()))
        trace = None if known is None else self._found(free, exact, tensors)
        if trace is None:
            exported, constant = export(model, example, opset)
            if has_control_flow(exported):
                return exported
            trace = _trace(exported, tensors, example, constant)
            if known is not None and trace.tensors is not None:
                self._keep(free if trace.head else exact, trace)
        return trace.graph(tensors)

    def _found(self, free: Hashable, exact: Hashable, tensors: Mapping[str, Tensor]) -> Trace | None:
        for key in (free, exact):
            trace = self._traces.get(key)
            if trace is not None and (key is exact or trace.serves(tensors)):
                self._traces.move_to_end(key)
                return trace
        return None

    def _keep(self, key: Hashable, trace: Trace) -> None:
        self._traces[key] = trace
        self._traces.move_to_end(key)
        while len(self._traces) > self.capacity:
            self._traces.popitem(last=False)


def export(model: nn.Module, example: Tensor, opset: int) -> tuple[onnx.ModelProto, bool]:
    """The network as torch's tracing exporter writes it, and whether its graph is sure not to depend on values.

    Raises
    ------
    ModelError
        Where the network cannot be exported.
    """
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(record=True) as warned, tensors_alone(model):
            warnings.simplefilter("always")
            torch.onnx.export(
                model,
                (example,),
                cast(Any, buffer),  # the legacy exporter writes to any binary file, its signature names paths only
                opset_version=opset,
                input_names=["input"],
                output_names=["logits"],
                dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
                training=TrainingMode.PRESERVE,
                do_constant_folding=False,
                dynamo=False,
            )
    # A network is the user's own code and may raise anything while it is traced.
    except Exception as error:
        cause = next(iter(str(error).strip().splitlines()), type(error).__name__)
        shape = tuple(example.shape)
        raise ModelError(
            f"{type(model).__name__} cannot be exported to ONNX with an input of shape {shape}: {cause};"
            " check the input's shape, or replace the operator it names"
        ) from error
    # The tracer warns wherever a value becomes a number of Python's, which the graph then holds as a constant.
    constant = not any(issubclass(warning.category, torch.jit.TracerWarning) for warning in warned)
    return onnx.load_from_string(buffer.getvalue()), constant


def merged(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The tensors in the form and the order in which the exporter writes them: of equal ones, the first stands for all."""
    known: dict[tuple[object, ...], list[tuple[Tensor, np.ndarray]]] = {}
    first: dict[str, np.ndarray] = {}
    later: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        alike = known.setdefault((tensor.dtype, tensor.shape, tensor.stride()), [])
        same = next((array for other, array in alike if torch.equal(other, tensor)), None)
        if same is None:
            first[name] = to_array(tensor)
            alike.append((tensor, first[name]))
        else:
            later[name] = same
    return first | dict(reversed(later.items()))


def _trace(exported: onnx.ModelProto, tensors: Mapping[str, Tensor], example: Tensor, constant: bool) -> Trace:
    names = _tensor_names(exported, tensors) if constant else None
    head = None if names is None else _head(exported)
    if names is not None:
        merges = [node for node in exported.graph.node if node.op_type != "Identity" or node.output[0] not in names]
        del exported.graph.node[:], exported.graph.initializer[:]
        exported.graph.node.extend(merges)
    bare = Trace(exported, names, ShapeConstants({}, {}), head)
    return Trace(exported, names, shape_constants(bare.graph(tensors), example.detach().numpy()), head)


def _tensor_names(exported: onnx.ModelProto, tensors: Mapping[str, Tensor]) -> tuple[str, ...] | None:
    """The network's tensors that the graph reads; ``None`` where it holds others, or holds them otherwise."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in exported.graph.initializer}
    stored = dict(arrays)
    for node in exported.graph.node:
        if node.op_type == "Identity" and node.input[0] in arrays and node.output[0] in tensors:
            stored[node.output[0]] = arrays[node.input[0]]
    names = tuple(name for name in tensors if name in stored)
    found = merged({name: tensors[name] for name in names})
    same = list(found) == list(stored) and all(
        found[name].dtype == array.dtype and np.array_equal(found[name], array) for name, array in stored.items()
    )
    return names if same else None


def _head(exported: onnx.ModelProto) -> tuple[str, int] | None:
    """The linear layer that the one output comes from, where nothing in the graph depends on channel counts."""
    for node in exported.graph.node:
        if node.op_type not in CHANNEL_FREE or attribute(node, "group", 1) != 1:
            return None
        constant = constant_of(node)
        if node.op_type == "Constant" and (constant is None or not np.isin(constant, (-1, 0, 1)).all()):
            return None
    (output,) = exported.graph.output
    last = next(node for node in exported.graph.node if output.name in node.output)
    if last.op_type != "Gemm" or attribute(last, "transB", 0) != 1:
        return None
    return last.input[1], output.type.tensor_type.shape.dim[-1].dim_value
