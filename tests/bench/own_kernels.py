"""Our binary and sparse convolutions against ONNX Runtime's dense ones of the same shape; JSON on stdout.

Run by ``make bench-own-kernels``. One thread, batch 1, weights packed beforehand; everything a call needs for its input
is in its time; the output is written to an array that is reused, as the runtime reuses its memory. Calls take turns, and
processor time is compared, so that other work on the machine falls on all alike. ``int8`` takes and gives float32 as
ours does; ``int8_inside`` takes and gives 8 bit, as between two 8-bit layers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from paretopress.policies.kernels import pack_binary_weight, pack_sparse_weight, sparse_pointwise, xnor_conv2d

ROUNDS, WARM_UP = 60, 5
# Input channels, filters, height and width.
BINARY = ((64, 64, 56), (128, 128, 28), (256, 256, 14))
SPARSE = ((64, 128, 56), (128, 256, 28), (256, 512, 14))
ZEROS = (0.90, 0.95)
INPUT_SCALE, ZERO_POINT = 8.0 / 255.0, 128


def float_model(weight: np.ndarray, size: int) -> onnx.ModelProto:
    """One convolution in float32."""
    return _model([_conv("x", "w", "y", weight)], {"w": weight}, weight, size, TensorProto.FLOAT)


def int8_model(weight: np.ndarray, size: int, output_scale: float, inside: bool) -> onnx.ModelProto:
    """One convolution in QDQ form: unsigned 8-bit activations, signed 8-bit weights with a scale for each filter."""
    widest = np.abs(weight).max(axis=(1, 2, 3))
    scales = np.where(widest > 0, widest / 127, 1).astype(np.float32)
    values = {
        "w_codes": np.rint(weight / scales[:, None, None, None]).astype(np.int8),
        "w_scale": scales,
        "w_zero": np.zeros(len(weight), np.int8),
        "x_scale": np.array(INPUT_SCALE, np.float32),
        "y_scale": np.array(output_scale, np.float32),
        "zero": np.array(ZERO_POINT, np.uint8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "zero"], ["x_codes"]),
        helper.make_node("DequantizeLinear", ["x" if inside else "x_codes", "x_scale", "zero"], ["x_values"]),
        helper.make_node("DequantizeLinear", ["w_codes", "w_scale", "w_zero"], ["w"], axis=0),
        _conv("x_values", "w", "sums", weight),
        helper.make_node("QuantizeLinear", ["sums", "y_scale", "zero"], ["y" if inside else "y_codes"]),
        helper.make_node("DequantizeLinear", ["y_codes", "y_scale", "zero"], ["y"]),
    ]
    kind = TensorProto.UINT8 if inside else TensorProto.FLOAT
    return _model(nodes[1:-1] if inside else nodes, values, weight, size, kind)


def _conv(x: str, weight: str, y: str, values: np.ndarray) -> onnx.NodeProto:
    kernel = list(values.shape[2:])
    return helper.make_node("Conv", [x, weight], [y], kernel_shape=kernel, pads=[k // 2 for k in kernel * 2])


def _model(
    nodes: list[onnx.NodeProto], values: Mapping[str, np.ndarray], weight: np.ndarray, size: int, kind: int
) -> onnx.ModelProto:
    filters, channels = weight.shape[:2]
    graph = helper.make_graph(
        nodes,
        "one_layer",
        [helper.make_tensor_value_info("x", kind, [1, channels, size, size])],
        [helper.make_tensor_value_info("y", kind, [1, filters, size, size])],
        [numpy_helper.from_array(array, name) for name, array in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def runner(model: onnx.ModelProto, x: np.ndarray) -> Callable[[], np.ndarray]:
    """A call of the model at one thread, on the fastest kernels that there are, whether 8-bit ones overflow or not."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": x})[0]


def compare(ours: Callable[[], np.ndarray], weight: np.ndarray, x: np.ndarray) -> dict[str, object]:
    """The least time of each, and the ratio of ours to each reference: of the least times, and the median of rounds."""
    size = x.shape[2]
    dense = runner(float_model(weight, size), x)
    output_scale = float(np.abs(dense()).max()) / 127
    codes = np.clip(np.rint(x / INPUT_SCALE) + ZERO_POINT, 0, 255).astype(np.uint8)
    calls = {
        "ours": ours,
        "float32": dense,
        "int8": runner(int8_model(weight, size, output_scale, inside=False), x),
        "int8_inside": runner(int8_model(weight, size, output_scale, inside=True), codes),
    }
    seconds = {name: np.empty(WARM_UP + ROUNDS) for name in calls}
    for index in range(WARM_UP + ROUNDS):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            seconds[name][index] = time.process_time() - begin
    seconds = {name: values[WARM_UP:] for name, values in seconds.items()}
    least = {name: float(values.min()) for name, values in seconds.items()}
    references = [name for name in calls if name != "ours"]
    return {
        "microseconds": {name: round(value * 1e6, 1) for name, value in least.items()},
        "ratio": {name: round(least["ours"] / least[name], 3) for name in references},
        "median_ratio": {name: round(float(np.median(seconds["ours"] / seconds[name])), 3) for name in references},
    }


def binary_case(channels: int, filters: int, size: int) -> dict[str, object]:
    """3x3, padding 1, stride 1."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((1, channels, size, size), dtype=np.float32)
    weight = draw.standard_normal((filters, channels, 3, 3), dtype=np.float32)
    packed, out = pack_binary_weight(weight), np.empty((1, filters, size, size), np.float32)
    figures = compare(lambda: xnor_conv2d(x, packed, padding=1, out=out), weight, x)
    return {"layer": f"3x3, {channels} to {filters} channels, {size}x{size}", **figures}


def sparse_case(channels: int, filters: int, size: int, zeros: float) -> dict[str, object]:
    """1x1; each weight is zero with the given probability."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((1, channels, size, size), dtype=np.float32)
    weight = draw.standard_normal((filters, channels, 1, 1), dtype=np.float32)
    weight *= draw.random(weight.shape) >= zeros
    packed, out = pack_sparse_weight(weight), np.empty((1, filters, size, size), np.float32)
    layer = f"1x1, {channels} to {filters} channels, {size}x{size}"
    return {"layer": layer, "zeros": zeros, **compare(lambda: sparse_pointwise(x, packed, out=out), weight, x)}


def told(case: dict[str, object]) -> dict[str, object]:
    """The case, after a word on stderr that it is done."""
    print(case["layer"], case.get("zeros", "binary"), case["ratio"], file=sys.stderr, flush=True)
    return case


def main() -> None:
    """Measure and print."""
    table = {
        "rounds": ROUNDS,
        "binary": [told(binary_case(*shape)) for shape in BINARY],
        "sparse": [told(sparse_case(*shape, zeros)) for zeros in ZEROS for shape in SPARSE],
    }
    print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
