"""Copies that share tensors: like deep copies in all else."""

from __future__ import annotations

import copy
import functools

import torch
from paretopress.policies import forms
from paretopress.policies.architectures import ResNet20
from paretopress.policies.copying import sharing_copy
from torch import Tensor, nn

torch.set_num_threads(1)


class Knotted(nn.Module):
    """Modules held in a list and under two names, a bound method, a plain tensor, buffers of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.again = self.a
        self.steps = [self.a, self.b]
        self.run = functools.partial(self.through, times=2)
        self.constant = torch.ones(4)
        self.options = {"names": ["a", "b"], "seen": {1, 2}}
        self.register_buffer("shift", torch.zeros(4))
        self.register_buffer("passing", torch.ones(1), persistent=False)

    def through(self, x: Tensor, times: int) -> Tensor:
        for _ in range(times):
            for step in self.steps:
                x = step(x) + self.shift
        return x * self.constant * self.passing

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class WithItsOwnCopying(nn.Linear):
    def __deepcopy__(self, memo: dict[int, object]) -> nn.Module:
        made = nn.Linear(4, 4)
        made.marked = True
        return made


def quantized(model: nn.Module) -> nn.Module:
    for _, layer in forms.weighted_modules(model):
        scale = layer.weight.detach().abs().flatten(1).amax(1) / 127
        forms.set_form(layer, forms.UniformWeight(scale, 8, None))
        forms.set_input_range(layer, -1.0, 3.0)
    return model


def test_a_copy_computes_the_same_with_the_same_tensors_and_other_modules():
    for model, x in ((Knotted(), torch.randn(2, 4)), (quantized(ResNet20(width=4)), torch.randn(2, 3, 32, 32))):
        made = sharing_copy(model.eval())
        assert torch.equal(made(x), model(x))
        assert repr(made) == repr(copy.deepcopy(model)) == repr(model)
        assert {type(module) for module in made.modules()} == {type(module) for module in model.modules()}
        assert not {*made.modules()} & {*model.modules()}
        for own, copied in ((model.parameters(), made.parameters()), (model.buffers(), made.buffers())):
            assert [id(tensor) for tensor in own] == [id(tensor) for tensor in copied]


def test_what_refers_to_the_network_refers_to_its_copy():
    model = Knotted()
    made = sharing_copy(model)
    assert made.again is made.a and made.steps == [made.a, made.b]
    assert made.run.func.__self__ is made
    made.b = made.steps[1] = nn.Identity()
    made.options["names"].append("c")
    made.register_forward_hook(lambda *_: None)
    made.eval()
    assert isinstance(model.b, nn.Linear) and model.steps[1] is model.b
    assert model.options == {"names": ["a", "b"], "seen": {1, 2}}
    assert not model._forward_hooks
    assert model.training and model.a.training


def test_a_module_that_copies_itself_is_let_do_so():
    made = sharing_copy(nn.Sequential(nn.Linear(4, 4), WithItsOwnCopying(4, 4)))
    assert made[1].marked


def test_a_plain_network_has_new_tensors_only_where_forms_were():
    model = ResNet20(width=4).eval()
    quantized(model.layer1)
    before = copy.deepcopy(model.state_dict())
    plain = forms.plain(model)
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    new = [name for name, tensor in plain.state_dict(keep_vars=True).items() if id(tensor) not in own]
    assert new == [f"layer1.{block}.conv{conv}.weight" for block in range(3) for conv in (1, 2)]
    assert forms.form_of(model.layer1[0].conv1) is not None
    assert not any(forms.is_input_quantized(layer) or layer._forward_pre_hooks for layer in plain.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
