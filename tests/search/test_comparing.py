"""A trace that is not the network is refused before anything is spent, with the cause."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from paretopress.evaluators.data import DataSet, Pictures, SplitSizes, split
from paretopress.policies.errors import ModelError
from paretopress.search.checking import check_slopes, check_training, export_reference
from paretopress.search.comparing import check_file, check_repeatable, take_samples
from torch import Tensor, nn
from torch.nn import functional


def data(kind: str = "uint8") -> DataSet:
    random, count = np.random.default_rng(0), 60
    labels = np.arange(count) % 4
    patterns = random.normal(size=(4, 3, 8, 8))
    images = patterns[labels] * 40 + 128 + random.normal(size=(count, 3, 8, 8)) * 20
    images = np.clip(images, 0, 255).astype(np.uint8)
    if kind == "float32":
        images = (images / 50.0 - 2.0).astype(np.float32)
    return split("pictures", Pictures(images, labels.astype(np.int64)), None, SplitSizes(0.25, 12, 0.25), 0)


DATA = data()


class Net(nn.Module):
    """A small classifier that does something to its maps."""

    def __init__(self, change: Callable[[Net, Tensor], Tensor] = lambda _, x: x) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1), nn.Linear(8, 4)
        self.register_buffer("mean", torch.zeros(8))
        self.change = change

    def forward(self, x: Tensor) -> Any:
        x = self.change(self, functional.relu(self.first(x)))
        return self.fc(functional.relu(self.second(x)).mean((2, 3)))


def branch(_: Net, x: Tensor) -> Tensor:
    """Another path for bright pictures, one picture at a time."""
    return torch.stack([maps * 3 if maps.mean() > 0.45 else maps.flip(1) for maps in x])


def branch_on_black(_: Net, x: Tensor) -> Tensor:
    """Another path for pictures without contrast, which the data has none of."""
    return torch.stack([maps if maps.std() > 0.1 else maps + 9 for maps in x])


def number(_: Net, x: Tensor) -> Tensor:
    return torch.stack([maps / float(maps.abs().max() + 1e-3) for maps in x])


def counted(net: Net, x: Tensor) -> Tensor:
    net.mean += 0.1
    return x + net.mean.view(1, -1, 1, 1)


def remembered(net: Net, x: Tensor) -> Tensor:
    """State that is no buffer."""
    net.calls = getattr(net, "calls", 0) + 1
    return x * net.calls


def noise(_: Net, x: Tensor) -> Tensor:
    return x + torch.randn_like(x)


def stochastic_depth(_: Net, x: Tensor) -> Tensor:
    keep = torch.empty(len(x), 1, 1, 1).bernoulli_(0.5)
    return x * keep


def numpys_noise(_: Net, x: Tensor) -> Tensor:
    return x * float(np.random.default_rng().uniform())


def over_the_batch(_: Net, x: Tensor) -> Tensor:
    return x / x.amax()


def batch_statistics(_: Net, x: Tensor) -> Tensor:
    return functional.batch_norm(x, None, None, training=True)


def batch_size(_: Net, x: Tensor) -> Tensor:
    return x * torch.ones(len(x), 1, 1, 1).cumsum(0).flip(0) / len(x)


AGAIN, ALONE, FILE = "other logits for the same pictures each time", "for a picture alone than", "ONNX file"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (branch, FILE),
        (branch_on_black, FILE),
        (number, FILE),
        (counted, "changes mean in evaluation mode"),
        (remembered, AGAIN),
        (noise, AGAIN),
        (stochastic_depth, AGAIN),
        (numpys_noise, AGAIN),
        (lambda _, x: functional.dropout(x, 0.5), AGAIN),
        (over_the_batch, ALONE),
        (batch_statistics, ALONE),
        (batch_size, ALONE),
    ],
)
def test_what_is_not_the_network_is_refused(change: Callable[[Net, Tensor], Tensor], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        export_reference(Net(change).eval(), DATA)


def test_the_message_names_the_line_and_the_norm() -> None:
    with pytest.raises(ModelError, match=r"\(test_comparing.py:\d+: Converting a tensor to a Python boolean"):
        export_reference(Net(branch).eval(), DATA)
    with pytest.raises(ModelError, match=r"\(bernoulli_ at test_comparing.py:\d+\)"):
        export_reference(Net(stochastic_depth).eval(), DATA)
    model = Net()
    model.norm = nn.BatchNorm2d(8, track_running_stats=False)
    model.change = lambda net, x: net.norm(x)
    with pytest.raises(ModelError, match=re.escape("(norm (BatchNorm2d) without running statistics")):
        export_reference(model.eval(), DATA)


def test_the_network_is_left_as_it_was() -> None:
    model = Net(counted).eval()
    with pytest.raises(ModelError):
        check_repeatable(model, take_samples(DATA))
    assert not bool(model.mean.any())


def constant_shapes(_: Net, x: Tensor) -> Tensor:
    """Tracer warnings that mean nothing: shapes that became numbers."""
    assert x.shape[1] == 8
    return x.view(x.shape[0], 8, -1)[:, :, : int(x.shape[2] * x.shape[3])].view(-1, 8, 8, 8)


@pytest.mark.parametrize("kind", ["uint8", "float32"])
@pytest.mark.parametrize(
    "change",
    [
        lambda _, x: x,
        constant_shapes,
        lambda _, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True) - x.amax((2, 3), keepdim=True)),
        lambda _, x: functional.instance_norm(x),
        lambda _, x: functional.dropout(x, 0.5, training=_.training),
    ],
)
def test_what_is_the_network_is_taken(change: Callable[[Net, Tensor], Tensor], kind: str) -> None:
    assert export_reference(Net(change).eval(), data(kind))


def each_brightened(x: Tensor) -> Tensor:
    pictures: list[Tensor] = []
    for i in range(x.size(0)):
        if bool(x[i].mean() > 0.0):
            pictures.append(x[i] * 3)
        else:
            pictures.append(x[i])
    return torch.stack(pictures)


def test_a_branch_that_the_file_has_too_is_no_reason_to_refuse() -> None:
    # Torch warns that scripting is to go; networks have it all the same.
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        scripted = torch.jit.script(each_brightened)

    class Brightened(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return scripted(x)

    model = nn.Sequential(Brightened(), nn.Flatten(), nn.Linear(192, 4)).eval()
    assert b"Loop" in export_reference(model, DATA)


def test_samples_are_of_two_splits_and_some_that_no_data_has() -> None:
    samples = take_samples(DATA)
    raw = DATA.preprocess(np.zeros((1, 3, 8, 8), np.uint8))
    assert len(samples.x) == 16 and sum(bool(torch.equal(x, raw[0])) for x in samples.x) == 1
    assert torch.equal(samples.x[:6], DATA.preprocess(DATA.calibration.images[:6]))
    assert samples.tolerances.tolist()[:12] == [samples.tolerances[0].item()] * 12


def test_a_file_of_other_weights_is_refused() -> None:
    file = export_reference(Net().eval(), DATA)
    other = Net().eval()
    other.fc.bias.data += 0.1
    with pytest.raises(ModelError, match="gives other logits than the network for a picture alone"):
        check_file(other, file, take_samples(DATA))


class Untrainable(Net):
    @torch.no_grad()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


class AskingForLabels(Net):
    def forward(self, x: Tensor) -> Any:
        if self.fc.training:
            raise ValueError("labels are missing")
        return super().forward(x)


class Detached(Net):
    def forward(self, x: Tensor) -> Any:
        x = functional.relu(self.first(x)).detach()
        return self.fc(functional.relu(self.second(x)).mean((2, 3)))


def tried(model: nn.Module) -> list[str]:
    return check_training(model.eval(), DATA, 32, ["first", "second", "fc"], "set recovery.epochs=0")


def test_what_cannot_be_trained_is_refused_in_one_sentence() -> None:
    with pytest.raises(ModelError, match=r"no gradient flows .* mend forward, or set recovery.epochs=0"):
        tried(Untrainable())
    with pytest.raises(
        ModelError, match=r"fails in training mode on pictures .* labels are missing; mend that, or set"
    ):
        tried(AskingForLabels())
    tuples = type("Tuples", (Net,), {"forward": lambda net, x: (Net.forward(net, x),) * 2 if net.fc.training else x})
    with pytest.raises(
        ModelError, match=r"expected logits .* in training mode too, where the network gives a tuple of 2"
    ):
        tried(tuples())


def test_layers_that_no_gradient_reaches_are_said() -> None:
    assert tried(Net()) == []
    assert tried(Detached()) == ["no gradient reaches 1 of 3 layers in training mode (first); recovery leaves them"]
    frozen = Net().requires_grad_(False)
    assert tried(frozen) == [] and not any(parameter.requires_grad for parameter in frozen.parameters())


def test_trying_leaves_network_and_random_state_as_they_were() -> None:
    model, state = Net().eval(), torch.get_rng_state()
    model.norm = nn.BatchNorm2d(8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    tried(model)
    assert torch.equal(state, torch.get_rng_state()) and not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_where_sensitivities_need_slopes_a_network_without_is_refused() -> None:
    check_slopes(Net().eval(), DATA)
    for kind in (Untrainable, Detached):
        with pytest.raises(ModelError, match="no gradient reaches the network's input in evaluation mode"):
            check_slopes(kind().eval(), DATA)
