"""The caller's network as one of our own: its calls change no input and give logits in both modes."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from paretopress.evaluators.runtime import logits, session
from paretopress.policies.copying import sharing_copy
from paretopress.policies.errors import ModelError
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.graph import ModelGraph
from paretopress.policies.own_network import into_evaluation, own_copy, settle_calls
from torch import Tensor, nn
from torch.nn import functional

PICTURES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Linear(8, 4)
        self.dropout, self.aux = nn.Dropout(0.5), nn.Linear(8, 4)

    def before(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Any:
        maps = functional.relu(self.norm(self.conv(self.before(x))))
        return self.outputs(self.fc(self.dropout(maps.mean((2, 3)))), maps)

    def outputs(self, logits: Tensor, maps: Tensor) -> Any:
        return logits


def subtract(_: Net, x: Tensor) -> Tensor:
    x -= 2.0
    return x


def scale_a_view(_: Net, x: Tensor) -> Tensor:
    x[:, :1].mul_(3.0)
    return x


def rectify(_: Net, x: Tensor) -> Tensor:
    return functional.relu(x, inplace=True)


def write_through_numpy(_: Net, x: Tensor) -> Tensor:
    x.detach().numpy()[:] += 1.0
    return x


def jitter_in_training(net: Net, x: Tensor) -> Tensor:
    return x.add_(0.5) if net.training else x


@pytest.mark.parametrize("before", [subtract, scale_a_view, rectify, write_through_numpy, jitter_in_training])
def test_a_network_that_changes_its_input_gets_a_copy_in_both_modes_and_all_its_copies_do(before: Any) -> None:
    kind = type("Changing", (Net,), {"before": before})
    model = kind().eval()
    with torch.no_grad():
        expected = model(PICTURES.clone())
    assert settle_calls(model, PICTURES) == [
        "the network changes its input in place; each pass gets a copy of its pictures"
    ]
    for each in (model, copy.deepcopy(model), sharing_copy(model)):
        for is_training in (False, True):
            x = PICTURES.clone()
            with torch.no_grad():
                each.train(is_training)(x)
            assert torch.equal(x, PICTURES)
        with torch.no_grad():
            assert each.eval()(PICTURES).shape == expected.shape
    assert settle_calls(model, PICTURES) == []


def test_pictures_that_are_overwritten_with_their_own_values_are_seen_too() -> None:
    model = type("Changing", (Net,), {"before": rectify})().eval()
    assert settle_calls(model, PICTURES.abs())


def test_the_file_of_a_network_that_changes_its_input_is_the_network() -> None:
    model = type("Changing", (Net,), {"before": subtract})().eval()
    with torch.no_grad():
        expected = model(PICTURES.clone()).numpy()
    settle_calls(model, PICTURES)
    file = export_onnx(model, PICTURES[:1], calibration=None)
    assert np.allclose(logits(session(file), PICTURES.numpy(), 4), expected, atol=1e-5)
    assert ModelGraph.trace(model, PICTURES[:1]).group_of("conv") is not None


def test_other_networks_are_left_as_they_are() -> None:
    model = Net().eval()
    before = copy.deepcopy(model.state_dict())
    assert settle_calls(model, PICTURES) == []
    assert not model._forward_pre_hooks and not model._forward_hooks
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


OUTPUTS = {
    "tuple": lambda net, y, maps: (y, net.aux(maps.mean((2, 3)))) if net.training else y,
    "auxiliary first": lambda net, y, maps: [net.aux(maps.mean((2, 3))), y] if net.training else y,
    "dict": lambda net, y, maps: OrderedDict(aux=y + 1, out=y) if net.training else y,
    "features": lambda net, y, maps: maps if net.training else y,
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_a_network_with_other_outputs_in_training_mode_is_trained_to_its_logits(name: str) -> None:
    model = type("Several", (Net,), {"outputs": OUTPUTS[name]})().eval()
    notes = settle_calls(model, PICTURES)
    assert len(notes) == 1 and notes[0].startswith("in training mode the network gives no logits alone")
    for each in (model, copy.deepcopy(model), sharing_copy(model)):
        each.train()
        mean = each.norm.running_mean.clone()
        outputs = each(PICTURES)
        assert outputs.shape == (4, 4)
        # Its layers train: dropout drops, batch norms follow, and the flags are as they were.
        assert not torch.equal(outputs, each(PICTURES)) and not torch.equal(each.norm.running_mean, mean)
        assert all(module.training for module in each.modules())
        outputs.sum().backward()
        assert each.fc.weight.grad is not None and each.aux.weight.grad is None
    model.eval()
    assert torch.equal(model(PICTURES), model(PICTURES))


class Wrapped(nn.Module):
    """The flag that decides is that of a module inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = type("Several", (Net,), {"outputs": OUTPUTS["tuple"]})()

    def forward(self, x: Tensor) -> Any:
        return self.body(x)


