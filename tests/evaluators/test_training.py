"""The training loop, its random changes of pictures and the teacher's loss."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from paretopress.evaluators.data import DataSet, Pictures, Preprocess
from paretopress.evaluators.training.augment import Augment
from paretopress.evaluators.training.distillation import distillation
from paretopress.evaluators.training.loop import Recipe, cross_entropy, train
from paretopress.policies.architectures import DigitsCNN
from paretopress.policies.errors import CandidateError
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)

AUGMENT = Augment(shift=1, flip=True, rotate=10, scale=0.1)


def data_of(count: int = 40) -> DataSet:
    random = np.random.default_rng(0)
    labels = np.arange(count) % 10
    images = random.normal(size=(count, 1, 8, 8)).astype(np.float32)
    images[np.arange(count), 0, labels % 8, labels // 8] += 3
    pictures = Pictures(images, labels)
    return DataSet("noise", 10, pictures, pictures, pictures, None, Preprocess())


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DigitsCNN()


def same_state(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(value, b[name]) for name, value in a.items())


class StoppedError(Exception):
    """Stands for a process that ends in the middle of a run."""


def stop_after(epochs: int):
    def on_epoch(epoch: int, _: float) -> None:
        if epoch == epochs:
            raise StoppedError

    return on_epoch


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("count", [40, 41], ids=["whole batches", "one picture left over"])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(tmp_path, optimizer, count):
    recipe = Recipe(epochs=4, batch_size=8, optimizer=optimizer, lr=0.01, augment=AUGMENT)
    whole, parts = network(), network()
    train(whole, data_of(count), recipe, seed=3)
    checkpoint = tmp_path / "training.safetensors"
    for epochs in (1, 3):
        with pytest.raises(StoppedError):
            train(parts, data_of(count), recipe, seed=3, checkpoint=checkpoint, on_epoch=stop_after(epochs))
        parts = network(seed=9)
    seen = []
    train(parts, data_of(count), recipe, seed=3, checkpoint=checkpoint, on_epoch=lambda epoch, _: seen.append(epoch))
    assert seen == [4]
    assert same_state(parts, whole)


def test_a_finished_checkpoint_gives_the_network_without_training(tmp_path):
    recipe, seen = Recipe(epochs=2, batch_size=8, lr=0.01), []
    whole, again = network(), network(seed=9)
    train(whole, data_of(), recipe, seed=3, checkpoint=tmp_path / "training.safetensors")
    train(
        again,
        data_of(),
        recipe,
        seed=3,
        checkpoint=tmp_path / "training.safetensors",
        on_epoch=lambda epoch, _: seen.append(epoch),
    )
    assert seen == []
    assert same_state(again, whole)
    assert not again.training


def test_the_seed_fixes_the_training():
    models = [network() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2)):
        torch.manual_seed(int(torch.randint(1000, (1,))))
        train(model, data_of(), Recipe(epochs=1, batch_size=8, lr=0.01, augment=AUGMENT), seed=seed)
    assert same_state(models[0], models[1])
    assert not same_state(models[0], models[2])


def test_training_learns():
    model, losses = network(), []
    train(
        model,
        data_of(),
        Recipe(epochs=12, batch_size=8, lr=0.02),
        seed=0,
        on_epoch=lambda _, loss: losses.append(loss),
    )
    assert losses[-1] < 0.2 < losses[0]
    assert not model.training
    x, labels = next(data_of().batches(data_of().train, 40))
    assert float((model(x).argmax(1) == labels).float().mean()) > 0.9


def test_divergence_is_a_fault_of_the_candidate():
    with pytest.raises(CandidateError, match=r"training diverged in epoch 1 .*lower the learning rate"):
        train(network(), data_of(), Recipe(epochs=3, batch_size=8, lr=1e20), seed=0)


def test_divergence_leaves_the_last_good_checkpoint(tmp_path):
    checkpoint = tmp_path / "training.safetensors"
    recipe = Recipe(epochs=2, batch_size=8, lr=0.01)
    train(network(), data_of(), recipe, seed=0, checkpoint=checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(CandidateError):
        train(network(), data_of(), replace(recipe, epochs=4, lr=1e20), seed=0, checkpoint=checkpoint)
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize(("count", "batch_size", "sizes"), [(9, 4, [4, 4]), (10, 4, [4, 4, 2]), (8, 4, [4, 4])])
def test_a_single_picture_left_over_is_not_trained_on(count, batch_size, sizes):
    seen = []

    def loss(x: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(len(x))
        return functional.cross_entropy(logits, labels)

    train(network(), data_of(count), Recipe(epochs=1, batch_size=batch_size, lr=0.01), seed=0, loss=loss)
    assert seen == sizes


def test_batches_of_one_picture_train():
    model, start = network(), network()
    train(model, data_of(10), Recipe(epochs=1, batch_size=1, lr=0.001), seed=0)
    assert not torch.equal(model.fc2.weight, start.fc2.weight)


def test_the_learning_rate_warms_up_and_falls_to_nothing():
    rates = []

    class Noted(torch.optim.SGD):
        def step(self, *arguments, **named):
            rates.append(self.param_groups[0]["lr"])
            return super().step(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "SGD", Noted)
        train(network(), data_of(), Recipe(epochs=4, batch_size=8, lr=0.1, warmup=0.25), seed=0)
    assert len(rates) == 20
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert 0 < rates[-1] < 0.002


def test_frozen_weights_stay_and_small_tensors_do_not_decay():
    model = network()
    model.fc1.weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())

    def nothing(_: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        return 0 * logits.sum()

    train(model, data_of(), Recipe(epochs=1, batch_size=8, lr=0.1, weight_decay=0.1), seed=0, loss=nothing)
    after = model.state_dict()
    for name in ("fc1.weight", "fc2.bias", "bn1.weight"):
        assert torch.equal(before[name], after[name]), name
    assert float(after["fc2.weight"].norm()) < float(before["fc2.weight"].norm())


CHANGES = {
    "nothing": Augment(),
    "shift": Augment(shift=2),
    "flip": Augment(flip=True),
    "rotate": Augment(rotate=15),
    "scale": Augment(scale=0.2),
    "all": Augment(shift=2, flip=True, rotate=15, scale=0.2),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("shape", [(6, 3, 8, 8), (5, 1, 7, 12), (1, 1, 2, 2)])
def test_changed_pictures_keep_their_shape_and_follow_the_generator(name, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before, state = x.clone(), torch.get_rng_state()
    one, again = (CHANGES[name](x, torch.Generator().manual_seed(7)) for _ in range(2))
    assert one.shape == x.shape
    assert one.isfinite().all()
    assert torch.equal(one, again)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, x) if name == "nothing" else shape[0] == 1 or not torch.equal(one, x)


def test_shifts_reach_every_offset_fill_with_zeros_and_move_all_channels_alike():
    x = torch.zeros(400, 2, 5, 5)
    x[:, 0, 2, 2], x[:, 1, 2, 2] = 1, 2
    moved = Augment(shift=1)(x, torch.Generator().manual_seed(0))
    places = moved[:, 0].flatten(1).argmax(1)
    assert set(places.tolist()) == {row * 5 + column for row in (1, 2, 3) for column in (1, 2, 3)}
    assert torch.equal(moved[:, 1], 2 * moved[:, 0])
    assert torch.equal(moved.sum((1, 2, 3)), x.sum((1, 2, 3)))


def test_half_of_the_pictures_are_mirrored():
    x = torch.arange(4.0).expand(1000, 1, 1, 4)
    flipped = Augment(flip=True)(x, torch.Generator().manual_seed(0))
    mirrored = flipped[:, 0, 0, 0] == 3
    assert 430 < int(mirrored.sum()) < 570
    assert torch.equal(flipped[mirrored], x[mirrored].flip(-1))
    assert torch.equal(flipped[~mirrored], x[~mirrored])


def test_small_rotations_keep_the_middle_of_a_picture():
    x = torch.ones(20, 1, 9, 9)
    turned = Augment(rotate=10, scale=0.05)(x, torch.Generator().manual_seed(0))
    assert torch.allclose(turned[:, :, 3:6, 3:6], x[:, :, 3:6, 3:6], atol=1e-5)


class Fixed(nn.Module):
    """A teacher with given outputs."""

    def __init__(self, outputs: Tensor) -> None:
        super().__init__()
        self.outputs = nn.Parameter(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs


@pytest.mark.parametrize(("tau", "weight", "smoothing"), [(1, 0.5, 0.0), (4, 0.7, 0.0), (2, 1.0, 0.0), (3, 0.0, 0.1)])
def test_the_teachers_loss_is_the_papers(tau, weight, smoothing):
    random = np.random.default_rng(0)
    student, teacher, labels = random.normal(size=(6, 5)), random.normal(size=(6, 5)), np.array([0, 1, 2, 3, 4, 0])

    def softmax(z: np.ndarray) -> np.ndarray:
        return np.exp(z) / np.exp(z).sum(1, keepdims=True)

    soft = softmax(teacher / tau)
    divergence = (soft * (np.log(soft) - np.log(softmax(student / tau)))).sum(1).mean()
    target = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
    hard = -(target * np.log(softmax(student))).sum(1).mean()
    expected = (1 - weight) * hard + weight * tau**2 * divergence

    logits = torch.tensor(student, requires_grad=True)
    network = Fixed(torch.tensor(teacher))
    value = distillation(network, tau, weight, smoothing)(torch.zeros(6, 1, 2, 2), logits, torch.tensor(labels))
    assert float(value.detach()) == pytest.approx(expected)
    value.backward()
    assert logits.grad is not None
    assert network.outputs.grad is None


def test_a_student_that_equals_its_teacher_has_nothing_to_learn():
    teacher = Fixed(torch.randn(4, 5))
    logits = teacher.outputs.detach().clone().requires_grad_(True)
    value = distillation(teacher, 4.0, 1.0)(torch.zeros(4, 1, 2, 2), logits, torch.zeros(4, dtype=torch.int64))
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=1e-6)
    assert logits.grad.abs().max() < 1e-6


def test_label_smoothing_reaches_the_ordinary_loss():
    logits, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    found = cross_entropy(Recipe(label_smoothing=0.2))(logits, logits, labels)
    assert torch.equal(found, functional.cross_entropy(logits, labels, label_smoothing=0.2))


def test_training_leaves_every_network_as_it_lay_in_memory():
    def strides(network: nn.Module) -> list[tuple[int, ...]]:
        return [value.stride() for value in network.state_dict().values()]

    student, teacher = network(), network(seed=1)
    before = strides(teacher)
    loss = distillation(teacher, 4.0, 0.7)
    train(student, data_of(), Recipe(epochs=1, batch_size=8, lr=0.01), seed=0, loss=loss)
    assert strides(student) == strides(teacher) == before


def test_a_network_that_views_its_maps_as_vectors_trains_and_teaches():
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).relu().view(len(x), -1))

    student = Views()
    before = copy.deepcopy(student)
    train(
        student,
        data_of(),
        Recipe(epochs=1, batch_size=8, lr=0.01),
        seed=0,
        loss=distillation(copy.deepcopy(student), 4, 0.7),
    )
    assert not same_state(student, before)
