"""Quantize and dequantize nodes around the 8-bit layers, placed so that ONNX Runtime runs these layers on integers.

Only islands are quantized: the inputs of 8-bit layers, the outputs of 8-bit convolutions (their integer kernel writes
8 bit), and what lies between two 8-bit layers and moves or adds values. A float layer in between stays float.
Activations are unsigned and asymmetric, weights signed and symmetric per output channel (1712.05877, section 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from ..coding.tensors import UniformTensor
from ..errors import CandidateError, ModelError
from .onnx_graph import Graph, attribute, tensor_ranges

# Operators with an 8-bit kernel, and whether every input is an activation (otherwise the first one).
CARRIERS = {
    "Add": True,
    "Mul": True,
    "Concat": True,
    "AveragePool": False,
    "Clip": False,
    "GlobalAveragePool": False,
    "LeakyRelu": False,
    "Relu": False,
    "Sigmoid": False,
    "Flatten": False,
    "MaxPool": False,
    "Reshape": False,
    "Squeeze": False,
    "Transpose": False,
    "Unsqueeze": False,
}
# Operators that only move values: input and output must share scale and zero point to run on the codes themselves.
MOVERS = ("Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze")
ACTIVATIONS = ("Relu", "Clip")
# Keeps a bias within int32 with a margin for the sum it starts.
BIAS_LIMIT = 2.0**30


@dataclass(frozen=True)
class EightBitLayer:
    """What an 8-bit layer declares.

    Parameters
    ----------
    weight
        Codes and scales.
    input_scale, input_zero_point
        Of its unsigned 8-bit input.
    """

    weight: UniformTensor
    input_scale: float
    input_zero_point: int

    @property
    def input_range(self) -> tuple[float, float]:
        """Smallest and largest input that can be told apart."""
        return -self.input_zero_point * self.input_scale, (255 - self.input_zero_point) * self.input_scale


@dataclass(frozen=True)
class Placement:
    """Which nodes run on integers.

    Parameters
    ----------
    layers
        The 8-bit layers by their node's output.
    tensors
        Activations that are quantized.
    integer
        Outputs of the nodes that run on integers, whether or not their output is quantized.
    """

    layers: dict[str, EightBitLayer]
    tensors: set[str]
    integer: set[str]


def insert_qdq(graph: Graph, layers: dict[str, EightBitLayer], calibration: np.ndarray | None) -> None:
    """Quantize the given layers (by the name of their weight) and the activations around them.

    Parameters
    ----------
    graph
        Float network, batch norm folded; changed in place.
    layers
        By the name of the weight parameter.
    calibration
        (N, C, H, W) pictures for ranges that no layer declares.

    Raises
    ------
    ModelError
        Where a layer's weight is not used as it is stored, or ranges are needed and there are no pictures.
    """
    placement = _place(graph, _find(graph, layers))
    scales = _activation_scales(graph, placement, calibration)
    weights: list[onnx.NodeProto] = []
    for node in graph.nodes:
        if node.output[0] in placement.layers:
            layer = placement.layers[node.output[0]]
            weights += _quantize_weight(graph, node, layer, scales[node.input[0]][0])
    _wrap_activations(graph, placement, scales)
    graph.nodes = weights + graph.nodes


def _find(graph: Graph, layers: dict[str, EightBitLayer]) -> dict[str, EightBitLayer]:
    """The layers by their node's output; a layer that the network does not run, or not on pictures, is left out."""
    found = {}
    for node in graph.nodes:
        parameter = graph.parameter_of(node)
        if parameter in layers and _channel_axis(node) == int(node.input[1] in graph.transposed):
            found[node.output[0]] = layers[parameter]
    run = graph.settled | {graph.parameter_of(node) for node in graph.nodes if node.output[0] in found}
    for parameter in layers:
        if parameter in graph.values and parameter not in run:
            raise ModelError(
                f"layer '{parameter.removesuffix('.weight')}' cannot be exported as 8 bit: expected a convolution or"
                " linear layer that multiplies with the stored weight, but the network uses that weight in another way;"
                " leave this layer out of quantization"
            )
    return found


