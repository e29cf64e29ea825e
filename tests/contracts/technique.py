"""What every layer-local technique must keep: a test runs each check in ``CONTRACT`` on a ``Case``.

The checks of the cost and of a file stand apart: one is for plain layers only, the other wants a folder.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from paretopress.policies import forms
from paretopress.policies.coding.tensors import (
    CodebookTensor,
    DenseTensor,
    GeneratedTensor,
    HashedTensor,
    SparseTensor,
    StoredTensor,
    UniformTensor,
    VectorTensor,
)
from paretopress.policies.policy import Step
from paretopress.policies.techniques import build
from paretopress.policies.techniques.base import Calibration, LayerInfo, Technique
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A technique, a factory of a module that it takes (from a seed), and inputs (N, ...) of the module."""

    technique: Technique
    make: Callable[[int], nn.Module]
    inputs: Tensor

    @property
    def calibration(self) -> Calibration | None:
        """What the technique asks for; gradients are drawn."""
        if not (self.technique.needs_calibration or self.technique.needs_gradients):
            return None
        if not self.technique.needs_gradients:
            return Calibration(self.inputs)
        with torch.no_grad():
            shape = self.make(0)(self.inputs).shape
        return Calibration(self.inputs, torch.randn(shape, generator=torch.Generator().manual_seed(3)))

    def compressed(self, seed: int = 0) -> nn.Module:
        return self.technique.apply(self.make(seed), self.calibration)


def layer_info(module: nn.Module, inputs: Tensor) -> LayerInfo:
    """What a graph would say of a convolution or linear layer that is given these inputs (N, ...)."""
    with torch.no_grad():
        shapes = tuple(inputs.shape[1:]), tuple(module(inputs).shape[1:])
    has_bias = module.bias is not None
    if isinstance(module, nn.Linear):
        return LayerInfo("layer", "linear", tuple(module.weight.shape), *shapes, has_bias)
    assert isinstance(module, nn.Conv2d)
    geometry = (module.stride, module.padding, module.dilation, module.groups)
    return LayerInfo("layer", "conv2d", tuple(module.weight.shape), *shapes, has_bias, *geometry)


def check_it_is_a_frozen_value_that_its_own_step_builds(case: Case) -> None:
    technique = case.technique
    assert isinstance(technique, Technique)
    assert hash(technique) == hash(copy.deepcopy(technique))
    name = dataclasses.fields(technique)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(technique, name, getattr(technique, name))
    assert build(Step.of(technique.name, **dataclasses.asdict(technique))) == technique


def check_the_original_and_the_random_state_are_untouched(case: Case) -> None:
    original = case.make(0)
    state, output = copy.deepcopy(original.state_dict()), original(case.inputs)
    random_state = torch.get_rng_state()
    case.technique.apply(copy.deepcopy(original), case.calibration)
    assert torch.equal(torch.get_rng_state(), random_state)
    _assert_same_state(original.state_dict(), state)
    assert torch.equal(original(case.inputs), output)


def check_the_result_is_the_same_every_time(case: Case) -> None:
    _assert_same_state(case.compressed().state_dict(), case.compressed().state_dict())


def check_the_forward_is_finite_and_of_the_same_shape(case: Case) -> None:
    output = case.compressed()(case.inputs)
    assert output.isfinite().all()
    assert output.shape == case.make(0)(case.inputs).shape


def check_parameters_keep_type_mode_and_whether_they_train(case: Case) -> None:
    frozen = case.make(0).requires_grad_(False).eval()
    result = case.technique.apply(frozen, case.calibration)
    assert not any(parameter.requires_grad for parameter in result.parameters())
    assert not any(parameter.requires_grad for parameter in forms.plain(result).parameters())
    assert not any(module.training for _, module in forms.weighted_modules(result))
    trained = list(case.compressed().parameters())
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in trained)


def check_the_state_survives_a_file_bit_for_bit(case: Case, folder: Path) -> None:
    saved, other = case.compressed(seed=0), case.compressed(seed=1)
    save_file(saved.state_dict(), folder / "state.safetensors")
    other.load_state_dict(load_file(folder / "state.safetensors"), strict=True)
    _assert_same_state(other.state_dict(), saved.state_dict())
    assert torch.equal(other.eval()(case.inputs), saved.eval()(case.inputs))


def check_three_training_steps_keep_the_structure(case: Case) -> None:
    module = case.compressed()
    before = {name: forms.stored_weight(layer) for name, layer in forms.weighted_modules(module)}
    start = [parameter.detach().clone() for parameter in module.parameters()]
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        module(case.inputs).square().mean().backward()
        optimizer.step()
    assert not any(torch.equal(old, new) for old, new in zip(start, module.parameters()))
    # Some forms draw their weights while they train; what is stored is what they evaluate to.
    for name, layer in forms.weighted_modules(module.eval()):
        after = forms.stored_weight(layer)
        assert after.decode().tobytes() == _bytes(layer.eval().weight)
        if isinstance(forms.form_of(layer), forms.SoftSharedWeight):
            _assert_few_values(before[name], after)
        else:
            _assert_same_structure(before[name], after)


def check_stored_weights_decode_to_the_effective_ones_bit_for_bit(case: Case) -> None:
    for _, layer in forms.weighted_modules(case.compressed().eval()):
        assert forms.stored_weight(layer).decode().tobytes() == _bytes(layer.weight)


