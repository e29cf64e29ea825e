"""Measure a bundle again and hold the figures against the reported ones."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..evaluators.accuracy import error_pct, file_error, file_logits
from ..evaluators.cores import available_cores
from ..evaluators.data import DataSet
from ..evaluators.exact_integers import WITH_OPTION, options_here
from ..evaluators.holdout import whole_test
from ..evaluators.kernels import has_8_bit_inputs
from ..evaluators.latency import LatencyProbe
from ..evaluators.macs import profile
from ..evaluators.provenance import digest_pictures
from ..policies.apply import restore
from ..policies.coding.press import decode
from ..policies.errors import InputError, ParetopressError
from ..policies.graph import ModelGraph
from ..policies.own_network import into_evaluation, settle_calls
from ..policies.plain_layers import make_plain
from ..policies.plan import make_plan
from ..policies.policy import Policy
from .caller_state import keep_caller_state
from .config import Config, load_config
from .labelling import labelled_by
from .prepare import network_for, read_data
from .rundir import sha256
from .splits import apply_choice

NETWORKS = ("model.onnx", "model.press", "reference.onnx")
FILES = (*NETWORKS, "policy.yaml", "config.yaml", "card.json")
COUNTED = ("macs", "params", "peak_memory_bytes")
MEASURED = ("error_pct", "stored_bytes", "onnx_bytes", "latency_ratio", *COUNTED)
ERROR_TOLERANCE_SHARE = 2e-4
LATENCY_TOLERANCE = 0.10
LATENCY_PROBES = 3
LIKENESS_PICTURES = 500
LIKENESS_INT8 = 0.95
LIKENESS_FLOAT = 0.999


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


@keep_caller_state()
def verify_bundle(path: Path) -> list[Check]:
    """A bundle's files against their digests, and the figures of its report card measured again.

    Of the metrics, the error, the sizes, the latency's ratio and the counts are measured; the others follow from them.

    Raises
    ------
    InputError
        Where the path is no bundle, or its card, policy or configuration cannot be read.
    """
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        raise InputError(
            f"{path} is no bundle: it lacks {', '.join(missing)}; make one by 'paretopress export DIR --to bundle'"
        )
    card = _read_card(path / "card.json")
    metrics, digests = card["metrics"], card["sha256"]
    config = load_config(path / "config.yaml")
    policy = Policy.from_text((path / "policy.yaml").read_text(encoding="utf-8"))
    contents = {name: (path / name).read_bytes() for name in NETWORKS}
    return [
        Check("policy", str(card["id"]), policy.id, card["id"] == policy.id),
        *(_same_file(name, digests[name], content) for name, content in contents.items()),
        _size("stored_bytes", metrics, contents["model.press"]),
        _size("onnx_bytes", metrics, contents["model.onnx"]),
        *_comparable(_with_data(config, card, contents, policy), card, policy),
    ]


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        wrong = [name for name in MEASURED if not isinstance(card["metrics"][name], int | float)]
        wrong += [name for name in NETWORKS if not isinstance(card["sha256"][name], str)]
        if wrong or "id" not in card:
            raise ValueError(f"wrong or missing: {', '.join(wrong or ['id'])}")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged ({error!r}); export the bundle again") from error
    return dict(card)


def _with_data(config: Config, card: Mapping[str, Any], contents: Mapping[str, bytes], policy: Policy) -> list[Check]:
    metrics = card["metrics"]
    try:
        data = apply_choice(config, read_data(config, lambda _: None))
    except ParetopressError as error:
        return [Check("error_pct", f"{metrics['error_pct']:.4g} %", f"not measured: {error}", None)]
    cores = available_cores()
    torch.set_num_threads(cores)
    try:
        if config.quality == "agreement":
            data = labelled_by(contents["reference.onnx"], data, cores)
        assert data.test is not None
        outputs = file_logits(contents["model.onnx"], data, data.test, cores)
        checks = [*_same_pictures(card, data), _error(metrics, data, outputs)]
        checks += _whole_error(metrics, data, outputs, contents["model.onnx"], cores)
        checks.append(_latency(config, metrics, contents, data))
    # A damaged file may fail in the runtime in any way, and its error classes have no base of their own.
    except Exception as error:
        return [Check(".onnx runs", "yes", f"no: {' '.join(str(error).split())[:200]}", False)]
    return [*checks, *_stored_agrees(contents["model.press"], policy, config, data, metrics, outputs)]


def _same_pictures(card: Mapping[str, Any], data: DataSet) -> list[Check]:
    """Hold the pictures against those that the run compared candidates and read them for the last time on."""
    assert data.test is not None
    splits, checks = card.get("splits") or {}, []
    for name, part in (("validation", data.validation), ("test", data.test)):
        if name in splits:
            reported, measured = str(splits[name]["digest"]), digest_pictures(part)
            checks.append(Check(f"{name} pictures", reported[:12], measured[:12], reported == measured))
    return checks


def _whole_error(
    metrics: Mapping[str, Any], data: DataSet, outputs: np.ndarray, onnx: bytes, cores: int
) -> list[Check]:
    """Measure the error on the whole test split, where the card reports it beside that of the last reading."""
    if "whole_test_error_pct" not in metrics:
        return []
    assert data.test is not None
    compared = file_error(onnx, data, data.validation, cores)
    whole = whole_test(data, compared, error_pct(outputs, data.test.labels))
    reported, measured = metrics["whole_test_error_pct"], whole.get("whole_test_error_pct", math.nan)
    close = abs(measured - reported) <= 100 * max(ERROR_TOLERANCE_SHARE, 1 / len(data.test)) + 1e-9
    return [Check("whole_test_error_pct", f"{reported:.4g} %", f"{measured:.4g} %", close)]


def _comparable(checks: list[Check], card: Mapping[str, Any], policy: Policy) -> list[Check]:
    """The checks; a latency of 8-bit layers says nothing where it was reported under another session option than here."""
    reported, here = (card.get("environment") or {}).get("session_options", WITH_OPTION), options_here()
    if reported == here or not has_8_bit_inputs(policy):
        return checks
    return [
        replace(check, measured=f"{check.measured} with {here}; reported with {reported}", agrees=None)
        if check.name == "latency_ratio" and check.agrees is False
        else check
        for check in checks
    ]


def _error(metrics: Mapping[str, Any], data: DataSet, outputs: np.ndarray) -> Check:
    assert data.test is not None
    measured = error_pct(outputs, data.test.labels)
    close = abs(measured - metrics["error_pct"]) <= 100 * max(ERROR_TOLERANCE_SHARE, 1 / len(data.test)) + 1e-9
    return Check(
        "error_pct", f"{metrics['error_pct']:.4g} %", f"{measured:.4g} % on {len(data.test)} test pictures", close
    )


def _stored_agrees(
    press: bytes, policy: Policy, config: Config, data: DataSet, metrics: Mapping[str, Any], outputs: np.ndarray
) -> list[Check]:
    """The stored form, decoded into a network, counts as reported and computes what the exported file computes."""
    assert data.test is not None
    name = ".press computes as .onnx"
    try:
        dense = into_evaluation(network_for(policy, config, data))
    except ParetopressError as error:
        return [Check(name, "yes", f"not measured: {error}", None)]
    part = data.test.take(slice(0, LIKENESS_PICTURES))
    x = data.preprocess(part.images)
    try:
        settle_calls(dense, x[:2])
        dense = make_plain(dense, x[:1]).model
        graph = ModelGraph.trace(dense, x[:1], of_shape=policy.shape)
        calibration = data.preprocess(data.calibration.images)
        model = restore(make_plan(policy, graph), graph, dense, decode(press).tensors, calibration)
    except ParetopressError as error:
        return [Check(name, "yes", f"no: {error}", False)]
    with torch.inference_mode():
        computed = np.concatenate([model(batch).numpy() for batch in x.split(100)])
    likeness = _cosine(computed, outputs[: len(part)])
    wanted = LIKENESS_INT8 if has_8_bit_inputs(policy) else LIKENESS_FLOAT
    agrees = Check(name, f"cosine >= {wanted}", f"{likeness:.4f} on {len(part)} pictures", likeness >= wanted)
    counted = profile(model, x[:1])
    return [agrees, *(_count(metric, metrics, getattr(counted, metric)) for metric in COUNTED)]


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Mean cosine of the outputs (N, K), each picture's mean taken off."""
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(np.mean((a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)))


