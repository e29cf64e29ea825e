"""The deployed form: one ONNX file, 8-bit layers with the policy's integer codes, the others in float32."""

from __future__ import annotations

from typing import cast

import onnx
from torch import Tensor, nn

from .. import forms
from ..coding.tensors import UniformTensor
from ..errors import ModelError
from ..own_network import into_evaluation
from .onnx_graph import drop_zero_additions, fold_batch_norm, fold_padding, write
from .qdq import EightBitLayer, insert_qdq
from .tracing import OnnxTracer


def export_onnx(
    model: nn.Module,
    example: Tensor,
    *,
    calibration: Tensor | None,
    plain: nn.Module | None = None,
    opset: int = 17,
    tracer: OnnxTracer | None = None,
) -> bytes:
    """A compressed network as an ONNX file: input ``input`` (N, C, H, W), output ``logits`` (N, classes), N dynamic.

    A layer with uniformly quantized weights and a quantized input becomes an 8-bit layer: signed 8-bit weights, which
    are its codes of 2 to 8 bit as they are, with a scale for each output channel, and unsigned 8-bit activations.
    Every other layer is float32 with its effective weight. Batch norm is folded into the layer before it, where a
    negative factor turns the sign of the channel's codes.

    Parameters
    ----------
    model
        Layers may carry forms (see ``policies.forms``); it is not changed.
    example
        (1, C, H, W), the network's input.
    calibration
        (N, C, H, W) preprocessed pictures for the ranges of activations that no layer declares (a sum's inputs); about
        128 are enough. ``None`` where there are no such activations.
    plain
        ``forms.plain(model)``, where the caller has made it already.
    opset
        Version of the ONNX operators.
    tracer
        Where several networks of one structure are exported: what remembers its trace. The file is the same without.

    Raises
    ------
    ModelError
        Where the network cannot be exported, or an 8-bit layer cannot be exported as one.
    """
    layers = _eight_bit_layers(model)
    graph = (tracer or OnnxTracer()).graph(into_evaluation(plain or forms.plain(model)), example, opset)
    if isinstance(graph, onnx.ModelProto):
        if layers:
            raise ModelError(
                "an 8-bit export needs a network without control flow; this one branches or loops at run time"
            )
        return graph.SerializeToString()
    drop_zero_additions(graph)
    fold_padding(graph)
    fold_batch_norm(graph)
    insert_qdq(graph, layers, None if calibration is None else calibration.detach().numpy())
    return write(graph)


def _eight_bit_layers(model: nn.Module) -> dict[str, EightBitLayer]:
    """The 8-bit layers by the name of their weight; a layer that stands in two places has two names."""
    layers = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, forms.WEIGHTED) and forms.is_input_quantized(module):
            stored = forms.stored_weight(module)
            if isinstance(stored, UniformTensor) and stored.bits <= 8:
                scale, zero_point = (cast(Tensor, b).item() for b in (module.input_scale, module.input_zero_point))
                layers[f"{name}.weight"] = EightBitLayer(stored, float(scale), int(zero_point))
    return layers
