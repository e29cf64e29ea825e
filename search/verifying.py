"""Measure a bundle again and hold the figures against the reported ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..evaluators.accuracy import error_pct
from ..evaluators.candidate import file_logits
from ..evaluators.cores import available_cores
from ..evaluators.data import DataSet
from ..evaluators.latency import LatencyProbe
from ..policies.apply import restore
from ..policies.coding.press import decode
from ..policies.errors import InputError, ParetopressError
from ..policies.graph import ModelGraph
from ..policies.plan import make_plan
from ..policies.policy import Policy
from .config import Config, load_config
from .prepare import empty_network, labelled_by, read_data
from .rundir import sha256

FILES = ("model.onnx", "model.press", "reference.onnx", "policy.yaml", "config.yaml", "card.json")
ERROR_TOLERANCE_PICTURES = 2e-4
LATENCY_TOLERANCE = 0.10
AGREEMENT_PICTURES = 500
AGREEMENT_INT8 = 0.95
AGREEMENT_FLOAT = 0.998


@dataclass(frozen=True)
class Check:
    """One figure, as reported and as measured now.

    Parameters
    ----------
    name
        What was checked.
    reported, measured
        In words, with units.
    agrees
        ``None`` where it could not be checked here.
    """

    name: str
    reported: str
    measured: str
    agrees: bool | None


def verify_bundle(path: Path) -> list[Check]:
    """Every figure of a bundle's report card, measured again.

    Raises
    ------
    InputError
        Where the path is no bundle.
    """
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        raise InputError(
            f"{path} is no bundle: it lacks {', '.join(missing)}; make one by 'paretopress export DIR --to bundle'"
        )
    try:
        card = json.loads((path / "card.json").read_text(encoding="utf-8"))
        metrics: Mapping[str, Any] = card["metrics"]
        digests: Mapping[str, str] = card["sha256"]
    except (ValueError, KeyError) as error:
        raise InputError(f"{path / 'card.json'} is damaged ({error}); export the bundle again") from error
    config = load_config(path / "config.yaml")
    contents = {name: (path / name).read_bytes() for name in digests}
    checks = [_same_file(name, digests[name], content) for name, content in contents.items()]
    checks.append(_size("stored_bytes", metrics, contents["model.press"]))
    checks.append(_size("onnx_bytes", metrics, contents["model.onnx"]))
    checks.extend(
        _with_data(config, metrics, contents, Policy.from_text((path / "policy.yaml").read_text(encoding="utf-8")))
    )
    return checks


def _with_data(
    config: Config, metrics: Mapping[str, Any], contents: Mapping[str, bytes], policy: Policy
) -> list[Check]:
    reported = f"{metrics['error_pct']:.4g} %"
    try:
        data = read_data(config, lambda _: None)
    except ParetopressError as error:
        return [Check("error_pct", reported, f"not measured: {error}", None)]
    cores = available_cores()
    torch.set_num_threads(cores)
    if config.quality == "agreement":
        data = labelled_by(contents["reference.onnx"], data, cores)
    assert data.test is not None
    outputs = file_logits(contents["model.onnx"], data, data.test, cores)
    measured = error_pct(outputs, data.test.labels)
    close = abs(measured - metrics["error_pct"]) <= 100 * max(ERROR_TOLERANCE_PICTURES, 1 / len(data.test)) + 1e-9
    checks = [Check("error_pct", reported, f"{measured:.4g} % on {len(data.test)} test pictures", close)]
    checks.append(_stored_agrees(contents["model.press"], policy, config, data, outputs))
    checks.append(_latency(config, metrics, contents, data))
    return checks


def _stored_agrees(press: bytes, policy: Policy, config: Config, data: DataSet, outputs: np.ndarray) -> Check:
    """The stored form, decoded into a network, predicts what the exported file predicts (up to 8-bit inputs)."""
    assert data.test is not None
    quantized = any(
        dict(step.parameters).get("activations") == "int8" for steps in policy.layers.values() for step in steps
    )
    wanted = AGREEMENT_INT8 if quantized else AGREEMENT_FLOAT
    name, expected = ".press predicts as .onnx", f">= {100 * wanted:.1f} %"
    try:
        dense = empty_network(config, data).eval()
    except ParetopressError as error:
        return Check(name, expected, f"not measured: {error}", None)
    part = data.test.take(slice(0, AGREEMENT_PICTURES))
    x = data.preprocess(part.images)
    graph = ModelGraph.trace(dense, x[:1])
    model = restore(make_plan(policy, graph), graph, dense, decode(press).tensors)
    with torch.inference_mode():
        predicted = np.concatenate([model(batch).argmax(1).numpy() for batch in x.split(100)])
    share = float(np.mean(predicted == outputs[: len(part)].argmax(1)))
    return Check(name, expected, f"{100 * share:.1f} % of {len(part)}", share >= wanted)


def _latency(config: Config, metrics: Mapping[str, Any], contents: Mapping[str, bytes], data: DataSet) -> Check:
    example = data.preprocess(data.calibration.images[:1]).numpy()
    probe = LatencyProbe(contents["reference.onnx"], example, config.latency.threads)
    latency = probe.measure(contents["model.onnx"], pairs=config.latency.pairs, seed=config.seed)
    reported = float(metrics["latency_ratio"])
    close = abs(latency.ratio - reported) <= LATENCY_TOLERANCE * reported
    return Check("latency_ratio", f"{reported:.3f}x", f"{latency.ratio:.3f}x on this machine", close)


def _same_file(name: str, digest: str, content: bytes) -> Check:
    measured = sha256(content)
    return Check(f"sha256 {name}", digest[:12], measured[:12], measured == digest)


def _size(metric: str, metrics: Mapping[str, Any], content: bytes) -> Check:
    return Check(metric, f"{metrics[metric]:,} B", f"{len(content):,} B", metrics[metric] == len(content))
