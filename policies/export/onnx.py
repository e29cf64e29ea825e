"""The deployed form: one ONNX file, 8-bit layers with the policy's integer codes, the others in float32."""

from __future__ import annotations

import io
import warnings
from typing import Any, cast

import onnx
import torch
from torch import Tensor, nn
from torch.onnx import TrainingMode

from .. import forms
from ..coding.tensors import UniformTensor
from ..errors import ModelError
from .onnx_graph import fold_batch_norm, fold_padding, has_control_flow, read, settle_shapes, write
from .qdq import EightBitLayer, insert_qdq


def export_onnx(
    model: nn.Module,
    example: Tensor,
    *,
    calibration: Tensor | None,
    plain: nn.Module | None = None,
    opset: int = 17,
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

    Raises
    ------
    ModelError
        Where the network cannot be exported, or an 8-bit layer cannot be exported as one.
    """
    layers = _eight_bit_layers(model)
    exported = _trace((plain or forms.plain(model)).eval(), example, opset)
    if has_control_flow(exported):
        if layers:
            raise ModelError(
                "an 8-bit export needs a network without control flow; this one branches or loops at run time"
            )
        return exported.SerializeToString()
    graph = read(exported)
    settle_shapes(graph, example.detach().numpy())
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
            if isinstance(stored, UniformTensor):
                scale, zero_point = (cast(Tensor, b).item() for b in (module.input_scale, module.input_zero_point))
                layers[f"{name}.weight"] = EightBitLayer(stored, float(scale), int(zero_point))
    return layers


def _trace(model: nn.Module, example: Tensor, opset: int) -> onnx.ModelProto:
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
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
    return onnx.load_from_string(buffer.getvalue())