def test_the_flag_may_be_that_of_a_module_inside() -> None:
    model = Wrapped().eval()
    assert "modules that hold others" in settle_calls(model, PICTURES)[0]
    assert model.train()(PICTURES).shape == (4, 4) and model.body.training and model.body.norm.training


def test_flags_are_put_back_where_the_forward_pass_fails() -> None:
    model = type("Several", (Net,), {"outputs": OUTPUTS["tuple"]})().eval()
    settle_calls(model, PICTURES)
    model.train()
    model.body_frozen = model.norm.eval()
    with pytest.raises(RuntimeError):
        model(PICTURES[:, :2])
    assert model.training and not model.norm.training and "_at_rest" not in vars(model)


def test_what_fails_in_training_mode_alone_is_left_for_later() -> None:
    def fail(_: Net, logits: Tensor, __: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and _.fc.training:
            raise ValueError("labels are missing")
        return logits

    assert settle_calls(type("Failing", (Net,), {"outputs": fail})().eval(), PICTURES) == []


def test_hooks_go_to_other_processes() -> None:
    model = Wrapped.__new__(Wrapped)
    nn.Module.__init__(model)
    model.body = nn.Flatten()
    from paretopress.policies import own_network

    own_network._called_as_in_evaluation(model, own_network._root)
    model.register_forward_pre_hook(own_network._pass_copies)
    assert len(pickle.loads(pickle.dumps(model))._forward_pre_hooks) == 2


def test_a_network_whose_train_returns_nothing_is_put_into_evaluation() -> None:
    class Silent(Net):
        def train(self, mode: bool = True) -> None:
            super().train(mode)
            self.norm.eval()

    model = Silent()
    assert into_evaluation(model) is model and not model.training
    copied = own_copy(model)
    assert copied is not model and not copied.training


def test_a_copy_has_weights_and_modes_of_its_own() -> None:
    model = Net().train()
    model.norm.eval()
    copied = own_copy(model)
    assert model.training and not model.norm.training and not any(module.training for module in copied.modules())
    copied.fc.weight.data.zero_()
    assert bool(model.fc.weight.any())


def test_a_network_that_keeps_its_last_activations_is_copied() -> None:
    class Keeping(Net):
        def outputs(self, logits: Tensor, maps: Tensor) -> Tensor:
            self.features = {"maps": [maps]}
            return logits

    model = Keeping().train()
    model(PICTURES)
    assert torch.equal(own_copy(model).features["maps"][0], model.features["maps"][0])


def test_a_network_made_in_inference_mode_can_be_trained() -> None:
    with torch.inference_mode():
        model = Net()
    copied = own_copy(model).train()
    copied(PICTURES).sum().backward()
    assert copied.fc.weight.grad is not None


def test_what_cannot_be_copied_is_refused() -> None:
    model = Net()
    model.stream = (number for number in range(3))
    with pytest.raises(ModelError, match=r"the network cannot be copied .* expected that copy.deepcopy"):
        own_copy(model)