def _latency(config: Config, metrics: Mapping[str, Any], contents: Mapping[str, bytes], data: DataSet) -> Check:
    example = data.preprocess(data.calibration.images[:1]).numpy()
    probe = LatencyProbe(contents["reference.onnx"], example, config.latency.threads)
    reported = float(metrics["latency_ratio"])
    measured = _confirmed(probe, contents["model.onnx"], config, reported)
    close = _close(measured, reported)
    return Check("latency_ratio", f"{reported:.3f}x", f"{measured:.3f}x on this machine", close)


def _confirmed(probe: LatencyProbe, onnx: bytes, config: Config, reported: float) -> float:
    """The ratio; where it disagrees, the median of three, since one probe on a busy machine may be off."""
    ratios: list[float] = []
    while len(ratios) < LATENCY_PROBES:
        ratios.append(probe.measure(onnx, pairs=config.latency.pairs, seed=config.seed + len(ratios)).ratio)
        if len(ratios) == 1 and _close(ratios[0], reported):
            break
    return float(np.median(ratios))


def _close(measured: float, reported: float) -> bool:
    return abs(measured - reported) <= LATENCY_TOLERANCE * reported


def _same_file(name: str, digest: str, content: bytes) -> Check:
    measured = sha256(content)
    return Check(f"sha256 {name}", digest[:12], measured[:12], measured == digest)


def _size(metric: str, metrics: Mapping[str, Any], content: bytes) -> Check:
    return Check(metric, f"{metrics[metric]:,} B", f"{len(content):,} B", metrics[metric] == len(content))


def _count(metric: str, metrics: Mapping[str, Any], measured: int) -> Check:
    return Check(metric, f"{metrics[metric]:,}", f"{measured:,}", metrics[metric] == measured)
