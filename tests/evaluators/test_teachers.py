"""Ways of learning from a teacher: their formulas, their stages, and recovery of compressed networks by each."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.data import DataSet, Pictures, Preprocess
from paretopress.evaluators.stopwatch import Stopwatch
from paretopress.evaluators.training.distillation import SoftTargets, distillation
from paretopress.evaluators.training.ensemble import Ensemble, as_one, softened
from paretopress.evaluators.training.hints import Guided, Hint, Hints, fitted_regressor, hint_loss
from paretopress.evaluators.training.inner import middle_layer, output_of
from paretopress.evaluators.training.logits import LogitRegression, regression
from paretopress.evaluators.training.loop import Recipe, train
from paretopress.evaluators.training.methods import make_hint, make_teaching
from paretopress.evaluators.training.penalties import make_penalty
from paretopress.evaluators.training.teaching import teach
from paretopress.evaluators.workbench import Settings, Workbench
from paretopress.policies.apply import restore
from paretopress.policies.architectures import FAMILIES, DigitsCNN
from paretopress.policies.branches import Nothing
from paretopress.policies.coding.press import decode
from paretopress.policies.errors import CandidateError, ConfigError, ModelError
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)

X = torch.zeros(6, 1, 2, 2)
LABELS = torch.tensor([0, 1, 2, 3, 4, 0])
HINT = Hint("conv2", "conv2", 0.5)
METHODS = {
    "logits": LogitRegression(0.7),
    "soft": SoftTargets(4.0, 0.7),
    "hints": Hints(HINT, SoftTargets(4.0, 0.7)),
}


class Fixed(nn.Module):
    """A teacher with given outputs."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, _: Tensor) -> Tensor:
        return self.outputs


def network(seed: int = 0, **shape: int) -> DigitsCNN:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DigitsCNN(**shape).eval()


