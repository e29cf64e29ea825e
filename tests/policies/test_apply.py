"""A plan carried out: on a copy, in combinations, trained, stored and restored."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from paretopress.evaluators.data import DataSet, Pictures
from paretopress.evaluators.training.loop import Recipe, train
from paretopress.policies import batch_norms, forms
from paretopress.policies.apply import CompressedModel, apply_plan, restore
from paretopress.policies.architectures import DigitsCNN, LeNet5, ResNet20
from paretopress.policies.batch_norms import reestimate_statistics, settle_statistics
from paretopress.policies.coding.press import decode, encode
from paretopress.policies.coding.tensors import CodebookTensor, DenseTensor, SparseTensor, UniformTensor
from paretopress.policies.compact import numbered
from paretopress.policies.errors import CandidateError, FormatError
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.policies.techniques import TECHNIQUES, Calibration
from paretopress.policies.techniques.prune_obs import PruneOBS
from paretopress.policies.techniques.svd_linear import SVDLinear
from paretopress.policies.watching import watching
from torch import Tensor, nn

torch.set_num_threads(1)


class TwoNames(nn.Module):
    """Layers that stand in a list as well as under their own names; the forward pass uses the list."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 16, 3, padding=1), nn.Linear(16, 10)
        self.norm = nn.BatchNorm2d(16)
        self.layers = nn.ModuleList([self.conv, self.norm, self.fc])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](self.layers[1](self.layers[0](x)).relu().mean((2, 3)))


