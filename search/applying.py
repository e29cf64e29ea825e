"""A saved policy on a network of the same shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..evaluators.candidate import CandidateEvaluator
from ..evaluators.models import build_model, load_weights
from ..evaluators.sources import load_data
from ..evaluators.stopwatch import Stopwatch
from ..evaluators.workbench import Settings, Workbench
from ..policies.errors import InputError, PolicyError
from ..policies.graph import ModelGraph
from ..policies.own_network import into_evaluation, settle_calls
from ..policies.plain_layers import make_plain
from ..policies.policy import Policy
from .caller_state import keep_caller_state
from .checking import check_outputs, export_reference
from .config import parse_yaml
from .exporting import check_ending, write_candidate

KEYS_OF_THEIR_OWN = ("name", "num_classes", "in_channels", "seed")


def read_arguments(given: Iterable[str]) -> dict[str, int | float | str | bool]:
    """Arguments of a network's constructor from ``name=value``.

    Raises
    ------
    InputError
        Where one is of another form, is given twice, or is not a number, text or truth.
    """
    found: dict[str, int | float | str | bool] = {}
    for text in given:
        name, sign, plain = text.partition("=")
        if not sign or not name.isidentifier():
            raise InputError(f"--argument takes name=value, got '{text}'")
        if name in KEYS_OF_THEIR_OWN or name in found:
            why = "is given twice" if name in found else "is no argument of the constructor's own"
            raise InputError(f"--argument {text}: {name} {why}; leave it out")
        value = parse_yaml(plain)
        if not isinstance(value, int | float | str):
            raise InputError(f"--argument {text}: expected a number, a text, true or false; got {value!r}")
        found[name] = value
    return found


@keep_caller_state()
def apply_policy(
    policy: Path,
    model: str,
    weights: str,
    data: str,
    out: Path,
    *,
    image_size: int | None = None,
    num_classes: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Compress a network by a policy file and write it; its counted metrics.

    Parameters
    ----------
    policy
        The file.
    model, weights, data
        As ``model.name``, ``model.weights`` and ``data.name`` of a configuration.
    image_size
        Side in pixels that pictures are scaled to.
    num_classes, arguments
        Of the network, as in a configuration.

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
    network = build_model(model, num_classes=num_classes, in_channels=channels, **(arguments or {}))
    load_weights(into_evaluation(network), weights)
    example = pictures.preprocess(pictures.calibration.images[:1])
    check_outputs(network, pictures)
    settle_calls(network, example)
    network = make_plain(network, example).model
    reference = export_reference(network, pictures)
    graph = ModelGraph.trace(network, example)
    bench = Workbench(network, graph, pictures.without_test(), reference, Settings())
    candidate = CandidateEvaluator(bench).build(Policy.from_text(text), Stopwatch())
    write_candidate(candidate, out)
    return candidate.counted(candidate.profiled(example))
