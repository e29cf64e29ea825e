"""A saved policy on a network of the same shape."""

from __future__ import annotations

from pathlib import Path

from ..evaluators.candidate import CandidateEvaluator
from ..evaluators.models import build_model, load_weights
from ..evaluators.sources import load_data
from ..evaluators.stopwatch import Stopwatch
from ..evaluators.workbench import Settings, Workbench
from ..policies.errors import PolicyError
from ..policies.export.onnx import export_onnx
from ..policies.graph import ModelGraph
from ..policies.policy import Policy
from .exporting import check_ending, write_candidate


def apply_policy(
    policy: Path,
    model: str,
    weights: str,
    data: str,
    out: Path,
    *,
    image_size: int | None = None,
    num_classes: int | None = None,
) -> dict[str, float]:
    """Compress a network by a policy file and write it; its counted metrics.

    Raises
    ------
    InputError
        Where policy, network, weights or data cannot be read or do not fit together.
    """
    check_ending(out)
    try:
        text = policy.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"cannot read the policy {policy}: {error}") from error
    size = None if image_size is None else (image_size, image_size)
    pictures = load_data(data, image_size=size)
    channels = pictures.input_shape[0] if pictures.input_shape[0] != 3 else None
    network = build_model(model, num_classes=num_classes, in_channels=channels).eval()
    load_weights(network, weights)
    example = pictures.preprocess(pictures.calibration.images[:1])
    graph = ModelGraph.trace(network, example)
    reference = export_onnx(network, example, calibration=None)
    bench = Workbench(network, graph, pictures.without_test(), reference, Settings())
    candidate = CandidateEvaluator(bench).build(Policy.from_text(text), Stopwatch())
    write_candidate(candidate, out)
    return candidate.counted(candidate.profiled(example))
