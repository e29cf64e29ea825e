"""The bank: each variant of a layer is made once, and what is put together from them is a whole network."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from paretopress.evaluators import bank as banking
from paretopress.evaluators.bank import Bank
from paretopress.evaluators.observe import Observations
from paretopress.evaluators.stitch import norms_after
from paretopress.policies import forms
from paretopress.policies.apply import round_vectors
from paretopress.policies.architectures import DigitsCNN, ResNet20
from paretopress.policies.batch_norms import reestimate_statistics, settle_statistics
from paretopress.policies.coding.press import encode
from paretopress.policies.errors import CandidateError
from paretopress.policies.graph import ModelGraph, input_energies
from paretopress.policies.plan import Plan, make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.policies.slicing import cut
from paretopress.policies.stored_layers import write_layer
from paretopress.policies.techniques import Calibration, Phase, PruneOBS, QuantizeUniform, ShareKMeans
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)

HALF = Step.of("prune_channels", sparsity=0.5, multiple=4)
SPARSE, W4, SHARE = (
    Step.of("prune_magnitude", sparsity=0.8),
    Step.of("quantize", bits=4),
    Step.of("share", clusters=8),
)
W8A8 = Step.of("quantize", bits=8, activations="int8")


class OwnConv(nn.Conv2d):
    """A convolution that pads by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (1, 1, 1, 1), value=0.5))


