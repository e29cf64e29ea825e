"""Several members of one network in one process: each one's files must be its own network, not one that came before it."""

from __future__ import annotations

import copy

import numpy as np
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.runtime import logits, session
from paretopress.evaluators.sources import as_dataset
from paretopress.evaluators.stopwatch import Stopwatch
from paretopress.evaluators.training.checkpoints import UNKEPT
from paretopress.evaluators.training.loop import Recipe
from paretopress.evaluators.workbench import Settings, Workbench
from paretopress.policies.apply import CompressedModel, restore
from paretopress.policies.coding.press import decode, encode
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plain_layers import make_plain
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy
from paretopress.spaces.layerwise import Menu
from torch import Tensor, nn

from .comparing import (
    INT8_TIMES,
    INT8_TOLERANCE,
    TEST_PICTURES,
    TEST_SEED,
    Finding,
    distance_of,
    outputs_of,
    policy_of,
)
from .networks import draw_pictures

TOLERANCE = 1e-5
# An untrained network multiplies float32's rounding: what it does to torch's own network is the measure where that is more.
ROUNDING_TIMES = 10.0
# A recovery that moves the outputs less than this would hide a file of the wrong network.
MOVED = 1e-3
TRAINING = Recipe(epochs=1, batch_size=8, lr=1e-2)


def members(model: nn.Module, pictures: Tensor) -> Finding:
    """Two policies, each as it is and after some steps of recovery, of one process's evaluator."""
    plain = make_plain(model, pictures[:1]).model
    graph = ModelGraph.trace(plain, pictures[:1])
    evaluator = CandidateEvaluator(_bench(plain, graph, pictures))
    menus = {"float": Menu(channels=(0.75,), sparsity=(0.3,)), "8 bit": Menu(precision=("w8a8",))}
    figures: dict[str, float] = {}
    complaints: list[str] = []
    for name, menu in menus.items():
        policy = policy_of(graph, menu)
        built = evaluator.build(policy, Stopwatch())
        trained = evaluator.fine_tuning.carry_out(make_plan(policy, graph), 0, TRAINING, evaluator.bench.data, UNKEPT)
        files = evaluator.validated(trained, Stopwatch())["artefacts"]
        for stage, compressed, onnx, press in (
            ("built", built.compressed, built.onnx, built.press),
            ("recovered", trained, files["model.onnx"], files["model.press"]),
        ):
            found, wrong = _compared(compressed, graph, plain, onnx, press)
            figures |= {f"{name} {stage}, {key}": value for key, value in found.items()}
            complaints += [f"{name} {stage}: {complaint}" for complaint in wrong]
        x = draw_pictures(TEST_PICTURES, graph.input_shape[-1], TEST_SEED)
        figures[f"{name}, moved"] = distance_of(outputs_of(trained.model, x), outputs_of(built.compressed.model, x))
        if not figures[f"{name}, moved"] > MOVED:
            complaints.append(f"{name}: recovery hardly changed the network, so that nothing is shown")
        figures["stored_bytes_ratio"] = len(files["model.press"]) / _dense_bytes(plain, graph)
    return Finding(figures, tuple(complaints))


def _bench(model: nn.Module, graph: ModelGraph, pictures: Tensor) -> Workbench:
    """A workbench of a network's pictures; their labels are of no account."""
    count = len(pictures)
    split = (pictures.numpy(), np.arange(count) % 2)
    data = as_dataset({"train": split, "validation": split}, mean=(0.0,) * 3, std=(1.0,) * 3)
    reference = export_onnx(model, pictures[:1], calibration=None)
    return Workbench(model, graph, data.without_test(), reference, Settings(recovery=TRAINING))


def _compared(
    compressed: CompressedModel, graph: ModelGraph, dense: nn.Module, onnx: bytes, press: bytes
) -> tuple[dict[str, float], list[str]]:
    """How far a member's files are from its own network, in shares of the outputs' spread."""
    x = draw_pictures(TEST_PICTURES, graph.input_shape[-1], TEST_SEED)
    own, plain = compressed.model, compressed.plain()
    expected = outputs_of(own, x)
    bound = max(TOLERANCE, ROUNDING_TIMES * _rounding(plain, x))
    int8 = distance_of(outputs_of(plain, x), expected)
    stored = restore(make_plan(compressed.plan.policy, graph), graph, dense, decode(press).tensors)
    figures = {
        "onnx_distance": distance_of(logits(session(onnx), x.numpy(), TEST_PICTURES), expected),
        "press_distance": distance_of(outputs_of(stored, x), outputs_of(plain, x)),
    }
    bounds = {"onnx_distance": max(INT8_TOLERANCE, INT8_TIMES * int8) if int8 else bound, "press_distance": bound}
    wrong = [
        f"{name.replace('_', ' ')} from its own network is {value:.2g}, expected at most {bounds[name]:.2g}"
        for name, value in figures.items()
        if not value <= bounds[name]
    ]
    return figures, wrong


def _rounding(model: nn.Module, x: Tensor) -> float:
    """What float32 does to a network's outputs."""
    return distance_of(outputs_of(model, x), outputs_of(copy.deepcopy(model).double(), x.double()))


def _dense_bytes(model: nn.Module, graph: ModelGraph) -> int:
    return len(encode(CompressedModel(model, make_plan(Policy(), graph)).stored_once(), {}))
