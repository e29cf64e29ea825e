"""Whether ONNX Runtime must be told, on this processor, to multiply 8-bit integers without overflow.

On x86 the runtime multiplies unsigned by signed 8 bit. Without the instructions that are called VNNI it adds two such products
in 16 bit, which saturates where weights lie outside of [-64, 64]: a network computes other values than its file says.
``session.x64quantprecision=1`` puts exact, slower kernels in their place. With VNNI there is nothing to mend, yet the option
takes the fast kernels away: the same outputs, bit for bit, in up to twice the time. So it is left out there, once a small
network has shown in this process that the outputs are indeed exact. Other processors have no such kernels and no such option.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper

EXACT_INTEGERS = ("session.x64quantprecision", "1")
"""The session option that makes 8-bit layers exact on x86 processors without VNNI."""
WITH_OPTION, WITHOUT_OPTION = "=".join(EXACT_INTEGERS), f"no {EXACT_INTEGERS[0]}"
ADVICE = (
    "The file has 8-bit layers. On x86-64 processors without VNNI (no avx512_vnni or avx_vnni among the flags) ONNX Runtime"
    " needs the session option session.x64quantprecision=1: without it 8-bit products overflow, and outputs are others than"
    " those measured. With VNNI, and on other processors, leave it out: outputs are the same bit for bit, and 8-bit layers"
    " would take up to twice as long."
)
"""Which option a file with 8-bit layers needs where, for people."""
VNNI = ("avx512_vnni", "avx_vnni")
"""Names that ``torch.cpu.get_capabilities`` gives the instructions; processors with 8-bit AMX have the first as well."""
_X86 = ("x86_64", "amd64", "x86", "i686", "i386")
_INPUT, _SCALE = "input", 2.0**-8
_CHANNELS, _SIDE, _CLASSES = 32, 6, 10
_CONVOLUTIONS = (((32, 32, 3, 3), 1, 15), ((32, 1, 3, 3), 32, 10), ((8, 32, 1, 1), 1, 11))
"""Shape of the weight, groups, and how many bits the sums are shifted down to be 8-bit codes."""

Run = Callable[[bytes, np.ndarray, Mapping[str, str]], np.ndarray]
"""Outputs of a file on a picture under session options."""


@cache
def session_entries() -> dict[str, str]:
    """What 8-bit layers need on this processor as session options, found out once for each process: empty or one entry."""
    return entries_for(_capabilities(), run_trial)


def options_here() -> str:
    """The option as sessions of this process have it, in words: latencies of 8-bit layers with and without differ."""
    name, value = EXACT_INTEGERS
    return WITH_OPTION if session_entries().get(name) == value else WITHOUT_OPTION


def entries_for(capabilities: Mapping[str, Any], run: Run) -> dict[str, str]:
    """Say which session options 8-bit layers need on a processor.

    Parameters
    ----------
    capabilities
        What ``torch.cpu.get_capabilities`` says of it: names of instructions, and ``architecture``.
    run
        Gives the outputs of a file there; asked only where the capabilities say that the option is not needed.
    """
    if str(capabilities.get("architecture", "")).lower() not in _X86:
        return {}
    # Flags may be there and the kernels not, as in a runtime that was built otherwise.
    has_vnni = any(capabilities.get(name) for name in VNNI)
    return {} if has_vnni and is_exact(run, {}) else dict([EXACT_INTEGERS])


def _capabilities() -> Mapping[str, Any]:
    """What torch knows of the processor, on every system alike; older releases do not tell its instructions."""
    known = getattr(torch.cpu, "get_capabilities", None)
    return {"architecture": platform.machine()} if known is None else dict(known())


def is_exact(run: Run, entries: Mapping[str, str]) -> bool:
    """Whether a runtime computes a small 8-bit network to the last bit under session options."""
    trial = make_trial()
    return np.array_equal(run(trial.file, trial.picture, entries), trial.outputs)


def has_8_bit_layers(file: bytes) -> bool:
    """Whether the outputs of an ONNX file hang on the session's options."""
    return any(node.op_type == "DequantizeLinear" for node in onnx.load_model_from_string(file).graph.node)