class Separable(nn.Module):
    """Depthwise and pointwise convolutions, one of the user's own kind, without batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.depth, self.point = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1)
        self.own, self.fc = OwnConv(16, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.depth(self.stem(x).relu()).relu()).relu()
        return self.fc(self.own(x).relu().mean((2, 3)))


@dataclass(frozen=True)
class Times:
    """Multiplies the weights, or fails."""

    factor: float

    name: ClassVar[str] = "times"
    phase: ClassVar[Phase] = Phase.PRUNE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    calls: ClassVar[Counter[float]] = Counter()

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        self.calls[self.factor] += 1
        if self.factor == 0:
            raise RuntimeError("nothing is left")
        module.weight.mul_(self.factor)
        return module


def setting(make=DigitsCNN, channels: int = 1) -> tuple[nn.Module, ModelGraph, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, pictures = make().eval(), torch.rand(48, channels, 8, 8)
        for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
    reestimate_statistics(model, pictures)
    return model, ModelGraph.trace(model, pictures[:1]), pictures


def bank_of(model: nn.Module, graph: ModelGraph, pictures: Tensor) -> Bank:
    energies = input_energies(model, pictures, graph.groups)
    return Bank(model, graph, Observations.of(model, graph, pictures), energies, norms_after(model))


def plan_of(graph: ModelGraph, layers: dict[str, list[Step]]) -> Plan:
    return make_plan(Policy({name: tuple(steps) for name, steps in layers.items()}), graph)


def test_a_variant_is_compressed_once_however_many_plans_have_it(monkeypatch):
    calls: Counter[tuple[int, int]] = Counter()
    apply = QuantizeUniform.apply

    def counted(self: QuantizeUniform, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        calls[self.bits, module.weight.numel()] += 1
        return apply(self, module, calibration)

    monkeypatch.setattr(QuantizeUniform, "apply", counted)
    model, graph, pictures = setting()
    bank = bank_of(model, graph, pictures)
    first = bank.stitch(plan_of(graph, {"conv2": [W4], "fc1": [SPARSE, W4]}))
    second = bank.stitch(plan_of(graph, {"conv2": [W4], "fc1": [SPARSE, W4], "fc2": [W4]}))
    bank.stitch(plan_of(graph, {"conv1": [HALF], "fc1": [SPARSE, W4]}))
    assert calls == {(4, 64 * 32 * 9): 1, (4, 64 * 1024): 1, (4, 640): 1}
    assert second.modules["fc1"] is first.modules["fc1"]
    bank.stitch(plan_of(graph, {"conv1": [HALF], "conv2": [W4]}))
    assert calls[4, 64 * 16 * 9] == 1, "with other inputs it is another layer"


def test_variants_that_the_memory_does_not_hold_are_made_again(monkeypatch):
    monkeypatch.setattr(banking, "KEPT_VARIANT_BYTES", 1)
    monkeypatch.setattr(banking, "KEPT_STAGE_BYTES", 1)
    model, graph, pictures = setting()
    plan = plan_of(graph, {"conv1": [HALF, W4], "conv2": [SPARSE, W4], "fc1": [SPARSE, SHARE]})
    small = bank_of(model, graph, pictures)
    first, second = small.stitch(plan), small.stitch(plan)
    assert first.stored_bytes == second.stored_bytes
    for name, module in first.modules.items():
        assert all(torch.equal(a, b) for a, b in zip(module.parameters(), second.modules[name].parameters()))


@pytest.mark.parametrize("layer", ["conv2", "fc1"])
def test_solving_again_what_a_cut_leaves_lowers_the_output_error(layer):
    model, graph, pictures = setting()
    bank = bank_of(model, graph, pictures)
    root, keep = {"conv2": ("conv1", 16), "fc1": ("conv2", 32)}[layer]
    variant = bank.variant(layer, ((root, keep, "energy"),), ())
    lost = bank._cutter.lost(layer, "in", ((root, keep, "energy"),))
    plain, x = copy.deepcopy(model.get_submodule(layer)), Observations.of(model, graph, pictures).inputs(layer)[0]
    with torch.no_grad():
        expected = plain(x)
        cut(plain, "in", lost)
        kept = [i for i in range(x.shape[1]) if i not in lost]
        error = (plain(x[:, kept]) - expected).square().sum() / expected.square().sum()
        own = (variant.plain(x[:, kept]) - expected).square().sum() / expected.square().sum()
    assert len(lost) == x.shape[1] // 2
    assert variant.relative_error == pytest.approx(float(own), rel=1e-3)
    assert variant.relative_error < 0.7 * float(error)
    assert variant.weighted_error > 0


def test_an_untouched_layer_has_no_error_and_errors_rise_with_harshness():
    bank = bank_of(*setting())
    dense = bank.variant("conv2", (), ())
    assert (dense.relative_error, dense.weighted_error) == (0, 0)
    found = [bank.variant("conv2", (), (QuantizeUniform(bits),)) for bits in (8, 4, 3, 2)]
    for name in ("relative_error", "weighted_error"):
        errors = [getattr(variant, name) for variant in found]
        assert errors == sorted(errors)
        assert errors[0] > 0
    assert [v.stored_bytes for v in found] == sorted([v.stored_bytes for v in found], reverse=True)


def test_the_norm_behind_a_layer_follows_its_mean_and_spread():
    model, graph, pictures = setting()
    bank = bank_of(model, graph, pictures)
    variant = bank.variant("conv2", (), (Times(3.0),))
    norm, dense = variant.norms["bn2"], model.bn2
    assert torch.allclose(norm.running_mean, 3 * dense.running_mean, atol=1e-2)
    assert torch.allclose(norm.running_var, 9 * dense.running_var, rtol=1e-2)
    x = Observations.of(model, graph, pictures).inputs("conv2")[0]
    with torch.no_grad():
        assert torch.allclose(norm(variant.plain(x)), dense(model.conv2(x)), atol=1e-2)
    narrow = bank.variant("conv1", (("conv1", 8, "energy"),), ()).norms["bn1"]
    assert narrow.num_features == len(narrow.running_var) == 8
    assert bank.variant("fc1", (), (Times(3.0),)).norms == {}


@pytest.mark.parametrize("count", [1, 2])
def test_norms_stay_finite_on_few_pictures(count):
    model, graph, pictures = setting()
    tiny = bank_of(model, graph, pictures[:count])
    stitch = tiny.stitch(plan_of(graph, {"conv1": [HALF], "conv2": [W4]}))
    tensors = [t for m in stitch.modules.values() for t in (*m.parameters(), *m.buffers())]
    assert all(t.isfinite().all() for t in tensors)


PLANS = {
    "quantized": {"conv1": [W8A8], "conv2": [W4], "fc1": [W4], "fc2": [W4]},
    "sparse": {"conv2": [SPARSE, W4], "fc1": [SPARSE, SHARE], "fc2": [SHARE]},
    "narrow": {"conv1": [HALF], "conv2": [HALF, SPARSE, W4], "fc1": [HALF, SPARSE, SHARE]},
    "factorized": {"conv1": [W4], "conv2": [SHARE], "fc1": [Step.of("svd", rank=8), W4], "fc2": [W4]},
}


def shipped_bytes(bank: Bank, plan: Plan, pictures: Tensor) -> int:
    compressed = bank.assemble(plan, pictures)
    settle_statistics(compressed.model)
    round_vectors(compressed.model)
    return len(encode(compressed.stored(), {}))


@pytest.mark.parametrize("name", PLANS)
def test_the_stitchs_bytes_are_nearly_those_of_the_whole_as_it_ships(name):
    model, graph, pictures = setting()
    bank, plan = bank_of(model, graph, pictures), plan_of(graph, PLANS[name])
    assert bank.stitch(plan).stored_bytes == pytest.approx(shipped_bytes(bank, plan, pictures), rel=0.02)


def test_a_deep_networks_bytes_are_nearly_those_of_the_whole_too():
    model, graph, pictures = setting(lambda: ResNet20(width=8), 3)
    bank = bank_of(model, graph, pictures)
    layers = {name: [SPARSE, SHARE] for name in graph.layers}
    for root in ("layer1.0.conv1", "layer3.1.conv1"):
        layers[root] = [HALF, SPARSE, SHARE]
    plan = plan_of(graph, layers)
    assert bank.stitch(plan).stored_bytes == pytest.approx(shipped_bytes(bank, plan, pictures), rel=0.02)


@pytest.mark.parametrize("name", PLANS)
def test_the_dense_network_is_untouched_whatever_is_done_with_what_was_put_together(name):
    model, graph, pictures = setting()
    bank, plan = bank_of(model, graph, pictures), plan_of(graph, PLANS[name])
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        first = bank.assemble(plan, pictures).model(pictures)
    compressed = bank.assemble(plan, pictures)
    trained = copy.deepcopy(compressed.model).train().requires_grad_(True)
    optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
    trained(pictures).square().sum().backward()
    optimizer.step()
    settle_statistics(compressed.model)
    round_vectors(compressed.model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(bank.assemble(plan, pictures).model(pictures), first)
        assert not torch.allclose(trained.eval()(pictures), first, atol=1e-3)


def test_put_together_are_forms_and_ranges_as_the_plan_asks():
    model, graph, pictures = setting()
    compressed = bank_of(model, graph, pictures).assemble(plan_of(graph, PLANS["quantized"]), pictures)
    assert hasattr(compressed.model.conv1, "input_scale")
    assert not hasattr(compressed.model.conv2, "input_scale")
    assert not hasattr(model.conv1, "input_scale")
    assert len(torch.unique(compressed.model.fc2.weight[0])) <= 15


def test_a_variant_that_failed_is_refused_with_its_reason_and_not_tried_again():
    bank = bank_of(*setting())
    Times.calls.clear()
    for _ in range(3):
        with pytest.raises(CandidateError, match="layer 'fc1': times failed: nothing is left"):
            bank.variant("fc1", (), (Times(0.0),))
    assert Times.calls == {0.0: 1}
    assert bank.variant("fc1", (), (Times(2.0),)).relative_error == pytest.approx(1, rel=0.2)


def test_a_group_without_slots_is_left_to_a_new_trace():
    model, graph, pictures = setting()
    unknown = tuple(replace(group, slots=()) if group.root == "conv1" else group for group in graph.groups)
    graph = replace(graph, groups=unknown)
    bank = bank_of(model, graph, pictures)
    plan, other = plan_of(graph, {"conv1": [HALF]}), plan_of(graph, {"conv2": [HALF], "conv1": [W4]})
    assert not bank.can_make(plan)
    assert bank.can_make(other)
    with pytest.raises(CandidateError, match="without tracing the network again"):
        bank.stitch(plan)


def test_depthwise_layers_lose_channels_with_their_group():
    model, graph, pictures = setting(Separable)
    bank, plan = bank_of(model, graph, pictures), plan_of(graph, {"stem": [HALF], "depth": [W4], "point": [HALF]})
    stitch = bank.stitch(plan)
    depth = stitch.modules["depth"]
    assert (depth.groups, depth.in_channels, tuple(depth.weight.shape)) == (8, 8, (8, 1, 3, 3))
    assert tuple(stitch.modules["point"].weight.shape) == (8, 8, 1, 1)
    with torch.no_grad():
        assert bank.assemble(plan, pictures).model(pictures).isfinite().all()


def test_a_layer_whose_hessian_is_unknown_is_cut_as_it_is_and_refuses_what_needs_one():
    model, graph, pictures = setting(Separable)
    bank = bank_of(model, graph, pictures)
    variant = bank.variant("own", (("point", 8, "energy"),), ())
    lost = bank._cutter.lost("own", "in", (("point", 8, "energy"),))
    kept = [i for i in range(16) if i not in lost]
    assert torch.equal(variant.plain.weight, model.own.weight[:, kept])
    assert 0 < variant.relative_error < 1
    with pytest.raises(CandidateError, match="layer 'own': prune_obs failed"):
        bank.variant("own", (), (PruneOBS(0.5),))


def test_adopted_files_give_the_same_network_without_compressing_anything(monkeypatch):
    model, graph, pictures = setting()
    steps = {
        "conv2": [Step.of("prune_channels", sparsity=0.5, multiple=4), Step.of("prune_obs", sparsity=0.6), SHARE],
        "fc1": [Step.of("svd", rank=4), W4],
        "fc2": [SPARSE, Step.of("quantize", bits=3)],
    }
    plan = plan_of(graph, steps)
    first, second = bank_of(model, graph, pictures), bank_of(model, graph, pictures)
    made = first.stitch(plan)
    second.adopt({variant.digest: write_layer(variant.module) for variant in made.variants.values()})

    def refuse(*_: object) -> None:
        raise AssertionError("a layer that was adopted is compressed again")

    for technique in (PruneOBS, QuantizeUniform, ShareKMeans):
        monkeypatch.setattr(technique, "apply", refuse)
    again = second.stitch(plan)
    assert again.stored_bytes == made.stored_bytes
    for name, variant in made.variants.items():
        weights = [tensor for tensor in variant.plain.state_dict().values() if tensor.ndim > 1]
        others = [tensor for tensor in again.variants[name].plain.state_dict().values() if tensor.ndim > 1]
        assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True)), name
        # What training starts from too: latent values and masks, not only what they come to.
        state, other = variant.module.state_dict(), again.variants[name].module.state_dict()
        assert list(state) == list(other)
        assert all(torch.equal(state[key], other[key]) for key in state), name


def test_a_file_that_does_not_fit_is_left_aside():
    model, graph, pictures = setting()
    plan = plan_of(graph, {"fc2": [SPARSE]})
    first, second = bank_of(model, graph, pictures), bank_of(model, graph, pictures)
    (variant,) = first.stitch(plan).variants.values()
    second.adopt({variant.digest: b"no press file"})
    assert second.stitch(plan).stored_bytes == first.stitch(plan).stored_bytes


def test_gradients_are_of_the_channels_that_a_cut_leaves(monkeypatch):
    seen: list[Calibration] = []
    monkeypatch.setattr(Times, "needs_gradients", True)
    monkeypatch.setattr(Times, "apply", lambda _, module, given: seen.append(given) or module)
    model, graph, pictures = setting()
    bank = bank_of(model, graph, pictures)
    bank.variant("conv2", (("conv1", 16, "energy"), ("conv2", 32, "energy")), (Times(1.0),))
    bank.variant("conv2", (), (Times(1.0),))
    small, whole = seen
    assert small.inputs.shape[1] == 16 and small.gradients.shape[1] == 32
    kept = [i for i in range(64) if i not in bank._cutter.lost("conv2", "out", (("conv2", 32, "energy"),))]
    assert torch.equal(small.gradients, whole.gradients[:, kept])


@pytest.mark.parametrize("method", ["xnor", "connect_stochastic", "loss_aware"])
def test_an_adopted_binary_layer_computes_and_goes_on_training_as_the_one_that_was_written(method):
    model, graph, pictures = setting()
    plan = plan_of(graph, {"conv2": [Step.of("binarize", method=method)]})
    first, second = bank_of(model, graph, pictures), bank_of(model, graph, pictures)
    (made,) = first.stitch(plan).variants.values()
    second.adopt({made.digest: write_layer(made.module)})
    (read,) = second.stitch(plan).variants.values()
    shape = (2, *graph.layers["conv2"].input_shape)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(read.module.eval()(inputs), made.module.eval()(inputs))
    old, new = forms.form_of(made.module), forms.form_of(read.module)
    assert isinstance(new, forms.BinaryWeight)
    assert (new.follows, new.stochastic) == (old.follows, old.stochastic)
