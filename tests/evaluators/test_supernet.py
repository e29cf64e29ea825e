"""Networks cut out of one that is trained for all of them."""

from __future__ import annotations

import copy

import pytest
import torch
from paretopress.evaluators.data import DataSet, Pictures, SplitSizes
from paretopress.evaluators.sources import load_data
from paretopress.evaluators.supernet import Part, Supernet
from paretopress.evaluators.training.loop import Recipe, cross_entropy, train
from paretopress.evaluators.training.sandwich import Sandwich
from paretopress.policies.architectures.shapes import network_of
from paretopress.policies.errors import PolicyError
from paretopress.policies.subnetworks import sliced
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)
LARGE = {"family": "mobilenet_v1", "side": 8, "downsampling": 2, "multiple": 4, "width": 0.25, "repeats": 0}
MIDDLE, SMALL = {**LARGE, "width": 0.125}, {**LARGE, "width": 0.0625, "resolution": 6}
SHAPES = (SMALL, MIDDLE, LARGE)


@pytest.fixture(scope="module")
def data() -> DataSet:
    return load_data("digits", sizes=SplitSizes(0.15, 64, 0.2), seed=0)


@pytest.fixture
def supernet(data: DataSet) -> Supernet:
    torch.manual_seed(0)
    model = network_of(LARGE, 10, 1).eval()
    return Supernet(model, data.preprocess(data.calibration.images[:1]), 10)


def parts(supernet: Supernet, *shapes: dict) -> list[Part]:
    return [supernet.part(shape) for shape in shapes]


def batch(data: DataSet, count: int = 32) -> tuple[Tensor, Tensor]:
    part: Pictures = data.train.take(slice(0, count))
    return data.preprocess(part.images), torch.from_numpy(part.labels.astype("int64"))


def test_the_loss_is_the_labels_for_the_largest_and_its_outputs_for_the_others(
    supernet: Supernet, data: DataSet
) -> None:
    x, labels = batch(data)
    loss = Sandwich.of(supernet, parts(supernet, SMALL), 1, Recipe())
    logits = supernet.model.train()(x)
    network = supernet.part(SMALL).network
    state = supernet.model.state_dict()
    network.load_state_dict(sliced(state, supernet.part(SMALL).slices))
    expected = functional.cross_entropy(logits, labels)
    expected += functional.cross_entropy(network.train()(x), logits.softmax(1))
    assert loss(x, logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_step_trains_the_smallest_shape_and_as_many_others_as_asked(
    supernet: Supernet, data: DataSet, count
) -> None:
    x, labels = batch(data)
    shapes = [{**LARGE, "width": width} for width in (0.0625, 0.125, 0.1875, 0.25)]
    loss, seen = Sandwich.of(supernet, parts(supernet, *shapes), count, Recipe()), []
    for number, part in enumerate(loss.parts):
        part.network.register_forward_hook(lambda *_, number=number: seen.append(number))
    for _ in range(8):
        seen.clear()
        loss(x, supernet.model.train()(x), labels)
        assert seen[0] == 0 and len(set(seen)) == len(seen) == 1 + count


def test_the_largest_learns_nothing_from_the_others_outputs(supernet: Supernet, data: DataSet) -> None:
    """The gradient of the others' losses reaches the shared weights through the others alone."""
    x, labels = batch(data)
    logits = supernet.model.train()(x)
    Sandwich.of(supernet, parts(supernet, SMALL), 1, Recipe())(x, logits, torch.zeros_like(labels)).backward()
    last = supernet.model.get_submodule("stages.4.1.pointwise.conv").weight.grad
    cut = network_of(SMALL, 10, 1).get_submodule("stages.4.1.pointwise.conv").weight.shape
    supernet.model.zero_grad()
    cross_entropy(Recipe())(x, supernet.model(x), torch.zeros_like(labels)).backward()
    alone = supernet.model.get_submodule("stages.4.1.pointwise.conv").weight.grad
    torch.testing.assert_close(last[cut[0] :], alone[cut[0] :])
    assert not torch.allclose(last[: cut[0], : cut[1]], alone[: cut[0], : cut[1]])


def test_training_for_all_shapes_makes_the_small_ones_better(supernet: Supernet, data: DataSet) -> None:
    only = copy.deepcopy(supernet)
    recipe = Recipe(epochs=4, batch_size=32, lr=0.005, optimizer="adamw")
    train(only.model, data, recipe, seed=0)
    train(supernet.model, data, recipe, seed=0, loss=Sandwich.of(supernet, parts(supernet, *SHAPES), 1, recipe))
    assert error(supernet, MIDDLE, data) < 50 < error(only, MIDDLE, data)


def test_statistics_are_those_of_the_shape(supernet: Supernet, data: DataSet) -> None:
    calibration = data.preprocess(data.calibration.images)
    network = supernet.network(SMALL, calibration)
    seen: list[Tensor] = []
    norm = network.get_submodule("stem.bn")
    handle = norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(calibration)
    handle.remove()
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_the_same_shape_is_the_same_network_every_time(supernet: Supernet, data: DataSet) -> None:
    calibration = data.preprocess(data.calibration.images)
    one, other = (supernet.network(MIDDLE, calibration).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_shape_that_is_not_held_is_refused(supernet: Supernet) -> None:
    with pytest.raises(PolicyError, match="not in the network"):
        supernet.part({**LARGE, "width": 0.5})


def test_a_slimmable_network_is_each_of_its_shapes_with_one_set_of_weights(supernet: Supernet, data: DataSet) -> None:
    calibration = data.preprocess(data.calibration.images)
    slimmable = supernet.slimmable(SHAPES, calibration)
    x, _ = batch(data)
    with torch.no_grad():
        for number, shape in enumerate(SHAPES):
            expected = supernet.network(shape, calibration)(x)
            torch.testing.assert_close(slimmable.use(number)(x), expected, rtol=1e-5, atol=1e-6)
    storages = {parameter.untyped_storage().data_ptr() for parameter in slimmable.parameters()}
    assert storages == {parameter.untyped_storage().data_ptr() for parameter in supernet.model.parameters()}


def test_a_shape_that_a_slimmable_network_has_not_is_refused(supernet: Supernet, data: DataSet) -> None:
    slimmable = supernet.slimmable(SHAPES, data.preprocess(data.calibration.images))
    with pytest.raises(PolicyError, match="expected the number of a shape, 0 to 2; got 3"):
        slimmable.use(3)
    with pytest.raises(PolicyError, match="needs one shape or more"):
        supernet.slimmable([], data.preprocess(data.calibration.images))


def error(supernet: Supernet, shape: dict, data: DataSet) -> float:
    network = supernet.network(shape, data.preprocess(data.calibration.images))
    with torch.no_grad():
        predicted = network(data.preprocess(data.validation.images)).argmax(1).numpy()
    return 100.0 * float((predicted != data.validation.labels).mean())
