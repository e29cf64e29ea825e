"""Stitched networks: a candidate's logits are those of the network with its modules, whatever ran before."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from paretopress.evaluators.stitch import StitchedNetwork, norms_after
from paretopress.policies.architectures import ResNet20
from paretopress.policies.copying import with_modules
from torch import Tensor, nn
from torch.nn import functional

torch.set_num_threads(1)

BATCHES = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(8)


def conv(channels_in: int = 6, channels_out: int = 6, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, padding=1, groups=groups)


class Overwriting(nn.Module):
    """Every way of overwriting a value that an earlier segment handed over, the input and views among them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = conv(3), nn.ReLU(inplace=True)
        self.a, self.b, self.c, self.d = conv(), conv(6, 6, groups=6), conv(), conv()
        self.norm, self.fc = nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.1
        x = self.relu(self.norm(self.stem(x)))
        x = functional.relu(self.a(x) - 0.1, True)
        flat = self.b(x).flatten(1)
        flat.mul_(2)
        x = self.c(flat.view(-1, 6, 8, 8))
        x.sigmoid_()
        return self.fc(self.d(x).mean((2, 3)))


class Splitting(nn.Module):
    """Values that are no tensors, a layer called twice, a weight read directly, an argument with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.part, self.fc = conv(3), conv(3, 3), nn.Linear(6, 4)
        self.read = nn.Linear(4, 4)
        self.again = self.part

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        first, second = self.stem(x).chunk(2, 1)
        x = torch.cat([self.part(first), self.again(second) * scale], 1)
        return functional.linear(self.fc(x.mean((2, 3))), self.read.weight, self.read.bias)


class Deciding(nn.Module):
    """Takes its way by what it sees, and begins by overwriting its input."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.stem, self.fc = nn.ReLU(inplace=True), conv(3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.relu(x))
        return self.fc(x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3)))


