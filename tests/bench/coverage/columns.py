"""What is tried on a network: a policy that treats every layer alike, carried out, exported and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from paretopress.evaluators.macs import profile
from paretopress.evaluators.runtime import logits, session
from paretopress.policies.apply import CompressedModel, apply_plan, round_vectors
from paretopress.policies.batch_norms import settle_statistics
from paretopress.policies.coding.press import decode, encode
from paretopress.policies.errors import PolicyError
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy
from paretopress.spaces.layerwise import Menu
from torch import Tensor, nn

from .comparing import (
    FLOAT_TOLERANCE,
    INT8_TIMES,
    INT8_TOLERANCE,
    TEST_PICTURES,
    TEST_SEED,
    Finding,
    distance_of,
    outputs_of,
    policy_of,
)
from .exported import members
from .networks import draw_pictures
from .silenced import silence_channels


def prune_channels(model: nn.Module, pictures: Tensor) -> Finding:
    """A quarter of the channels of every group that can lose some; multiply-accumulates and parameters must fall."""
    graph = ModelGraph.trace(model, pictures[:1])
    policy = policy_of(graph, Menu(channels=(0.75,)))
    if not policy.layers:
        raise PolicyError(_why_no_channels(graph))
    compressed = _compress(policy, graph, model, pictures)
    figures, complaints = _computed(model, compressed, pictures)
    groups = [group for group in graph.groups if group.channels > 1]
    figures |= {"groups": len(groups), "groups_pruned": len(compressed.plan.channels)}
    return Finding(figures, complaints)


def int8(model: nn.Module, pictures: Tensor) -> Finding:
    """Every layer with 8-bit weights and inputs; the ONNX file must shrink."""
    graph = ModelGraph.trace(model, pictures[:1])
    compressed = _compress(policy_of(graph, Menu(precision=("w8a8",))), graph, model, pictures)
    x = draw_pictures(TEST_PICTURES, pictures.shape[-1], TEST_SEED)
    rounding = distance_of(outputs_of(compressed.model, x), outputs_of(model, x))
    figures, complaints, data = _exported(compressed, pictures, max(INT8_TOLERANCE, INT8_TIMES * rounding))
    dense = export_onnx(model, pictures[:1], calibration=None)
    figures |= {"onnx_bytes_ratio": len(data) / len(dense), "rounding": rounding}
    return Finding(figures, (*complaints, *_not_fallen(figures, "onnx_bytes_ratio")))


def low_rank(model: nn.Module, pictures: Tensor) -> Finding:
    """Factors of half the weights for every layer that has some; multiply-accumulates and parameters must fall."""
    graph = ModelGraph.trace(model, pictures[:1])
    compressed = _compress(policy_of(graph, Menu(rank=(0.5,))), graph, model, pictures)
    figures, complaints = _computed(model, compressed, pictures)
    figures |= {"layers": len(graph.layers), "layers_factorized": len(compressed.plan.layers)}
    return Finding(figures, complaints)


def share_and_code(model: nn.Module, pictures: Tensor) -> Finding:
    """Half the weights pruned, 16 values for the rest of each layer; the stored file must shrink and be read bit for bit."""
    graph = ModelGraph.trace(model, pictures[:1])
    compressed = _compress(policy_of(graph, Menu(sparsity=(0.5,), precision=("k16",))), graph, model, pictures)
    figures, complaints, _ = _exported(compressed, pictures, FLOAT_TOLERANCE)
    stored = compressed.stored()
    data = encode(stored, {"policy": compressed.plan.policy.as_dict()})
    dense = encode(CompressedModel(model, make_plan(Policy({}), graph)).stored(), {})
    figures["stored_bytes_ratio"] = len(data) / len(dense)
    read = decode(data).tensors
    same = read.keys() == stored.keys() and all(
        np.array_equal(_bits(read[name].decode()), _bits(tensor.decode())) for name, tensor in stored.items()
    )
    wrong = () if same else ("what is read from the stored file differs from what was written",)
    return Finding(figures, (*complaints, *wrong, *_not_fallen(figures, "stored_bytes_ratio")))


def silencing(model: nn.Module, pictures: Tensor) -> Finding:
    """No policy: every group of channels loses some that nothing reads; no output may change."""
    return Finding(*silence_channels(model, pictures))


COLUMNS: dict[str, Callable[[nn.Module, Tensor], Finding]] = {
    "channel pruning": prune_channels,
    "int8 export": int8,
    "low rank": low_rank,
    "sharing + coding": share_and_code,
    "one process": members,
    "silencing": silencing,
}


def _why_no_channels(graph: ModelGraph) -> str:
    if graph.coupling_error is not None:
        return f"the coupling of the network's channels could not be found ({graph.coupling_error})"
    reasons = sorted({group.refusal or "it has too few channels" for group in graph.groups})
    return f"none of its {len(graph.groups)} groups of channels can lose some: {'; '.join(reasons)}"


def _compress(policy: Policy, graph: ModelGraph, model: nn.Module, pictures: Tensor) -> CompressedModel:
    """Carried out and settled as a candidate of a search is before it is written."""
    compressed = apply_plan(make_plan(policy, graph), graph, model, pictures)
    settle_statistics(compressed.model)
    round_vectors(compressed.model)
    return compressed


def _computed(
    model: nn.Module, compressed: CompressedModel, pictures: Tensor
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Figures and complaints of a compression that leaves less to compute."""
    figures, complaints, _ = _exported(compressed, pictures, FLOAT_TOLERANCE)
    before, after = (profile(net, pictures[:1]) for net in (model, compressed.plain()))
    figures |= {"macs_ratio": after.macs / before.macs, "params_ratio": after.params / before.params}
    if after.unknown_operations:
        complaints += (f"operations whose cost is unknown: {', '.join(after.unknown_operations)}",)
    return figures, complaints + _not_fallen(figures, "macs_ratio") + _not_fallen(figures, "params_ratio")


def _exported(
    compressed: CompressedModel, pictures: Tensor, tolerance: float
) -> tuple[dict[str, float], tuple[str, ...], bytes]:
    """The ONNX file, and how far ONNX Runtime is from torch on pictures that no range was measured on."""
    data = export_onnx(compressed.model, pictures[:1], calibration=pictures)
    x = draw_pictures(TEST_PICTURES, pictures.shape[-1], TEST_SEED)
    expected, found = outputs_of(compressed.model, x), logits(session(data), x.numpy(), TEST_PICTURES)
    if found.shape != expected.shape:
        return {}, (f"the exported network's output is {found.shape}, expected {expected.shape}",), data
    distance = distance_of(found, expected)
    # A distance that is not a number is not near.
    near = distance <= tolerance
    wrong = f"ONNX Runtime is {distance:.2g} of the outputs' spread away from torch, expected at most {tolerance:.2g}"
    return {"distance": distance}, () if near else (wrong,), data


def _not_fallen(figures: Mapping[str, float], name: str) -> tuple[str, ...]:
    return () if figures[name] < 1 else (f"{name} is {figures[name]:.3f}, expected less than 1",)


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).view(np.uint8)