def _channel_axis(node: onnx.NodeProto) -> int:
    """The axis of the weight that holds the output channels."""
    return int(node.op_type == "MatMul" or (node.op_type == "Gemm" and attribute(node, "transB", 0) == 0))


def _place(graph: Graph, layers: dict[str, EightBitLayer]) -> Placement:
    """Choose the activations to quantize, from the 8-bit layers outwards."""
    tensors = {node.input[0] for node in graph.nodes if node.output[0] in layers}
    able = set(layers) | tensors
    for node in graph.nodes:
        sources = _sources(graph, node)
        if sources and able.issuperset(sources):
            able.add(node.output[0])
    carriers = [
        node for node in graph.nodes if node.output[0] in able and able.issuperset(_sources(graph, node) or [""])
    ]
    for node in reversed(carriers):
        if node.output[0] in tensors:
            tensors.update(_sources(graph, node))
    fused = _fused_activations(graph)
    for node in graph.nodes:
        if node.op_type == "Conv" and node.output[0] in layers:
            tensors.add(fused.get(node.output[0], node.output[0]))
    # An activation function behind an integer kernel is part of that kernel: nothing is quantized between the two.
    inside = {name for name, after in fused.items() if name in able and after in tensors}
    reached = tensors | inside
    integer = {n.output[0] for n in carriers if n.output[0] in reached and reached.issuperset(_sources(graph, n))}
    integer |= {fused[name] for name in inside}
    return Placement(layers, tensors - inside, integer | set(layers))


def _sources(graph: Graph, node: onnx.NodeProto) -> list[str]:
    """The activations that an operator with an 8-bit kernel reads; none for other operators."""
    every = CARRIERS.get(node.op_type)
    if every is None or len(node.output) != 1:
        return []
    sources = list(node.input) if every else [node.input[0]]
    return [] if any(name in graph.values for name in sources) else sources


def _fused_activations(graph: Graph) -> dict[str, str]:
    """Output of a node → output of the activation function that alone reads it."""
    consumers = graph.consumers()
    return {
        name: readers[0].output[0]
        for name, readers in consumers.items()
        if len(readers) == 1 and readers[0].op_type in ACTIVATIONS and name not in graph.outputs + graph.inputs
    }


def _activation_scales(
    graph: Graph, placement: Placement, calibration: np.ndarray | None
) -> dict[str, tuple[float, int]]:
    """Scale and zero point of each quantized activation: as its readers declare, or else measured."""
    groups = _groups(graph, placement)
    declared: dict[str, list[EightBitLayer]] = {}
    for node in graph.nodes:
        if node.output[0] in placement.layers:
            declared.setdefault(groups[node.input[0]], []).append(placement.layers[node.output[0]])
    measured = sorted(name for name, group in groups.items() if group not in declared)
    if measured and calibration is None:
        raise ModelError(
            f"the ranges of {len(measured)} activations between 8-bit layers are unknown (first: '{measured[0]}');"
            " give calibration pictures (N, C, H, W)"
        )
    ranges = {} if calibration is None else tensor_ranges(graph, measured, calibration)
    scales = {group: _declared_scale(readers) for group, readers in declared.items()}
    for group in set(groups.values()) - set(declared):
        scales[group] = _scale([ranges[name] for name in measured if groups[name] == group])
    return {name: scales[group] for name, group in groups.items()}


def _groups(graph: Graph, placement: Placement) -> dict[str, str]:
    """For each quantized activation the one that stands for all that must share its scale."""
    groups = {name: name for name in placement.tensors}
    for node in graph.nodes:
        source, target = node.input[0] if node.input else "", node.output[0]
        if node.op_type in MOVERS and target in placement.integer and {source, target} <= placement.tensors:
            old, new = groups[target], groups[source]
            groups = {name: new if group == old else group for name, group in groups.items()}
    return groups


def _declared_scale(readers: Sequence[EightBitLayer]) -> tuple[float, int]:
    choices = {(layer.input_scale, layer.input_zero_point) for layer in readers}
    return choices.pop() if len(choices) == 1 else _scale([layer.input_range for layer in readers])


