"""A network with exits as one ONNX file that leaves its graph where an exit is sure enough (operator ``If``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import ModelError

LOGITS, EXIT, THRESHOLD = "logits", "exit", "threshold_{}"


def with_exits(model: bytes, thresholds: Sequence[float]) -> bytes:
    """One picture at a time: ``logits`` (1, K) and ``exit`` (1,), the number of the exit that was taken.

    An exit is taken where its largest softmax probability is at least its threshold. What follows it is computed in a
    branch of its own, so that it costs nothing otherwise. Thresholds are inputs with these values as their defaults
    (``threshold_0``, ...), so that a product can trade error for time without another file.

    Parameters
    ----------
    model
        ONNX of ``exits.EveryExit``: its output joins the logits of each exit and at last of the whole network.
    thresholds
        One for each exit but the last.

    Raises
    ------
    ModelError
        Where there are not as many thresholds as exits before the last.
    """
    proto = onnx.load_from_string(model)
    joined = next(node for node in proto.graph.node if proto.graph.output[0].name in node.output)
    exits, nodes = list(joined.input), [node for node in proto.graph.node if node is not joined]
    if joined.op_type != "Concat":
        raise ModelError(f"expected a network that joins its exits' logits; its output comes from {joined.op_type}")
    if len(thresholds) != len(exits) - 1 or not thresholds:
        raise ModelError(f"expected {len(exits) - 1} thresholds, one for each exit but the last; got {len(thresholds)}")
    graph = proto.graph
    limits = [numpy_helper.from_array(np.array([t], np.float32), THRESHOLD.format(k)) for k, t in enumerate(thresholds)]
    first, *rest = _parts(nodes, exits)
    values = {value.name: value for value in graph.initializer}
    outer = _read(first, values)
    nodes = [*first, *_decision(0, exits, rest, {n: value for n, value in values.items() if n not in outer})]
    source = helper.make_tensor_value_info(graph.input[0].name, TensorProto.FLOAT, _one_picture(graph.input[0]))
    inputs = [source, *(helper.make_tensor_value_info(limit.name, TensorProto.FLOAT, [1]) for limit in limits)]
    made = helper.make_graph(nodes, "exits", inputs, _outputs(""), [*outer.values(), *limits])
    out = helper.make_model(made, opset_imports=proto.opset_import, producer_name="paretopress", ir_version=8)
    onnx.checker.check_model(out)
    return out.SerializeToString()


def _parts(nodes: list[onnx.NodeProto], exits: Sequence[str]) -> list[list[onnx.NodeProto]]:
    """The nodes that each exit needs and none before it, in their order."""
    makers = {name: index for index, node in enumerate(nodes) for name in node.output}
    done: set[int] = set()
    parts = []
    for name in exits:
        needed, waiting = set(), [makers[name]] if name in makers else []
        while waiting:
            index = waiting.pop()
            if index not in needed and index not in done:
                needed.add(index)
                waiting += [makers[read] for read in nodes[index].input if read in makers]
        done |= needed
        parts.append([nodes[index] for index in sorted(needed)])
    return parts


def _read(nodes: Sequence[onnx.NodeProto], values: Mapping[str, TensorProto]) -> dict[str, TensorProto]:
    return {name: values[name] for node in nodes for name in node.input if name in values}


def _decision(
    number: int, exits: Sequence[str], rest: Sequence[Sequence[onnx.NodeProto]], values: Mapping[str, TensorProto]
) -> list[onnx.NodeProto]:
    """The nodes that decide at an exit, and the two branches; each holds its own weights.

    The runtime lays out weights for its fast kernels only where they stand in the graph that reads them.
    """
    name, is_outermost = exits[number], number == 0
    sure, limit = f"{name}_sure", THRESHOLD.format(number)
    leave = helper.make_graph(_answer(name, number, f"_{number}t"), f"leave_{number}", [], _outputs(f"_{number}t"))
    following, *further = rest
    inner = list(following)
    own = _read(following, values)
    left = {name: value for name, value in values.items() if name not in own}
    inner += _decision(number + 1, exits, further, left) if further else _answer(exits[-1], number + 1, f"_{number}e")
    prefix = f"_{number}e"
    stay = helper.make_graph(inner, f"stay_{number}", [], _outputs(prefix), list(own.values()))
    suffix = "" if is_outermost else f"_{number - 1}e"
    return [
        helper.make_node("Softmax", [name], [f"{name}_probability"], axis=1),
        helper.make_node("ReduceMax", [f"{name}_probability"], [f"{name}_largest"], axes=[1], keepdims=0),
        helper.make_node("GreaterOrEqual", [f"{name}_largest", limit], [sure]),
        helper.make_node("If", [sure], [LOGITS + suffix, EXIT + suffix], then_branch=leave, else_branch=stay),
    ]


def _answer(name: str, number: int, suffix: str) -> list[onnx.NodeProto]:
    taken = numpy_helper.from_array(np.array([number], np.int64))
    return [
        helper.make_node("Identity", [name], [LOGITS + suffix]),
        helper.make_node("Constant", [], [EXIT + suffix], value=taken),
    ]


def _outputs(suffix: str) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(LOGITS + suffix, TensorProto.FLOAT, [1, None]),
        helper.make_tensor_value_info(EXIT + suffix, TensorProto.INT64, [1]),
    ]


def _one_picture(value: onnx.ValueInfoProto) -> list[int]:
    _, *others = (dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return [1, *others]
