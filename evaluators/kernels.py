"""What of a policy decides which kernels the runtime uses, and with that the latency."""

from __future__ import annotations

from ..policies.policy import Policy, Step
from ..policies.techniques import Phase, build
from ..policies.techniques.base import Resumable

NARROW = 7
"""Bits of weights that no processor's fast kernels overflow on with 8-bit inputs; wider ones may run on slower kernels."""


def kernel_policy(policy: Policy) -> Policy:
    """The simplest policy whose exported network runs the same kernels on tensors of the same shapes.

    Zeros, shared values and narrow weights are multiplied with like any others; channels, factors and 8-bit inputs are
    what a dense runtime is faster with, the more so where weights fit into 7 bit; signs of inputs are what it is slower
    with.
    """
    layers = {name: tuple(kept for step in steps for kept in _kernel(step)) for name, steps in policy.layers.items()}
    return Policy(layers, policy.version, policy.shape)


def has_8_bit_inputs(policy: Policy) -> bool:
    """Whether the exported file computes on 8-bit integers, which PyTorch imitates up to rounding."""
    steps = (step for steps in policy.layers.values() for step in steps)
    return any(dict(step.parameters).get("activations") == "int8" for step in steps)


def _kernel(step: Step) -> tuple[Step, ...]:
    technique = build(step)
    if technique.phase < Phase.PRUNE:
        return (step,)
    if getattr(technique, "activations", None) == "int8":
        bits = NARROW if getattr(technique, "bits", NARROW) <= NARROW else 8
        return (Step.of("quantize", bits=bits, activations="int8"),)
    if isinstance(technique, Resumable) and technique.binary_inputs:
        # The operators around the layer are the same whatever its weights are.
        return (step,)
    return ()