class Misleading(nn.Module):
    """Recorded by torch.fx with an argument that is never there."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.fc = conv(3), nn.Linear(6, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.stem(x)
        if mask is not None:
            x = x * mask
        return self.fc(x.mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: ResNet20(num_classes=4, width=4),
    "overwriting": Overwriting,
    "splitting": Splitting,
    "deciding": Deciding,
    "misleading": Misleading,
}
FOLLOWED = {"residual", "overwriting", "splitting"}


def network(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETWORKS[name]().eval()


def changed(model: nn.Module, name: str, seed: int = 0) -> nn.Module:
    """A layer of other values."""
    out = copy.deepcopy(model.get_submodule(name))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in out.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return out


def norms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}


def expected(model: nn.Module, replaced: dict[str, nn.Module]) -> Tensor:
    """The network with its modules replaced, its batch norms moved as what reaches them has moved."""
    return torch.cat([expected_of(batch, model, replaced) for batch in BATCHES])


def expected_of(batch: Tensor, model: nn.Module, replaced: dict[str, nn.Module]) -> Tensor:
    dense, seen, net = copy.deepcopy(model), {}, with_modules(model, replaced)
    for name, norm in norms(dense).items():
        norm.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))

    def move(norm: nn.BatchNorm2d, args: tuple[Tensor], name: str) -> None:
        own, (was, now) = norms(model)[name], (x.transpose(0, 1).flatten(1) for x in (seen[name], args[0]))
        norm.running_mean = own.running_mean + now.mean(1) - was.mean(1)
        spreads = [x.var(1, correction=0) + norm.eps for x in (was, now)]
        norm.running_var = own.running_var * spreads[1] / spreads[0]

    for name, norm in norms(net).items():
        norm.register_forward_pre_hook(lambda norm, args, name=name: move(norm, args, name))
    with torch.no_grad():
        dense(batch.clone())
        return net(batch.clone())


def candidates(model: nn.Module, count: int) -> list[dict[str, nn.Module]]:
    """Layers replaced here and there, each candidate like the one before in some of them."""
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    variants = {name: [None, changed(model, name, 0), changed(model, name, 1)] for name in names}
    generator = torch.Generator().manual_seed(0)
    chosen, out = dict.fromkeys(names, 0), []
    for _ in range(count):
        for name in names:
            if torch.rand((), generator=generator) < 1.5 / len(names):
                chosen[name] = int(torch.randint(3, (), generator=generator))
        out.append({name: made for name in names if (made := variants[name][chosen[name]]) is not None})
    return out


def counting(model: nn.Module) -> Counter[str]:
    calls: Counter[str] = Counter()
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    return calls


@pytest.mark.parametrize("cache_bytes", [512_000_000, 100_000, 0])
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_the_networks_own_with_its_modules_replaced(name, cache_bytes):
    model = network(name)
    inputs = [batch.clone() for batch in BATCHES]
    stitched = StitchedNetwork(model, inputs, cache_bytes)
    assert stitched.followed == (name in FOLLOWED)
    for replaced in [{}, *candidates(model, 12), {}]:
        found = torch.cat(stitched.run(replaced))
        assert torch.allclose(found, expected(model, replaced), atol=1e-5), sorted(replaced)
    assert all(torch.equal(batch, before) for batch, before in zip(inputs, BATCHES))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_is_left_as_it_was(name):
    model = network(name)
    modules = list(model.named_modules(remove_duplicate=False))
    state = copy.deepcopy(model.state_dict())
    stitched = StitchedNetwork(model, BATCHES)
    for replaced in candidates(model, 4):
        stitched.run(replaced)
    assert list(model.named_modules(remove_duplicate=False)) == modules
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_modules_that_the_network_does_not_call_by_themselves_are_replaced_too():
    model = network("residual")
    stitched = StitchedNetwork(model, BATCHES)
    block = {"layer2": with_modules(model, {"layer2.0.conv1": changed(model, "layer2.0.conv1")}).layer2}
    assert torch.allclose(torch.cat(stitched.run(block)), expected(model, block), atol=1e-5)
    assert not torch.allclose(expected(model, block), expected(model, {}), atol=1e-3)
    assert torch.allclose(torch.cat(stitched.run({})), expected(model, {}), atol=1e-6)


def test_batch_norms_follow_as_if_estimated_anew_on_the_same_pictures():
    model, x = network("residual"), BATCHES[0]

    def estimate(norm: nn.BatchNorm2d, args: tuple[Tensor]) -> None:
        norm.running_var, norm.running_mean = torch.var_mean(args[0], (0, 2, 3), correction=0)

    handles = [norm.register_forward_pre_hook(estimate) for norm in norms(model).values()]
    with torch.no_grad():
        model(x.clone())
    for handle in handles:
        handle.remove()
    replaced = {"layer1.1.conv1": changed(model, "layer1.1.conv1")}
    anew = with_modules(model, replaced)
    for norm in norms(anew).values():
        norm.train()
    with torch.no_grad():
        wanted = anew(x.clone())
    assert torch.allclose(StitchedNetwork(model, [x]).run(replaced)[0], wanted, atol=1e-3)
    assert not torch.allclose(with_modules(model, replaced)(x.clone()), wanted, atol=1e-1)


def test_a_candidate_that_differs_late_does_not_run_what_comes_before():
    model = network("residual")
    calls = counting(model)
    stitched = StitchedNetwork(model, BATCHES)
    stitched.run({})
    late = changed(model, "layer3.2.conv1")
    calls.clear()
    logits = torch.cat(stitched.run({"layer3.2.conv1": late}))
    assert "layer3.1.relu2" not in calls
    assert calls["layer3.2.conv2"] == calls["fc"] == len(BATCHES)
    calls.clear()
    assert torch.equal(torch.cat(stitched.run({"layer3.2.conv1": late})), logits)
    assert not calls, "what was just run is known"
    stitched.run({"conv1": changed(model, "conv1")})
    assert calls["layer1.0.conv1"] == len(BATCHES)


def test_with_little_memory_fewer_values_are_kept():
    model = network("residual")
    calls, kept, ran = counting(model), [], []
    for cache_bytes in (512_000_000, 100_000, 0):
        stitched = StitchedNetwork(model, BATCHES, cache_bytes)
        stitched.run({})
        values = [v.tensor for memory in stitched._memories for v in memory.values.values()]
        kept.append(len(values))
        assert sum(value.nbytes for value in values) <= cache_bytes
        calls.clear()
        stitched.run({"fc": changed(model, "fc")})
        ran.append(calls.total())
    assert kept[0] > kept[1] > kept[2] == 0
    assert ran[0] < ran[1] < ran[2]


def test_an_activation_in_place_does_not_spoil_what_is_kept():
    model = nn.Sequential(
        conv(3), nn.ReLU(inplace=True), conv(), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(384, 4)
    )
    calls = counting(model.eval())
    stitched = StitchedNetwork(model, BATCHES)
    before = torch.cat(stitched.run({}))
    tanh = {"1": nn.Tanh()}
    calls.clear()
    found = torch.cat(stitched.run(tanh))
    assert not calls["0"], "the first convolution is not run again"
    assert torch.allclose(found, expected(model, tanh), atol=1e-6)
    assert torch.equal(torch.cat(stitched.run({})), before)
    assert model[1].inplace


def test_stopping_early_leaves_later_batches_fit_for_the_next_candidate():
    model = network("residual")
    stitched = StitchedNetwork(model, BATCHES)
    one, other = {"layer1.0.conv1": changed(model, "layer1.0.conv1")}, {"fc": changed(model, "fc")}
    stitched.run({})
    seen = []

    def go_on(number: int, logits: Tensor) -> bool:
        seen.append((number, len(logits)))
        return number < 1

    assert len(stitched.run(one, go_on)) == 2
    assert seen == [(0, 8), (1, 8)]
    for replaced in (other, one, {}):
        assert torch.allclose(torch.cat(stitched.run(replaced)), expected(model, replaced), atol=1e-5)


def test_a_candidate_that_fails_leaves_the_others_as_they_are():
    model = network("residual")
    stitched = StitchedNetwork(model, BATCHES)
    stitched.run({})
    first = {"conv1": changed(model, "conv1")}
    with pytest.raises(RuntimeError):
        stitched.run({**first, "layer2.0.conv1": nn.Conv2d(5, 8, 3)})
    for replaced in (first, {}):
        assert torch.allclose(torch.cat(stitched.run(replaced)), expected(model, replaced), atol=1e-5)


def test_a_norm_belongs_to_a_layer_only_where_it_normalises_that_layer_alone():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv(3), conv(), conv()
            self.once, self.twice, self.thrice = (nn.BatchNorm2d(6) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.once(self.a(x))
            x = self.twice(self.b(x)) + self.twice(x)
            y = self.c(x)
            return (self.thrice(y) + y).mean((2, 3))

    assert norms_after(Shared().eval()) == {"a": "once"}
    found = norms_after(network("residual"))
    assert found["layer2.0.shortcut.0"] == "layer2.0.shortcut.1"
    assert len(found) == 21
    assert norms_after(network("deciding")) == {}
