"""Which of a policy's steps the runtime notices."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from paretopress.evaluators.kernels import kernel_policy
from paretopress.policies.apply import apply_plan
from paretopress.policies.architectures import DigitsCNN
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step

torch.set_num_threads(1)

HALF = Step.of("prune_channels", sparsity=0.5, multiple=8)
SPARSE, SHARE = Step.of("prune_magnitude", sparsity=0.9), Step.of("share", clusters=4)
W4, W4A8, W7A8, W8A8 = (
    Step.of("quantize", bits=4),
    Step.of("quantize", bits=4, activations="int8"),
    Step.of("quantize", bits=7, activations="int8"),
    Step.of("quantize", bits=8, activations="int8"),
)
SVD = Step.of("svd", rank=8)


class Exporter:
    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model, self.pictures = DigitsCNN().eval(), torch.rand(32, 1, 8, 8)
        self.graph = ModelGraph.trace(self.model, self.pictures[:1])

    def __call__(self, policy: Policy) -> tuple[Counter[str], Counter[tuple[int, ...]]]:
        """Node types of the exported network, and the shapes that its weights have; 1 before those of codes within 7 bit."""
        compressed = apply_plan(make_plan(policy, self.graph), self.graph, self.model, self.pictures)
        made = onnx.load_from_string(export_onnx(compressed.model, self.pictures[:1], calibration=self.pictures))
        shapes = Counter(
            (_is_narrow(tensor), *tensor.dims) for tensor in made.graph.initializer if len(tensor.dims) > 1
        )
        return Counter(node.op_type for node in made.graph.node), shapes


def _is_narrow(tensor: onnx.TensorProto) -> bool:
    """Whether no processor's fast kernels overflow on these codes."""
    values = numpy_helper.to_array(tensor)
    return values.dtype == np.int8 and int(np.abs(values.astype(int)).max()) <= 64


@pytest.fixture(scope="module")
def exported() -> Exporter:
    return Exporter()


@pytest.mark.parametrize(
    "steps",
    [
        {"conv2": (SPARSE,), "fc1": (SPARSE, SHARE)},
        {"conv1": (W4,), "fc2": (W4,)},
        {"conv1": (SPARSE, W4), "conv2": (SHARE,), "fc1": (SPARSE,)},
    ],
    ids=["zeros and codebooks", "narrow weights", "all of them"],
)
def test_zeros_codebooks_and_narrow_weights_are_multiplied_with_like_any_others(exported, steps):
    policy = Policy(steps)
    assert kernel_policy(policy) == Policy()
    assert exported(policy) == exported(Policy())


@pytest.mark.parametrize(
    ("steps", "left"),
    [
        ({"conv2": (HALF, SPARSE, W4)}, {"conv2": (HALF,)}),
        ({"fc1": (SVD, SPARSE, SHARE)}, {"fc1": (SVD,)}),
        ({"conv2": (SPARSE, W4A8), "fc1": (SHARE,)}, {"conv2": (W7A8,)}),
        ({"conv1": (HALF, W8A8), "fc1": (SVD, W4A8)}, {"conv1": (HALF, W8A8), "fc1": (SVD, W7A8)}),
    ],
    ids=["channels", "factors", "8-bit inputs", "together"],
)
def test_channels_factors_and_8_bit_inputs_are_what_is_left(exported, steps, left):
    kernels = kernel_policy(Policy(steps))
    assert kernels == Policy(left)
    assert exported(Policy(steps)) == exported(kernels)
    assert exported(kernels) != exported(Policy())


def test_what_is_left_has_nothing_more_to_leave_out():
    policy = Policy({"conv1": (HALF, SPARSE, W4A8), "conv2": (SPARSE,), "fc1": (SVD, W4)})
    once = kernel_policy(policy)
    assert kernel_policy(once) == once
    assert kernel_policy(Policy()) == Policy()


def test_signs_of_inputs_stay_since_the_runtime_computes_them():
    xnor, binary = Step.of("binarize", method="xnor"), Step.of("binarize")
    found = kernel_policy(Policy({"conv2": (SPARSE, xnor), "conv3": (binary,)}))
    assert found == Policy({"conv2": (xnor,)})