def data_of(count: int = 64) -> DataSet:
    random = np.random.default_rng(0)
    labels = np.arange(count) % 10
    images = random.normal(size=(count, 1, 8, 8)).astype(np.float32)
    images[np.arange(count), 0, labels % 8, labels // 8] += 3
    pictures = Pictures(images, labels)
    return DataSet("noise", 10, pictures, pictures, pictures, None, Preprocess())


def outputs(seed: int, count: int = 6) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(loss, logits: Tensor) -> Tensor:
    logits = logits.clone().requires_grad_(True)
    loss(X, logits, LABELS).backward()
    assert logits.grad is not None
    return logits.grad


def test_regression_is_half_the_mean_square_of_the_logits_difference_beside_the_labels() -> None:
    student, teacher = outputs(0), outputs(1)
    found = regression(Fixed(teacher), 0.7, 0.1)(X, student, LABELS)
    hard = functional.cross_entropy(student, LABELS, label_smoothing=0.1)
    square = ((student - teacher) ** 2).sum() / (2 * student.numel())
    assert float(found) == pytest.approx(float(0.3 * hard + 0.7 * square))


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_the_gradient_of_soft_targets_is_tau_times_the_difference_of_probabilities(tau: float) -> None:
    student, teacher = outputs(0), outputs(1)
    expected = tau * (torch.softmax(student / tau, 1) - torch.softmax(teacher / tau, 1)) / len(student)
    assert torch.allclose(gradient(distillation(Fixed(teacher), tau, 1.0), student), expected)


def test_soft_targets_at_a_high_temperature_are_regression_to_logits() -> None:
    student, teacher = (values - values.mean(1, keepdim=True) for values in (outputs(0), outputs(1)))
    hot, regressed = (gradient(loss(Fixed(teacher)), student) for loss in (_hot, lambda t: regression(t, 1.0)))
    assert torch.allclose(hot, regressed, rtol=1e-3, atol=1e-6)


def _hot(teacher: nn.Module):
    return distillation(teacher, 1e4, 1.0)


def test_an_ensemble_teaches_the_mean_of_probabilities_or_of_logits() -> None:
    one, other = outputs(1), outputs(2)
    both = as_one([Fixed(one), Fixed(other)])
    mean = (torch.softmax(one / 3, 1) + torch.softmax(other / 3, 1)) / 2
    assert torch.allclose(softened(both, X, 3.0).exp(), mean)
    assert torch.allclose(both(X), (one + other) / 2)
    student = outputs(0)
    expected = 3 * (torch.softmax(student / 3, 1) - mean) / len(student)
    assert torch.allclose(gradient(distillation(both, 3.0, 1.0), student), expected)
    assert torch.allclose(gradient(regression(both, 1.0), student), (student - (one + other) / 2) / student.numel())


def test_an_ensemble_of_one_is_that_network() -> None:
    teacher = Fixed(outputs(1))
    assert as_one([teacher]) is teacher
    assert torch.equal(softened(Ensemble([teacher]), X, 4.0), softened(teacher, X, 4.0))


@pytest.mark.parametrize(
    ("student", "guide", "weight", "came"),
    [
        ((8, 12, 6, 6), (8, 20, 6, 6), (20, 12, 1, 1), (8, 20, 6, 6)),
        ((8, 12, 8, 8), (8, 5, 4, 4), (5, 12, 1, 1), (8, 5, 4, 4)),
        ((8, 3, 3, 7), (8, 5, 6, 6), (5, 3, 1, 1), (8, 5, 3, 6)),
        ((8, 12), (8, 20), (20, 12), (8, 20)),
    ],
)
def test_the_regressor_maps_the_students_channels_to_the_teachers(student, guide, weight, came) -> None:
    v, u = torch.randn(student), torch.randn(guide)
    regressor = fitted_regressor(v, u)
    assert regressor.weight.shape == weight
    guessed = regressor(v).detach()
    assert guessed.shape == came
    teacher = nn.Sequential(nn.Identity())
    loss = hint_loss(teacher, "0", regressor.size, 2.0)(u, guessed, LABELS)
    hint = u if len(came) == 2 else functional.adaptive_avg_pool2d(u, came[2:])
    assert float(loss) == pytest.approx(float(((hint - guessed) ** 2).mean() / 4))


def test_a_regressor_starts_at_the_map_that_there_is() -> None:
    v, mix, shift = torch.randn(32, 6, 5, 5), torch.randn(9, 6), torch.randn(9)
    u = torch.einsum("oc,nchw->nohw", mix, v) + shift[:, None, None]
    left = (fitted_regressor(v, u)(v) - u).square().mean() / (u - u.mean((0, 2, 3), keepdim=True)).square().mean()
    assert float(left.detach()) < 0.02
    with pytest.raises(CandidateError, match="not finite"):
        fitted_regressor(v * float("nan"), u)


def test_the_output_of_an_inner_layer_is_its_own_and_later_layers_do_not_run() -> None:
    model, x = network(), torch.randn(3, 1, 8, 8)
    ran: list[str] = []
    for name in ("conv1", "conv2", "fc1"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
    found = output_of(model, "conv2", x)
    assert ran == ["conv1", "conv2"]
    assert torch.equal(found, model.conv2(model.relu1(model.bn1(model.conv1(x)))))
    assert len(model.conv2._forward_hooks) == 1
    assert middle_layer(model, x) == "conv2"


def test_a_hint_trains_the_layers_up_to_it_alone_and_the_regressor_is_thrown_away() -> None:
    student, teacher, data = network(), network(seed=1), data_of()
    before = copy.deepcopy(student.state_dict())
    recipe = Recipe(epochs=2, batch_size=16, optimizer="adamw", lr=3e-3, penalties=(make_penalty("l2", 1.0),))
    first, second = Hints(HINT, SoftTargets()).stages(student, teacher, data, recipe)
    assert isinstance(first.model, Guided)
    assert (first.recipe.epochs, second.recipe.epochs) == (1, 1)
    assert (first.recipe.penalties, second.recipe.penalties) == ((), recipe.penalties)
    losses: list[float] = []
    regressor = first.model.regressor.weight.clone()
    longer = replace(first.recipe, epochs=8)
    train(first.model, data, longer, seed=0, loss=first.loss, on_epoch=lambda _, loss: losses.append(loss))
    assert losses[-1] < 0.8 * losses[0]
    changed = {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"conv1", "bn1", "conv2"}
    assert not torch.equal(first.model.regressor.weight, regressor)
    assert list(student.state_dict()) == list(before)
    assert second.model is student


def test_of_a_single_epoch_the_pictures_are_divided() -> None:
    data = data_of(60)
    hints = Hints(Hint("conv2", "conv2", 0.25), SoftTargets())
    stages = hints.stages(network(), network(seed=1), data, Recipe(epochs=1, batch_size=8))
    assert [len(stage.data.train) for stage in stages] == [15, 45]
    assert [stage.recipe.epochs for stage in stages] == [1, 1]


def lost(how: str) -> nn.Module:
    """A student without the hinted layer."""
    student = network()
    if how == "dropped":
        student.conv2 = Nothing("tiny")
    elif how == "not there":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    else:
        student.conv2 = nn.Sequential(nn.Flatten(), nn.Linear(32 * 64, 10))
    return student


@pytest.mark.parametrize("how", ["dropped", "not there", "of vectors"])
def test_a_student_that_lost_the_layer_learns_from_the_outputs_alone(how: str) -> None:
    student = lost(how)
    stages = METHODS["hints"].stages(student, network(), data_of(), Recipe(epochs=2))
    assert [stage.model for stage in stages] == [student]
    assert stages[0].recipe.epochs == 2


def test_an_ensembles_first_network_gives_the_hint() -> None:
    networks = [network(seed=1), network(seed=2)]
    first = METHODS["hints"].stages(network(), Ensemble(networks), data_of(), Recipe(epochs=2))[0]
    x = torch.randn(4, 1, 8, 8)
    hint = output_of(networks[0], "conv2", x)
    assert float(first.loss(x, hint, LABELS[:4]).detach()) == 0


class StoppedError(Exception):
    """Stands for a process that ends in the middle of a run."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_stopped_teaching_goes_on_bit_for_bit(tmp_path, method: str, stop: int) -> None:
    recipe, data, teacher = Recipe(epochs=4, batch_size=16, lr=0.02), data_of(), network(seed=1)
    seen: list[int] = []
    whole = network()
    teach(whole, teacher, METHODS[method], data, recipe, seed=3, on_epoch=lambda epoch, _: seen.append(epoch))
    assert seen == [1, 2, 3, 4]
    checkpoint = tmp_path / "training.safetensors"

    def stopped(epoch: int, _: float) -> None:
        if epoch == stop:
            raise StoppedError

    parts = network()
    with pytest.raises(StoppedError):
        teach(parts, teacher, METHODS[method], data, recipe, seed=3, checkpoint=checkpoint, on_epoch=stopped)
    parts = network()
    teach(parts, teacher, METHODS[method], data, recipe, seed=3, checkpoint=checkpoint)
    assert all(torch.equal(value, parts.state_dict()[name]) for name, value in whole.state_dict().items())
    assert [file.name for file in tmp_path.iterdir()] == ["training.safetensors"]


def test_hints_that_cannot_be_given_are_refused_by_name() -> None:
    x, networks = torch.zeros(1, 1, 8, 8), (network(), network())
    assert make_hint(None, None, 0.3, networks, x, "recovery.hint") == Hint("conv2", "conv2", 0.3)
    with pytest.raises(ConfigError, match=r"recovery\.hint\.guide: .*no layer 'conv3'; did you mean 'conv2'\?"):
        make_hint(None, "conv3", 0.3, networks, x, "recovery.hint")
    with pytest.raises(ConfigError, match=r"two layers of maps or two of vectors; conv1 gives .* and fc1 gives"):
        make_hint("conv1", "fc1", 0.3, networks, x, "recovery.hint")
    learner = network()
    learner.unused = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"recovery\.hint\.student: layer 'unused' does not run"):
        make_hint("unused", None, 0.3, (learner, network()), x, "recovery.hint")
    with pytest.raises(ModelError, match="runs no convolution"):
        middle_layer(nn.Flatten(), x)


@pytest.fixture(scope="module")
def bench() -> Workbench:
    data, model = data_of(160), network()
    train(model, data, Recipe(epochs=4, batch_size=16, lr=0.02), seed=0)
    example = data.preprocess(data.calibration.images[:1])
    reference = export_onnx(model, example, calibration=None)
    recipe = Recipe(epochs=2, batch_size=32, optimizer="adamw", lr=2e-3)
    settings = Settings(screen_pictures=100, screen_seconds=0.02, recovery=recipe, prune_share=0.5, hint=HINT)
    return Workbench(model, ModelGraph.trace(model, example), data, reference, settings)


POLICIES = {
    "pruned": {"conv2": ("prune_magnitude", {"sparsity": 0.8}), "fc1": ("prune_magnitude", {"sparsity": 0.9})},
    "fewer channels": {"conv2": ("prune_channels", {"sparsity": 0.5})},
    "quantized": {name: ("quantize", {"bits": 4, "activations": "int8"}) for name in ("conv1", "conv2", "fc1")},
    "shared": {"conv1": ("share", {"clusters": 4}), "conv2": ("share", {"clusters": 8})},
    "factored": {"conv2": ("svd_spatial", {"rank": 6}), "fc1": ("svd", {"rank": 8})},
}


@pytest.mark.parametrize("teaching", METHODS)
@pytest.mark.parametrize("name", POLICIES)
def test_every_compressed_network_keeps_its_structure_whatever_teaches_it(bench, name: str, teaching: str) -> None:
    policy = Policy({layer: (Step.of(kind, **given),) for layer, (kind, given) in POLICIES[name].items()})
    given = replace(bench, settings=replace(bench.settings, teach=teaching))
    evaluator = CandidateEvaluator(given)
    before = copy.deepcopy(bench.model.state_dict())
    start = evaluator.build(policy, Stopwatch())
    tuned = evaluator._tuned(policy, 1, Stopwatch(), given.settings.recovery, given.data)
    assert tuned is not None
    kinds = [{key: type(tensor) for key, tensor in decode(made.press).tensors.items()} for made in (start, tuned)]
    assert kinds[0] == kinds[1]
    assert tuned.press != start.press
    assert all(torch.equal(value, bench.model.state_dict()[key]) for key, value in before.items())
    stored = decode(tuned.press).tensors
    restored = restore(make_plan(policy, bench.graph), bench.graph, DigitsCNN(), stored)
    assert [tuple(p.shape) for p in restored.parameters()] == [tuple(p.shape) for p in tuned.plain.parameters()]
    for layer, (kind, values) in POLICIES[name].items():
        if kind == "prune_magnitude":
            weight = stored[f"{layer}.weight"].decode()
            assert np.mean(weight == 0) == pytest.approx(values["sparsity"], abs=0.01)


def test_ways_of_teaching_lead_to_different_networks_and_teachers_too(bench) -> None:
    policy = Policy({"fc1": (Step.of("prune_magnitude", sparsity=0.9),)})
    with torch.random.fork_rng():
        torch.manual_seed(5)
        other = FAMILIES["plain"](num_classes=10, in_channels=1, side=8, downsampling=2, width=0.1).eval()
    benches = [replace(bench, settings=replace(bench.settings, teach=name)) for name in METHODS]
    benches += [replace(bench, teachers=(other,)), replace(bench, teachers=(bench.model, other))]
    files = [CandidateEvaluator(b)._tuned(policy, 1, Stopwatch(), b.settings.recovery, b.data).press for b in benches]
    assert len(set(files)) == len(files)
    dense = CandidateEvaluator(replace(bench, teachers=(bench.model,)))
    assert dense._tuned(policy, 1, Stopwatch(), bench.settings.recovery, bench.data).press == files[1]


def test_a_network_that_hints_train_is_the_same_whatever_the_worker_did_before(bench) -> None:
    policy = Policy({"conv2": (Step.of("prune_channels", sparsity=0.5),)})
    given = replace(bench, settings=replace(bench.settings, teach="hints"))
    used = CandidateEvaluator(given)
    used.recover(Policy({"conv2": (Step.of("svd_spatial", rank=6),)}), 2)
    one, other = (evaluator.recover(policy, 1) for evaluator in (used, CandidateEvaluator(copy.deepcopy(given))))
    assert one["artefacts"] == other["artefacts"]


def test_soft_targets_are_what_recovery_was_before(bench) -> None:
    assert repr(Settings()) == repr(replace(Settings(), teach="logits", hint=HINT))
    assert make_teaching("soft", 4.0, 0.7) == SoftTargets(4.0, 0.7)
    stages = SoftTargets(4.0, 0.7).stages(bench.model, bench.model, bench.data, Recipe())
    assert [(stage.model, stage.data, stage.recipe) for stage in stages] == [(bench.model, bench.data, Recipe())]