def check_a_plain_copy_computes_the_same_and_leaves_the_model_working(case: Case) -> None:
    module = case.compressed().eval()
    output = module(case.inputs)
    plain = forms.plain(module)
    assert not any(forms.form_of(layer) for _, layer in forms.weighted_modules(plain))
    if not any(forms.is_input_quantized(layer) for _, layer in forms.weighted_modules(module)):
        assert torch.equal(plain(case.inputs), output)
    assert torch.equal(module(case.inputs), output)


def check_the_cost_is_that_of_the_real_modules_and_falls(case: Case) -> None:
    layer = layer_info(case.make(0), case.inputs)
    assert case.technique.check(layer) is None
    assert not case.technique.is_identity(layer)
    module, cost = case.compressed(), case.technique.cost(layer)
    assert cost.macs == count_macs(module, case.inputs)
    stored = [forms.stored_weight(weighted) for _, weighted in forms.weighted_modules(module)]
    assert cost.weight_bits == pytest.approx(sum(map(weight_bits, stored)))
    assert cost.macs <= layer.macs
    assert cost.weight_bits < 32 * layer.weights


CONTRACT: tuple[Callable[[Case], None], ...] = (
    check_it_is_a_frozen_value_that_its_own_step_builds,
    check_the_original_and_the_random_state_are_untouched,
    check_the_result_is_the_same_every_time,
    check_the_forward_is_finite_and_of_the_same_shape,
    check_parameters_keep_type_mode_and_whether_they_train,
    check_three_training_steps_keep_the_structure,
    check_stored_weights_decode_to_the_effective_ones_bit_for_bit,
    check_a_plain_copy_computes_the_same_and_leaves_the_model_working,
)


def check_identity(technique: Technique, module: nn.Module, inputs: Tensor) -> None:
    """A step without effect says so, and leaves the module's forward pass and cost as they are."""
    layer = layer_info(module, inputs)
    assert technique.is_identity(layer)
    assert technique.cost(layer).macs == layer.macs
    assert technique.cost(layer).weight_bits == 32 * layer.weights
    output = module(inputs)
    assert torch.equal(technique.apply(module, None)(inputs), output)


def count_macs(module: nn.Module, inputs: Tensor) -> int:
    """Multiply-accumulates for one picture, counted by hooks on the convolutions and linear layers while they run."""
    counts: list[int] = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        channels = output.shape[1] if isinstance(layer, nn.Conv2d) else output.shape[-1]
        counts.append(layer.weight.numel() * output[0].numel() // channels)

    handles = [layer.register_forward_hook(count) for _, layer in forms.weighted_modules(module)]
    with torch.no_grad():
        module(inputs[:1])
    for handle in handles:
        handle.remove()
    return sum(counts)


def weight_bits(stored: StoredTensor) -> float:
    """Bits of the kept weights, without positions of zeros and codebooks of single values."""
    if isinstance(stored, UniformTensor):
        return stored.codes.size * stored.bits
    if isinstance(stored, CodebookTensor):
        return stored.codes.size * math.log2(len(stored.codebook))
    if isinstance(stored, VectorTensor):
        return stored.codes.size * math.log2(stored.codebooks.shape[2]) + 32 * stored.codebooks.size
    return 32 * stored.values.size


def _assert_same_structure(before: StoredTensor, after: StoredTensor) -> None:
    assert type(before) is type(after)
    assert before.decode().shape == after.decode().shape
    if isinstance(before, DenseTensor):
        return
    if isinstance(before, UniformTensor):
        assert np.abs(after.codes).max() <= max(1, 2 ** (after.bits - 1) - 1)
        # The scale of binary weights may move with them; which of them are zero does not.
        assert np.array_equal(before.scales, after.scales) or before.bits == 1
        assert before.bits != 1 or np.array_equal(before.codes == 0, after.codes == 0)
        return
    if isinstance(before, GeneratedTensor):
        assert (before.kind, before.block, before.seed) == (after.kind, after.block, after.seed)
        assert before.values.shape == after.values.shape
        return
    assert (before.mask is None and after.mask is None) or np.array_equal(before.mask, after.mask)
    if before.mask is not None:
        assert not after.decode()[~before.mask].any()
    if isinstance(before, VectorTensor):
        assert np.array_equal(before.codes, after.codes)
        assert before.codebooks.shape == after.codebooks.shape
    elif isinstance(before, HashedTensor):
        assert (before.seed, len(before.values)) == (after.seed, len(after.values))
    elif isinstance(before, CodebookTensor):
        assert np.array_equal(before.codes, after.codes)
        assert len(np.unique(after.decode())) <= len(before.codebook) + (before.mask is not None)
    else:
        assert isinstance(before, SparseTensor)


def _assert_few_values(before: StoredTensor, after: StoredTensor) -> None:
    """Which weights share a value may change, how many values there are may not."""
    assert isinstance(before, CodebookTensor)
    assert isinstance(after, CodebookTensor)
    assert before.shape == after.shape
    assert len(np.unique(after.decode())) <= len(after.codebook) + 1 == len(before.codebook) + 1


def _assert_same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    for name, value in one.items():
        assert value.dtype == other[name].dtype
        assert _bytes(value) == _bytes(other[name]), name


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()