def _scale(ranges: Sequence[tuple[float, float]]) -> tuple[float, int]:
    """Scale and zero point of 256 steps over all the ranges and 0 (1712.05877, section 2.1)."""
    low, high = float(np.min([*ranges, (0.0, 0.0)])), float(np.max([*ranges, (0.0, 0.0)]))
    if not np.isfinite(high - low):
        raise CandidateError(
            f"an activation has no finite range ({low} to {high}): the network has diverged; train it less hard"
        )
    scale = max((high - low) / 255.0, 1e-8)
    return scale, round(-low / scale)


def _quantize_weight(
    graph: Graph, node: onnx.NodeProto, layer: EightBitLayer, input_scale: float
) -> list[onnx.NodeProto]:
    """Give the node its layer's codes and an int32 bias in steps of both scales; the dequantize nodes are returned."""
    axis, transposed = _channel_axis(node), node.input[1] in graph.transposed
    factor = graph.factors.get(node.output[0], np.ones(len(layer.weight.scales)))
    codes = layer.weight.codes * _along_channels(np.sign(factor), layer.weight.codes).astype(np.int8)
    scales = (layer.weight.scales * np.abs(factor)).astype(np.float32)
    bias = graph.values.get(node.input[2]) if len(node.input) > 2 else None
    if bias is not None:
        codes, scales = _make_room(codes, scales, np.abs(bias) / (input_scale * BIAS_LIMIT))
    name = str(graph.parameter_of(node))
    name = name if f"{name}_quantized" not in graph.values else f"{name}/{node.output[0]}"
    added = [_dequantized(graph, name, codes.T.copy() if transposed else codes, scales, axis)]
    if bias is not None:
        steps = scales.astype(np.float64) * input_scale
        integers = np.rint(bias / np.where(steps > 0, steps, 1.0)).astype(np.int32)
        added.append(_dequantized(graph, f"{name}_bias", integers, steps.astype(np.float32), 0))
        node.input[2] = added[1].output[0]
    node.input[1] = added[0].output[0]
    return added


def _make_room(codes: np.ndarray, scales: np.ndarray, least: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Raise the scales (C,) of channels whose bias would not fit int32; their codes are rounded to the new steps.

    It concerns channels of zeros, whose codes stay as they are, and channels that batch norm all but switches off.
    """
    raised = np.maximum(scales, least.astype(np.float32))
    ratio = np.divide(scales, raised, out=np.ones_like(scales), where=raised > 0)
    return np.rint(codes * _along_channels(ratio, codes)).astype(np.int8), raised


def _along_channels(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return values.reshape(-1, *(1,) * (weight.ndim - 1))


def _dequantized(graph: Graph, name: str, codes: np.ndarray, scales: np.ndarray, axis: int) -> onnx.NodeProto:
    names = [f"{name}_quantized", f"{name}_scale", f"{name}_zero_point"]
    graph.values.update(zip(names, (codes, scales, np.zeros(len(scales), codes.dtype))))
    return helper.make_node("DequantizeLinear", names, [f"{name}_dequantized"], axis=axis)


def _wrap_activations(graph: Graph, placement: Placement, scales: dict[str, tuple[float, int]]) -> None:
    """Put a quantize and a dequantize node behind each chosen activation.

    Integer nodes read the dequantized value; a float node does so only where no float value is left to read.
    """
    replaced = {name: f"{name}_dequantized" for name in placement.tensors}
    lost = {name: new for name, new in replaced.items() if name in placement.integer}
    nodes = [node for name in graph.inputs if name in replaced for node in _pair(graph, name, *scales[name])]
    for node in graph.nodes:
        names = replaced if node.output[0] in placement.integer else lost
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
        nodes.append(node)
        nodes += [made for name in node.output if name in replaced for made in _pair(graph, name, *scales[name])]
    graph.nodes = nodes


def _pair(graph: Graph, name: str, scale: float, zero_point: int) -> list[onnx.NodeProto]:
    parameters = [f"{name}_scale", f"{name}_zero_point"]
    graph.values.update(zip(parameters, (np.array(scale, np.float32), np.array(zero_point, np.uint8))))
    return [
        helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_quantized"]),
        helper.make_node("DequantizeLinear", [f"{name}_quantized", *parameters], [f"{name}_dequantized"]),
    ]
