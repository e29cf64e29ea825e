"""Latency and error of a network in 8 bit beside what ONNX Runtime's own static quantizer makes of it; JSON on stdout.

Run by ``make bench-eight-bit`` for ResNet-20. All networks are timed in one interleaved run at one thread, under the session
options that this processor needs; everything but the first convolution is quantized, and ranges come from the same
calibration pictures. The members of a finished run of the same configuration are timed among them where it is given:

    python -m paretopress.tests.bench.eight_bit --config configs/efficientnet_lite0.yaml --run runs/lite0
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from paretopress.evaluators.accuracy import error_interval, file_error
from paretopress.evaluators.cores import available_cores
from paretopress.evaluators.data import DataSet
from paretopress.evaluators.exact_integers import session_entries
from paretopress.evaluators.runtime import session
from paretopress.policies.apply import apply_plan
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.search.config import load_config
from paretopress.search.labelling import labelled_by
from paretopress.search.prepare import dense_network, read_data
from paretopress.search.rundir import RunDirectory, processor_name

CONFIG = Path(__file__).parents[2] / "configs" / "cifar10_resnet20.yaml"
REFERENCE = "float32"
BLOCK = 20
RESAMPLES = 2000


class Pictures(CalibrationDataReader):
    """Gives the calibration pictures (N, C, H, W) one at a time, as the quantizer asks for them."""

    def __init__(self, x: np.ndarray) -> None:
        self._rest = iter(x)

    def get_next(self) -> dict[str, np.ndarray] | None:
        picture = next(self._rest, None)
        return None if picture is None else {"input": picture[None]}


def our_file(bits: int, graph: ModelGraph, model: torch.nn.Module, x: torch.Tensor) -> bytes:
    """The network with weights of so many bits and 8-bit activations, but for the first convolution."""
    step = Step.of("quantize", bits=bits, activations="int8")
    policy = Policy(dict.fromkeys(list(graph.layers)[1:], (step,)))
    compressed = apply_plan(make_plan(policy, graph), graph, model, x)
    return export_onnx(compressed.model, x[:1], calibration=x)


def their_file(reference: bytes, x: np.ndarray, reduce_range: bool) -> bytes:
    """What the runtime's static quantizer makes of the float file, the first convolution left out as well."""
    named = onnx.load_model_from_string(reference)
    for number, node in enumerate(named.graph.node):
        node.name = node.name or f"{node.op_type}_{number}"
    with tempfile.TemporaryDirectory() as folder:
        plain, ready, made = (str(Path(folder) / name) for name in ("plain.onnx", "ready.onnx", "made.onnx"))
        onnx.save(named, plain)
        quant_pre_process(plain, ready)
        nodes = onnx.load(ready).graph.node
        first = next(node.name for node in nodes if node.op_type in ("Conv", "FusedConv"))
        quantize_static(
            ready,
            made,
            Pictures(x),
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=reduce_range,
            calibrate_method=CalibrationMethod.MinMax,
            nodes_to_exclude=[first],
        )
        return Path(made).read_bytes()


def timed(files: Mapping[str, bytes], x: np.ndarray, rounds: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Seconds (rounds,) of processor time of each network's run, the networks in a new order in each round."""
    rng, runners = np.random.default_rng(seed), {name: session(file) for name, file in files.items()}
    seconds: dict[str, list[float]] = {name: [] for name in files}
    for number in range(rounds + BLOCK):
        for name in rng.permutation(list(runners)):
            start = time.thread_time()
            runners[name].run(None, {"input": x})
            # The first rounds warm caches and arenas up.
            if number >= BLOCK:
                seconds[name].append(time.thread_time() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(numerator: np.ndarray, denominator: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """The ratio of medians, its 95 % bootstrap interval over rounds, and the ratio of the quietest tenths."""
    picked = np.random.default_rng(seed).integers(0, len(numerator), (RESAMPLES, len(numerator)))
    resampled = np.median(numerator[picked], 1) / np.median(denominator[picked], 1)
    return {
        "of_medians": float(np.median(numerator) / np.median(denominator)),
        "ci95": [float(bound) for bound in np.percentile(resampled, [2.5, 97.5])],
        "of_quietest": float(np.percentile(numerator, 10) / np.percentile(denominator, 10)),
    }


def make_files(data: DataSet, model: torch.nn.Module) -> dict[str, bytes]:
    """The networks that are compared, by what each is called."""
    x = data.preprocess(data.calibration.images)
    graph = ModelGraph.trace(model, x[:1])
    reference = export_onnx(model, x[:1], calibration=None)
    return {
        REFERENCE: reference,
        "ours, 8-bit weights": our_file(8, graph, model, x),
        "ours, 7-bit weights": our_file(7, graph, model, x),
        "static quantizer, reduce_range": their_file(reference, x.numpy(), True),
        "static quantizer": their_file(reference, x.numpy(), False),
    }


def member_files(run: Path) -> dict[str, bytes]:
    """The exported files of the members of a finished run's front."""
    front = json.loads((run / "front.json").read_text())["front"]
    return {f"member {m['id']}": (run / "artefacts" / m["id"] / "model.onnx").read_bytes() for m in front}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=600)
    parser.add_argument(
        "--config", type=Path, default=CONFIG, help="whose network, data and calibration; weights, not a recipe"
    )
    parser.add_argument("--run", type=Path, help="a finished run of it, whose members are timed too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.monotonic()
    config = load_config(arguments.config)
    data = read_data(config, lambda _: None)
    with tempfile.TemporaryDirectory() as folder:
        model = dense_network(config, data, RunDirectory(Path(folder)), lambda _: None).eval()
    files = make_files(data, model)
    if config.quality == "agreement":
        data = labelled_by(files[REFERENCE], data, available_cores())
    if arguments.run is not None:
        files |= member_files(arguments.run)
    example = data.preprocess(data.calibration.images[:1]).numpy()
    seconds = timed(files, example, arguments.rounds)
    assert data.test is not None
    rows = {}
    for name, file in files.items():
        error = file_error(file, data, data.test, 1)
        rows[name] = {
            "to_float32": ratio(seconds[name], seconds[REFERENCE]),
            "to_static_reduce_range": ratio(seconds[name], seconds["static quantizer, reduce_range"]),
            "test_error_pct": error,
            "test_error_ci95": error_interval(error, len(data.test)),
            "bytes": len(file),
        }
    found = {
        "processor": processor_name(),
        "session_entries": session_entries(),
        "float32_ms": float(np.median(seconds[REFERENCE])) * 1e3,
        "rounds": arguments.rounds,
        "networks": rows,
        "seconds": time.monotonic() - begun,
    }
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