def run_trial(file: bytes, picture: np.ndarray, entries: Mapping[str, str]) -> np.ndarray:
    """Outputs of the trial in ONNX Runtime at one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    running = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return np.asarray(running.run(None, {_INPUT: picture})[0])


@dataclass(frozen=True)
class Trial:
    """A network with an 8-bit layer of each kind and codes as large as they come, and its outputs by integer arithmetic.

    Parameters
    ----------
    file
        ONNX: a 3x3, a depthwise and a 1x1 convolution, and a linear layer.
    picture
        (1, C, H, W) float32, its values codes times the input's scale.
    outputs
        (1, classes) float32.
    codes
        Smallest and largest 8-bit activation of each layer's output before it is cut to 0 to 255.
    """

    file: bytes
    picture: np.ndarray
    outputs: np.ndarray
    codes: tuple[tuple[float, float], ...]


def make_trial() -> Trial:
    """Make the network: sums of products stay below 2 ** 24 and scales are powers of two, so that float32 holds every value."""
    rng, network = np.random.default_rng(0), _Network()
    codes = rng.integers(160, 256, (_CHANNELS, _SIDE, _SIDE))
    picture = (codes[None] * _SCALE).astype(np.float32)
    last, ranges = network.quantized(_INPUT), []
    for shape, groups, shift in _CONVOLUTIONS:
        weight = rng.integers(64, 128, shape)
        last = network.convolution(last, weight, groups, shift)
        sums = convolve(codes, weight, groups) * 2.0**-shift
        ranges.append((float(sums.min()), float(sums.max())))
        codes = np.clip(np.rint(sums), 0, 255).astype(np.int64)
    weight = rng.integers(64, 128, (_CLASSES, codes.size))
    file = network.finish(last, weight)
    outputs = (weight @ codes.ravel()).astype(np.float32) * np.float32(_SCALE * _SCALE)
    return Trial(file, picture, outputs[None], tuple(ranges))


def convolve(codes: np.ndarray, weight: np.ndarray, groups: int) -> np.ndarray:
    """Convolve (C, H, W) with (K, C / groups, k, k), padded to the same size, in int64; (K, H, W)."""
    side, inputs = weight.shape[2], weight.shape[1]
    padded = np.pad(codes, ((0, 0), (side // 2,) * 2, (side // 2,) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (1, 2))
    per_group = len(weight) // groups
    read = [windows[k // per_group * inputs : (k // per_group + 1) * inputs] for k in range(len(weight))]
    return np.stack([np.einsum("chwij,cij->hw", part, kernel) for part, kernel in zip(read, weight)])


class _Network:
    """Collects the trial's nodes: every activation and weight goes through a pair of quantize and dequantize nodes."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._values = {"scale": np.array(_SCALE, np.float32), "zero": np.array(0, np.uint8)}

    def quantized(self, name: str) -> str:
        self._nodes += [
            helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_codes"]),
            helper.make_node("DequantizeLinear", [f"{name}_codes", "scale", "zero"], [f"{name}_values"]),
        ]
        return f"{name}_values"

    def convolution(self, source: str, weight: np.ndarray, groups: int, shift: int) -> str:
        name, half = f"layer{len(self._nodes)}", weight.shape[2] // 2
        # Products come to units of the activations' scale times the weights'; the output's codes are sums / 2 ** shift.
        kernel = self._weight(name, weight, 2.0**-shift)
        self._nodes.append(helper.make_node("Conv", [source, kernel], [name], group=groups, pads=[half] * 4))
        return self.quantized(name)

    def finish(self, source: str, weight: np.ndarray) -> bytes:
        kernel = self._weight("last", weight, _SCALE)
        self._nodes += [
            helper.make_node("Flatten", [source], ["row"]),
            helper.make_node("Gemm", ["row", kernel], ["logits"], transB=1),
        ]
        graph = helper.make_graph(
            self._nodes,
            "trial",
            [helper.make_tensor_value_info(_INPUT, onnx.TensorProto.FLOAT, [1, _CHANNELS, _SIDE, _SIDE])],
            [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [1, _CLASSES])],
            [numpy_helper.from_array(value, name) for name, value in self._values.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return bytes(model.SerializeToString())

    def _weight(self, name: str, codes: np.ndarray, scale: float) -> str:
        names = [f"{name}_weight", f"{name}_scales", f"{name}_zeros"]
        count = len(codes)
        values = (codes.astype(np.int8), np.full(count, scale, np.float32), np.zeros(count, np.int8))
        self._values.update(zip(names, values))
        self._nodes.append(helper.make_node("DequantizeLinear", names, [f"{name}_kernel"], axis=0))
        return f"{name}_kernel"
