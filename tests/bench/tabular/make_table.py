"""Make the frozen table: train the quick start's network and measure every policy of the menus.

    OMP_NUM_THREADS=1 python -m paretopress.tests.bench.tabular.make_table [--workers 2]

A candidate is built, exported and encoded as a search does it, without recovery. KL, error and bytes are of the exported
files. Latency is measured once for each structure, since zeros, codebooks and the number of bits of an 8-bit layer do not
change what the runtime computes; it is the median of several probes, one after the other with the pool gone.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from paretopress.evaluators.accuracy import error_pct, file_logits
from paretopress.evaluators.candidate import Candidate, CandidateEvaluator
from paretopress.evaluators.cores import available_cores
from paretopress.evaluators.data import DataSet
from paretopress.evaluators.latency import LatencyProbe
from paretopress.evaluators.stopwatch import Stopwatch
from paretopress.evaluators.training.loop import train
from paretopress.evaluators.workbench import Settings, Workbench
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.files import write_bytes
from paretopress.policies.graph import ModelGraph
from paretopress.policies.policy import Policy
from paretopress.search.config import Config, load_config
from paretopress.search.prepare import empty_network, read_data
from paretopress.spaces.layerwise import LayerwiseSpace
from scipy.special import log_softmax
from torch import nn

from .digits import MENUS, TABLE, menus

CONFIG = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
OVERRIDES = ("data.validation=0.15",)
"""The table was measured on 216 validation pictures; the quick start has taken more of them since."""
PROBES = 5
PROBE_SECONDS = 0.6
CHUNK = 16
WEIGHTS = "weights/"


@dataclass(frozen=True)
class Row:
    """A policy's figures, and the processor seconds of building and trying it."""

    kl: float
    error_pct: float
    stored_bytes: int
    seconds: float


class Measurer:
    """Measures policies of the menus on a network."""

    def __init__(self, model: nn.Module, data: DataSet, config: Config) -> None:
        example = data.preprocess(data.calibration.images[:1])
        graph = ModelGraph.trace(model, example)
        reference = export_onnx(model, example, calibration=None)
        self.space = LayerwiseSpace(graph, {name: (name,) for name in MENUS}, MENUS, config.space.multiple)
        self._bench = Workbench(model, graph, data.without_test(), reference, Settings())
        self._evaluator = CandidateEvaluator(self._bench)
        self._dense = log_softmax(file_logits(reference, data, data.calibration, 1), axis=1)
        self._example = example.numpy()

    def policy(self, row: int) -> Policy:
        """The policy of a row of the table."""
        known = menus()
        return self.space.policy(known.choices(np.unravel_index(row, known.shape)))

    def measure(self, row: int) -> Row:
        """KL on the calibration pictures, error on all validation pictures, bytes of the encoded file."""
        start = time.process_time()
        candidate, data = self._build(row), self._bench.data
        found = log_softmax(file_logits(candidate.onnx, data, data.calibration, 1), axis=1)
        # Rounding can leave the dense network a hair below 0.
        kl = max(0.0, float((np.exp(self._dense) * (self._dense - found)).sum(1).mean()))
        error = error_pct(file_logits(candidate.onnx, data, data.validation, 1), data.validation.labels)
        return Row(kl, error, len(candidate.press), time.process_time() - start)

    def latency(self, row: int) -> float:
        """Latency against the dense network, median of several probes."""
        onnx = self._build(row).onnx
        probes = [LatencyProbe(self._bench.reference, self._example) for _ in range(PROBES)]
        found = [probe.measure(onnx, seed=i, seconds=PROBE_SECONDS).ratio for i, probe in enumerate(probes)]
        return statistics.median(found)

    def _build(self, row: int) -> Candidate:
        return self._evaluator.build(self.policy(row), Stopwatch())


def structure(policy: Policy) -> str:
    """What the runtime's speed depends on: channels, factors, and which layers compute in 8 bits."""
    out: dict[str, list[object]] = {}
    for layer, steps in policy.layers.items():
        kept = [s.as_dict() for s in steps if s.technique not in ("prune_magnitude", "share", "quantize")]
        eight_bit = any(dict(s.parameters).get("activations") == "int8" for s in steps)
        out[layer] = [*kept, *(["int8"] if eight_bit else [])]
    return json.dumps({layer: what for layer, what in out.items() if what}, sort_keys=True)