class Buffered(nn.Module):
    """Parameters and buffers of its own beside its layers, one of them not kept in its state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 10)
        self.gain = nn.Parameter(torch.rand(1, 8, 1, 1) + 0.5)
        self.register_buffer("shift", torch.randn(8, 1, 1))
        self.register_buffer("passing", torch.ones(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.conv(x) * self.gain + self.shift).relu().mean((2, 3)))


NETWORKS = {
    "lenet5": (LeNet5, (1, 28, 28)),
    "resnet20": (lambda: ResNet20(width=8), (3, 32, 32)),
    "digits": (DigitsCNN, (1, 8, 8)),
    "two names": (TwoNames, (1, 8, 8)),
    "buffered": (Buffered, (1, 8, 8)),
}


def fresh(name: str, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NETWORKS[name][0]().eval()


@functools.cache
def network(name: str) -> tuple[nn.Module, ModelGraph, Tensor]:
    """The network, with batch-norm statistics as if it were trained, its graph and calibration pictures."""
    calibration = torch.randn(24, *NETWORKS[name][1], generator=torch.Generator().manual_seed(5))
    model = fresh(name, 0)
    reestimate_statistics(model, 2 * calibration + 0.5)
    return model, ModelGraph.trace(model, calibration[:1]), calibration


def compress(name: str, layers: dict[str, list[Step]]) -> CompressedModel:
    model, graph, calibration = network(name)
    plan = make_plan(Policy({layer: tuple(steps) for layer, steps in layers.items()}), graph)
    return apply_plan(plan, graph, model, calibration)


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


PRUNE, SVD, SPATIAL = (
    Step.of("prune_magnitude", sparsity=0.6),
    Step.of("svd", rank=6),
    Step.of("svd_spatial", rank=5),
)
TUCKER, SHARE = Step.of("tucker2", rank_in=8, rank_out=6), Step.of("share", clusters=5)
OBS = Step.of("prune_obs", sparsity=0.6)
CP, CHANNEL = Step.of("cp", rank=6), Step.of("svd_channel", rank=5, whitening="activations")
WHITENED, GROUPS = Step.of("svd", rank=4, whitening="activations"), Step.of("prune_nm")
CIRCULANT, TOEPLITZ, FASTFOOD = Step.of("circulant", block=4, seed=2), Step.of("toeplitz", block=4), Step.of("fastfood")
W3H, SHAREH = (
    Step.of("quantize", bits=3, rounding="second_order"),
    Step.of("share", clusters=5, rounding="second_order"),
)
W4, W8A8 = Step.of("quantize", bits=4), Step.of("quantize", bits=8, activations="int8")
CHANNELS = Step.of("prune_channels", sparsity=0.5, multiple=4)

COMBINATIONS = {
    "nothing": ("digits", {}),
    "pruned": ("digits", {"conv2": [PRUNE], "fc1": [PRUNE]}),
    "pruned and shared": ("digits", {"conv2": [PRUNE, SHARE], "fc1": [PRUNE, SHARE]}),
    "pruned and quantized": ("digits", {"conv2": [PRUNE, W4], "fc1": [PRUNE, W8A8]}),
    "factorized and pruned": ("digits", {"conv2": [SPATIAL, PRUNE], "fc1": [SVD, PRUNE]}),
    "factorized and shared": ("digits", {"conv2": [TUCKER, SHARE], "fc1": [SVD, SHARE]}),
    "factorized, pruned, shared": ("digits", {"conv2": [SPATIAL, PRUNE, SHARE], "fc1": [SVD, PRUNE, SHARE]}),
    "factorized, pruned, quantized": ("digits", {"conv2": [TUCKER, PRUNE, W8A8], "fc1": [SVD, PRUNE, W8A8]}),
    "factorized by other ways, pruned, shared": (
        "digits",
        {
            "conv1": [CP, SHARE],
            "conv2": [CP, PRUNE, SHARE],
            "fc1": [WHITENED, OBS, SHAREH],
            "fc2": [WHITENED, PRUNE, W4],
        },
    ),
    "bottleneck, pruned in groups, shared": (
        "digits",
        {"conv2": [CHANNEL, GROUPS, SHARE], "fc1": [SVD, Step.of("prune_nm", saliency="second_order"), W3H]},
    ),
    "made from few parameters": ("digits", {"conv2": [CIRCULANT], "fc1": [FASTFOOD], "fc2": [TOEPLITZ]}),
    "factors made from few parameters": ("digits", {"conv2": [CHANNEL, TOEPLITZ], "fc1": [CHANNELS, SVD, CIRCULANT]}),
    "pruned and rounded by the Hessian": ("digits", {"conv1": [SHAREH], "conv2": [OBS, W3H], "fc2": [OBS, SHAREH]}),
    "channels dropped": ("digits", {"conv1": [CHANNELS], "conv2": [CHANNELS], "fc1": [CHANNELS]}),
    "all four": (
        "digits",
        {"conv1": [CHANNELS, W8A8], "conv2": [CHANNELS, SPATIAL, PRUNE, W8A8], "fc1": [CHANNELS, SVD, PRUNE, SHARE]},
    ),
    "all four by the Hessian": (
        "digits",
        {"conv1": [CHANNELS, W3H], "conv2": [CHANNELS, SPATIAL, OBS, W3H], "fc1": [CHANNELS, SVD, OBS, SHAREH]},
    ),
    "lenet5": ("lenet5", {"conv2": [TUCKER, PRUNE, W4], "fc1": [CHANNELS, SVD, W8A8], "fc2": [PRUNE, SHARE]}),
    "resnet20": (
        "resnet20",
        {
            "conv1": [CHANNELS, W8A8],
            "layer1.0.conv1": [CHANNELS, PRUNE, SHARE],
            "layer2.0.conv2": [TUCKER, PRUNE, W4],
            "layer2.1.conv1": [OBS, W3H],
            "layer3.1.conv1": [SPATIAL, SHARE],
            "layer3.0.shortcut.0": [PRUNE, W8A8],
            "fc": [SVD, PRUNE],
        },
    ),
    "two names": ("two names", {"conv": [CHANNELS, Step.of("svd_spatial", rank=2), PRUNE], "fc": [SVD, W4]}),
    "two names, shared": ("two names", {"conv": [SHARE], "fc": [PRUNE]}),
    "two names, by the Hessian": ("two names", {"conv": [OBS], "fc": [SHAREH]}),
    "buffered": ("buffered", {"conv": [W4], "fc": [PRUNE, SHARE]}),
}


@pytest.fixture(params=COMBINATIONS)
def combination(request) -> tuple[str, dict[str, list[Step]]]:
    return COMBINATIONS[request.param]


def test_the_original_and_the_random_state_are_untouched(combination):
    name, layers = combination
    model, _, calibration = network(name)
    state, expected, random_state = (
        copy.deepcopy(model.state_dict()),
        outputs(model, calibration),
        torch.get_rng_state(),
    )
    compress(name, layers)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert torch.equal(outputs(model, calibration), expected)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_the_same_plan_gives_the_same_network(combination):
    one, other = compress(*combination), compress(*combination)
    assert encode(one.stored(), {}) == encode(other.stored(), {})


def test_a_restored_network_predicts_exactly_what_was_stored(combination):
    name, layers = combination
    compressed = compress(name, layers)
    settle_statistics(compressed.model)
    press = encode(compressed.stored(), {})
    _, graph, calibration = network(name)
    other = fresh(name, seed=99)
    before = copy.deepcopy(other.state_dict())
    restored = restore(make_plan(compressed.plan.policy, graph), graph, other, decode(press).tensors)
    assert torch.equal(outputs(restored, calibration), outputs(compressed.plain(), calibration))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in before.items())


def test_a_network_is_restored_from_tensors_without_names(combination):
    name, layers = combination
    compressed = compress(name, layers)
    settle_statistics(compressed.model)
    press = encode(numbered(compressed.stored(), compressed.model), {}, compact=True)
    _, graph, calibration = network(name)
    plan = make_plan(compressed.plan.policy, graph)
    restored = restore(plan, graph, fresh(name, seed=99), decode(press).tensors)
    assert torch.equal(outputs(restored, calibration), outputs(compressed.plain(), calibration))
    few = dict(list(decode(press).tensors.items())[:-1])
    with pytest.raises(FormatError, match="without names"):
        restore(plan, graph, fresh(name, seed=99), few)


def test_every_tensor_that_inference_needs_is_stored_with_its_value(combination):
    compressed = compress(*combination)
    stored = compressed.stored()
    state = compressed.plain().state_dict()
    assert set(stored) <= set(state)
    held = {state[name].data_ptr() for name in stored}
    for name, value in state.items():
        assert name.endswith("num_batches_tracked") or value.data_ptr() in held, name
    for name, tensor in stored.items():
        assert tensor.decode().tobytes() == state[name].contiguous().numpy().tobytes(), name


def test_settled_statistics_keep_the_function(combination):
    name, layers = combination
    compressed, calibration = compress(name, layers), network(name)[2]
    before = outputs(compressed.model, calibration)
    settle_statistics(compressed.model)
    after = outputs(compressed.model, calibration)
    # On 8-bit inputs a rounding of 1e-7 may tip a value over to the next of 256 levels.
    tips = any(forms.is_input_quantized(layer) for _, layer in forms.weighted_modules(compressed.model))
    assert torch.allclose(after, before, atol=(2e-2 if tips else 1e-4) * float(before.abs().max().clamp_min(1)))


def test_settled_statistics_are_the_same_for_every_channel():
    model = copy.deepcopy(network("digits")[0])
    settle_statistics(model)
    for norm in (model.bn1, model.bn2):
        assert torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))
        assert len(norm.running_var.unique()) == 1
    again = copy.deepcopy(model)
    settle_statistics(again)
    x = network("digits")[2]
    assert torch.allclose(outputs(again, x), outputs(model, x), atol=1e-5)


def test_reestimated_statistics_are_those_of_the_calibration_pictures():
    model, _, calibration = network("digits")
    model = copy.deepcopy(model)
    reestimate_statistics(model, calibration)
    maps = outputs(model.conv1, calibration)
    assert torch.allclose(model.bn1.running_mean, maps.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(model.bn1.running_var, maps.var((0, 2, 3)), atol=1e-5)
    assert model.bn1.momentum == 0.1
    assert not any(module.training for module in model.modules())


def test_statistics_of_several_batches_are_averaged():
    model, calibration = copy.deepcopy(network("digits")[0]), torch.randn(128, 1, 8, 8)
    reestimate_statistics(model, calibration)
    assert torch.allclose(model.bn1.running_mean, outputs(model.conv1, calibration).mean((0, 2, 3)), atol=1e-5)


@pytest.mark.parametrize(
    ("step", "anew"),
    [
        (Step.of("binarize", method="mean"), True),
        (Step.of("share", clusters=4), True),
        (Step.of("quantize", bits=2, activations="int8"), True),
        (Step.of("quantize", bits=8, activations="int8"), False),
    ],
)
def test_batch_norms_behind_coarse_weights_are_those_of_what_they_see(step, anew):
    model, _, calibration = network("resnet20")
    compressed = compress("resnet20", {"layer1.0.conv1": [step], "layer2.0.conv2": [step]}).model
    again = copy.deepcopy(compressed)
    for _, module in forms.weighted_modules(again):
        forms.drop_input_range(module)
    reestimate_statistics(again, calibration)
    held, expected = (net.layer1[0].bn1.running_mean for net in (compressed, again if anew else model))
    assert torch.allclose(held, expected, atol=1e-5)


def test_ranges_behind_coarse_weights_are_those_of_what_they_see():
    step = Step.of("quantize", bits=2, activations="int8")
    compressed = compress("resnet20", {"layer1.0.conv1": [step], "layer2.0.conv2": [step]}).model
    scale, seen = float(compressed.layer2[0].conv2.input_scale), []
    for _, module in forms.weighted_modules(compressed):
        forms.drop_input_range(module)
    with watching({"": compressed.layer2[0].conv2}, lambda _, x: seen.append(x)), torch.no_grad():
        compressed(network("resnet20")[2])
    assert 255 * scale == pytest.approx(float(seen[0].max()), rel=0.05)


def test_a_single_calibration_picture_leaves_the_statistics_as_they_are():
    model, graph, calibration = network("digits")
    plan = make_plan(Policy({"conv2": (PRUNE, W8A8)}), graph)
    compressed = apply_plan(plan, graph, model, calibration[:1])
    assert torch.equal(compressed.model.bn1.running_mean, model.bn1.running_mean)
    assert forms.is_input_quantized(compressed.model.conv2)


@pytest.mark.parametrize("count", [64, 65, 66, 130])
def test_input_ranges_are_taken_from_a_full_batch(count):
    model, graph, _ = network("digits")
    calibration = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    calibration[64:] *= 0.01
    plan = make_plan(Policy({"conv1": (PRUNE, W8A8)}), graph)
    layer = apply_plan(plan, graph, model, calibration).model.conv1
    low, high = (float(bound) for bound in calibration[:64].aminmax())
    assert float(layer.input_scale) == pytest.approx((high - low) / 255)


def test_pruning_by_the_hessian_sees_the_network_with_its_channels_dropped_and_nothing_else_compressed():
    name, layers = "digits", {"conv1": [PRUNE, CHANNELS], "fc1": [OBS, Step.of("svd", rank=12), SHARE]}
    model, graph, calibration = network(name)
    dropped = compress(name, {"conv1": [CHANNELS]}).model
    inputs: list[Tensor] = []
    dropped.fc1.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    # The pictures are one batch, in which the batch norms' statistics are the batch's own.
    dropped.bn1.train()
    dropped.bn2.train()
    outputs(dropped, calibration)
    expected = PruneOBS(0.6).apply(SVDLinear(12).apply(dropped.fc1, None), Calibration(inputs[0]))
    found = apply_plan(make_plan(Policy({n: tuple(s) for n, s in layers.items()}), graph), graph, model, calibration)
    for (_, one), (_, other) in zip(forms.weighted_modules(found.model.fc1), forms.weighted_modules(expected)):
        assert torch.equal(forms.mask_of(one), forms.mask_of(other))


@pytest.mark.parametrize("step", [OBS, W3H, SHAREH], ids=str)
@pytest.mark.parametrize("count", [40, 64, 100, 300])
def test_hessians_are_of_full_batches_of_up_to_256_pictures(count, step, monkeypatch):
    model, graph, _ = network("lenet5")
    calibration = torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    seen: list[Tensor] = []

    def apply(_, module: nn.Module, calibration: Calibration) -> nn.Module:
        seen.append(calibration.inputs)
        return module

    monkeypatch.setattr(TECHNIQUES[step.technique], "apply", apply)
    apply_plan(make_plan(Policy({"conv1": (step,)}), graph), graph, model, calibration)
    assert torch.equal(seen[0], calibration[: {40: 40, 64: 64, 100: 64, 300: 256}[count]])


def test_less_is_recorded_of_layers_whose_inputs_are_large(monkeypatch):
    monkeypatch.setattr(batch_norms, "HESSIAN_VALUES", 150 * 28 * 28)
    model, graph, _ = network("lenet5")
    calibration, seen = torch.randn(256, 1, 28, 28), []
    monkeypatch.setattr(TECHNIQUES["prune_obs"], "apply", lambda _, module, given: seen.append(given.inputs) or module)
    apply_plan(make_plan(Policy({"conv1": (OBS,), "fc2": (OBS,)}), graph), graph, model, calibration)
    assert [len(inputs) for inputs in seen] == [128, 192]


def tiny(name: str) -> DataSet:
    images = network(name)[2].numpy()
    pictures = Pictures(images, np.arange(len(images)) % 10)
    return DataSet("tiny", 10, pictures, pictures, pictures, None)


def test_training_keeps_zeros_shared_values_codes_and_factors(combination):
    name, layers = combination
    compressed = compress(name, layers)
    before, shapes = compressed.stored(), {n: p.shape for n, p in compressed.model.named_parameters()}
    first = copy.deepcopy(compressed.model.state_dict())
    # Three steps of eight pictures.
    train(compressed.model, tiny(name), Recipe(epochs=1, batch_size=8, lr=0.02), seed=3)
    after = compressed.stored()
    assert {n: p.shape for n, p in compressed.model.named_parameters()} == shapes
    assert any(not torch.equal(value, first[key]) for key, value in compressed.model.state_dict().items())
    assert list(after) == list(before)
    for key, old in before.items():
        new = after[key]
        assert type(new) is type(old)
        if isinstance(old, SparseTensor | CodebookTensor) and old.mask is not None:
            assert np.array_equal(new.mask, old.mask)
            assert not new.decode()[~old.mask].any()
        if isinstance(old, CodebookTensor):
            assert np.array_equal(new.codes, old.codes)
        if isinstance(old, UniformTensor):
            assert np.abs(new.codes).max() < 2 ** (old.bits - 1)
            assert np.array_equal(new.scales, old.scales)
    for layer, mask in masks(before).items():
        assert not after[layer].decode()[~mask].any()


def masks(stored) -> dict[str, np.ndarray]:
    """The zeros of pruned and quantized weights, which the form keeps though a code of 0 might move."""
    return {name: tensor.mask for name, tensor in stored.items() if getattr(tensor, "mask", None) is not None}


def test_zeros_of_pruned_and_quantized_weights_stay_zero_in_training():
    compressed = compress("digits", {"conv2": [PRUNE, W4], "fc1": [SVD, PRUNE, W4]})
    pruned = {
        name: forms.mask_of(layer).clone()
        for name, layer in forms.weighted_modules(compressed.model)
        if forms.mask_of(layer) is not None
    }
    assert list(pruned) == ["conv2", "fc1.0", "fc1.1"]
    train(compressed.model, tiny("digits"), Recipe(epochs=2, batch_size=8, lr=0.05), seed=0)
    for name, mask in pruned.items():
        weight = compressed.model.get_submodule(name).weight.detach()
        assert not weight[~mask].any()
        assert float((~mask).float().mean()) == pytest.approx(0.6, abs=0.01)


def test_layers_under_two_names_are_replaced_under_both():
    compressed = compress("two names", {"conv": [Step.of("svd_spatial", rank=2)], "fc": [SVD]})
    assert compressed.model.conv is compressed.model.layers[0]
    assert len(compressed.model.layers[0]) == 2
    assert compressed.model.fc is compressed.model.layers[2]


def test_tensors_of_another_policy_are_refused():
    _, graph, _ = network("digits")
    stored = compress("digits", {"fc1": [SVD]}).stored()
    plan = make_plan(Policy({"fc1": (SVD,)}), graph)
    wrong = [
        (make_plan(Policy(), graph), stored, "missing .*unexpected"),
        (make_plan(Policy({"fc1": (Step.of("svd", rank=7),)}), graph), stored, "do not fit the policy's shapes"),
        (plan, {name: t for name, t in stored.items() if name != "conv1.weight"}, r"missing \['conv1.weight'\]"),
        (plan, stored | {"extra": DenseTensor(np.zeros(3, np.float32))}, r"unexpected \['extra'\]"),
    ]
    for other, tensors, message in wrong:
        with pytest.raises(FormatError, match=message):
            restore(other, graph, fresh("digits", 1), tensors)


def test_a_failure_on_the_actual_weights_names_layer_and_technique():
    model, graph, calibration = network("digits")
    broken = copy.deepcopy(model)
    broken.fc1.weight.data[0, 0] = torch.nan
    plan = make_plan(Policy({"fc1": (SVD,)}), graph)
    with pytest.raises(CandidateError, match="layer 'fc1': svd failed"):
        apply_plan(plan, graph, broken, calibration)


def test_a_technique_that_asks_gets_the_gradients_of_its_layers_outputs_and_the_others_none(monkeypatch):
    model, graph, calibration = network("digits")
    seen: dict[int, Calibration | None] = {}
    kept = TECHNIQUES["prune_magnitude"]
    monkeypatch.setattr(kept, "needs_gradients", True)
    monkeypatch.setattr(kept, "apply", lambda _, module, given: seen.update({module.weight.numel(): given}) or module)
    apply_plan(make_plan(Policy({"conv2": (PRUNE,), "fc1": (W8A8,)}), graph), graph, model, calibration)
    (given,) = seen.values()
    assert given is not None and given.gradients is not None
    assert given.gradients.shape == model.conv2(given.inputs).shape
    assert given.gradients.abs().sum() > 0


def test_binary_inputs_stand_again_in_a_restored_network():
    model, graph, x = network("lenet5")
    steps = {"conv2": (Step.of("binarize", method="xnor"),), "fc1": (Step.of("binarize"),)}
    plan = make_plan(Policy(steps), graph)
    compressed = apply_plan(plan, graph, model, x)
    read = decode(encode(compressed.stored(), {})).tensors
    restored = restore(plan, graph, model, read)
    assert forms.is_input_binary(restored.conv2)
    assert not forms.is_input_binary(restored.fc1)
    with torch.no_grad():
        assert torch.equal(restored(x), compressed.plain()(x))
        assert torch.equal(restored(x), compressed.model(x))


class Caching(nn.Module):
    """Keeps what it computes from its table until it trains again."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.kept, self.fc = nn.Parameter(torch.ones(4, 4)), {}, nn.Linear(4, 2)

    def train(self, mode: bool = True) -> Caching:
        self.kept = {} if mode else self.kept
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.fc(x.flatten(1) + self.table.square().sum(0))
        self.kept.setdefault("bias", self.table.square().sum(0))
        return self.fc(x.flatten(1) + self.kept["bias"])


def test_a_restored_network_computes_with_its_own_tensors_and_not_with_what_the_dense_one_kept() -> None:
    model, x = Caching().eval(), torch.randn(8, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    graph = ModelGraph.trace(model, x[:1])
    compressed = apply_plan(make_plan(Policy({}), graph), graph, model, x)
    with torch.no_grad():
        model(x)
        compressed.model.train()
        compressed.model.table.mul_(2)
        expected = compressed.model.eval()(x)
        assert torch.equal(restore(compressed.plan, graph, model, compressed.stored_once())(x), expected)
