"""Networks traced to ONNX, and the traces remembered: networks of one structure are traced once."""

from __future__ import annotations

import copy
import io
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.onnx import TrainingMode

from ..errors import ModelError
from ..state import tensors_alone, to_array
from .constants import ShapeConstants, fold_constants, settle_shapes, shape_constants
from .onnx_graph import Graph, attribute, constant_of, has_control_flow, read
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
    steady
        Whether a network of the same structure with other values has the same trace; ``None`` where none was tried.
    """

    model: onnx.ModelProto
    tensors: tuple[str, ...] | None
    constants: ShapeConstants
    head: tuple[str, int] | None
    steady: bool | None = None

    def graph(self, tensors: Mapping[str, Tensor]) -> Graph:
        """The graph with these tensors for the network's own; shapes are settled, and what is computed from tensors alone."""
        graph = _filled(self.model, self.tensors, tensors)
        settle_shapes(graph, self.constants)
        fold_constants(graph)
        return graph

    def is_of(self, model: nn.Module | None, example: Tensor, opset: int) -> bool:
        """Whether it is this network's trace too, tensors aside."""
        if model is None:
            return False
        try:
            exported, constant = _exported(model, example, opset)
            other = _trace(exported, named_tensors(model), example, constant)
        # With other values the forward pass may go other ways, or nowhere.
        except Exception:
            return False
        return (
            self.tensors == other.tensors
            and self.head == other.head
            and self.model.SerializeToString(deterministic=True) == other.model.SerializeToString(deterministic=True)
            and self.constants.equals(other.constants)
        )

    def serves(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether it serves networks of these channel counts too."""
        return self.head is not None and len(tensors[self.head[0]]) == self.head[1]


class OnnxTracer:
    """Traces networks, and knows those of its last structures again.

    A trace is used a second time only once a network of other values has given the same one: a forward pass may hand values
    of its tensors to the tracer as constants in more ways than the tracer warns of.

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
        place = None if known is None else self._place(free, exact, tensors)
        if place is not None and self._is_steady(place, model, example, opset):
            return self._traces[place].graph(tensors)
        exported, constant = export(model, example, opset)
        if has_control_flow(exported):
            return exported
        trace = _trace(exported, tensors, example, constant)
        if known is not None and place is None and trace.tensors is not None:
            self._keep(free if trace.head else exact, trace)
        return trace.graph(tensors)

    def _place(self, free: Hashable, exact: Hashable, tensors: Mapping[str, Tensor]) -> Hashable | None:
        """Under what a trace of networks like this one is kept."""
        for key in (free, exact):
            trace = self._traces.get(key)
            if trace is not None and (key is exact or trace.serves(tensors)):
                self._traces.move_to_end(key)
                return key
        return None

    def _is_steady(self, place: Hashable, model: nn.Module, example: Tensor, opset: int) -> bool:
        """Whether a kept trace does not depend on values; tried when it is first wanted again."""
        trace = self._traces[place]
        if trace.steady is None:
            trace = self._traces[place] = replace(trace, steady=trace.is_of(_jogged(model), example, opset))
        return bool(trace.steady)

    def _keep(self, key: Hashable, trace: Trace) -> None:
        self._traces[key] = trace
        self._traces.move_to_end(key)
        while len(self._traces) > self.capacity:
            self._traces.popitem(last=False)


def _jogged(model: nn.Module) -> nn.Module | None:
    """A copy whose tensors hold other values, what is positive stays so; ``None`` where the network cannot be copied."""
    generator = torch.Generator().manual_seed(0)

    def jogged(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.detach()
        noise = torch.rand(tensor.shape, generator=generator).to(tensor.dtype)
        value = tensor.detach() * (0.75 + noise / 2) + noise / 64
        return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value

    try:
        return copy.deepcopy(model, {id(tensor): jogged(tensor) for tensor in named_tensors(model).values()})
    # The network is the user's own code, and so is how it is copied.
    except Exception:
        return None


def export(model: nn.Module, example: Tensor, opset: int) -> tuple[onnx.ModelProto, bool]:
    """The network as torch's tracing exporter writes it, and whether its graph is sure not to depend on values.

    Raises
    ------
    ModelError
        Where the network cannot be exported.
    """
    return _exported(model, example, opset)


def _exported(model: nn.Module, example: Tensor, opset: int) -> tuple[onnx.ModelProto, bool]:
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
    constants = shape_constants(_filled(exported, names, tensors), example.detach().numpy())
    return Trace(exported, names, constants, head)


def _filled(model: onnx.ModelProto, names: Sequence[str] | None, tensors: Mapping[str, Tensor]) -> Graph:
    """The traced graph, with these tensors where it does not hold the network's own."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return read(copied, {} if names is None else merged({name: tensors[name] for name in names}))


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