def structures(measurer: Measurer) -> tuple[np.ndarray, list[int]]:
    """Each row's structure (rows,), and the first row of each structure."""
    numbers: dict[str, int] = {}
    first, found = [], []
    for row in range(int(np.prod(menus().shape))):
        key = structure(measurer.policy(row))
        if key not in numbers:
            numbers[key] = len(numbers)
            first.append(row)
        found.append(numbers[key])
    return np.array(found, np.int16), first


def make_measurer(weights: Mapping[str, np.ndarray]) -> Measurer:
    """A measurer on the quick start's data and network with the weights given."""
    config = load_config(CONFIG, OVERRIDES)
    data = read_data(config, lambda _: None)
    model = empty_network(config, data)
    model.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    return Measurer(model.eval(), data, config)


def frozen_weights(path: Path = TABLE) -> dict[str, np.ndarray]:
    """The dense network's weights that the table was made with."""
    with np.load(path, allow_pickle=False) as file:
        return {name.removeprefix(WEIGHTS): file[name] for name in file.files if name.startswith(WEIGHTS)}


def trained_weights() -> dict[str, np.ndarray]:
    """Train by the quick start's recipe."""
    config = load_config(CONFIG, OVERRIDES)
    data = read_data(config, lambda _: None)
    model = empty_network(config, data)
    assert config.model.train is not None
    train(model, data, config.model.train.recipe(), seed=config.seed)
    return {name: value.detach().numpy().copy() for name, value in model.state_dict().items()}


_worker: list[Measurer] = []


def _start(weights: Mapping[str, np.ndarray]) -> None:
    torch.set_num_threads(1)
    _worker.append(make_measurer(weights))


def _measure(rows: range) -> list[Row]:
    return [_worker[0].measure(row) for row in rows]


def measure_all(weights: Mapping[str, np.ndarray], workers: int) -> list[Row]:
    """Every row of the table, in order."""
    count = int(np.prod(menus().shape))
    chunks = [range(i, min(i + CHUNK, count)) for i in range(0, count, CHUNK)]
    found: list[Row] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start, initargs=(weights,)) as pool:
        for rows in pool.map(_measure, chunks):
            found += rows
            print(f"{len(found)}/{count}", file=sys.stderr)
    return found


def measure_latencies(measurer: Measurer, first: Sequence[int]) -> tuple[np.ndarray, float]:
    """Latency ratios of structures, and the median processor seconds of a probe."""
    ratios, seconds = [], []
    for i, row in enumerate(first):
        start = time.process_time()
        ratios.append(measurer.latency(row))
        seconds.append((time.process_time() - start) / PROBES)
        print(f"latency {i + 1}/{len(first)}: {ratios[-1]:.3f}", file=sys.stderr)
    return np.array(ratios, np.float32), statistics.median(seconds)


def main() -> None:
    """Make the table, or its latencies anew, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=available_cores(), help="processes that measure")
    parser.add_argument("--latency-only", action="store_true", help="keep the rest of the table that is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.latency_only:
        with np.load(TABLE, allow_pickle=False) as file:
            kept = {name: file[name] for name in file.files}
    else:
        kept = measured_columns(trained_weights(), arguments.workers)
    write_table(TABLE, kept | latency_columns(kept))


def measured_columns(weights: Mapping[str, np.ndarray], workers: int) -> dict[str, np.ndarray]:
    """What every policy has of its own, and the weights."""
    rows = measure_all(weights, workers)
    return {
        "kl": np.array([row.kl for row in rows], np.float32),
        "error_pct": np.array([row.error_pct for row in rows], np.float32),
        "stored_bytes": np.array([row.stored_bytes for row in rows], np.int32),
        "build_seconds": np.array(statistics.median(row.seconds for row in rows)),
        **{WEIGHTS + name: value for name, value in weights.items()},
    }


def latency_columns(kept: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each policy's structure, each structure's latency, and what an evaluation costs with its probe."""
    weights = {name.removeprefix(WEIGHTS): value for name, value in kept.items() if name.startswith(WEIGHTS)}
    measurer = make_measurer(weights)
    numbers, first = structures(measurer)
    ratios, probe_seconds = measure_latencies(measurer, first)
    seconds = np.array(float(kept["build_seconds"]) + probe_seconds)
    return {"structure": numbers, "latency_ratio": ratios, "evaluation_seconds": seconds}


def write_table(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed npz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_bytes(path, buffer.getvalue())
    print(f"{path}: {len(buffer.getvalue())} bytes", file=sys.stderr)


if __name__ == "__main__":
    main()
