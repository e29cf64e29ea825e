"""Counts of operations, parameters and memory, against figures worked out by hand."""

from __future__ import annotations

import pytest
import torch
from paretopress.evaluators.macs import Profile, profile
from paretopress.policies.apply import apply_plan
from paretopress.policies.architectures import DigitsCNN, LeNet5, LeNet300100, ResNet20
from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from torch import nn

torch.set_num_threads(1)


def counted(model: nn.Module, *shape: int, int8: tuple[str, ...] = ()) -> Profile:
    return profile(model.eval(), torch.zeros(1, *shape), int8)


@pytest.mark.parametrize(
    ("model", "shape", "macs"),
    [
        (LeNet5(), (1, 28, 28), 2_293_000),
        (LeNet300100(), (1, 28, 28), 266_200),
        (ResNet20(), (3, 32, 32), 40_813_184),
        (DigitsCNN(), (1, 8, 8), 1_264_256),
    ],
    ids=["lenet5", "lenet300100", "resnet20", "digits"],
)
def test_the_families(model, shape, macs):
    found = counted(model, *shape)
    assert (found.macs, found.int8_macs, found.unknown_operations) == (macs, 0, ())
    assert found.macs == sum(layer.macs for layer in ModelGraph.trace(model, torch.zeros(1, *shape)).layers.values())


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(8, 12, 3, padding=1), (8, 6, 6), 12 * 8 * 9 * 36),
        (nn.Conv2d(8, 12, 3, padding=1, groups=4), (8, 6, 6), 12 * 2 * 9 * 36),
        (nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), (8, 6, 6), 8 * 9 * 36),
        (nn.Conv2d(8, 12, (5, 3), stride=(2, 1), padding=(2, 0)), (8, 6, 6), 12 * 8 * 15 * 3 * 4),
        (nn.Conv2d(8, 12, 3, dilation=2), (8, 6, 6), 12 * 8 * 9 * 4),
        (nn.ConvTranspose2d(8, 4, 3, stride=2), (8, 6, 6), 8 * 4 * 9 * 36),
        (nn.Conv1d(3, 4, 3), (3, 10), 4 * 3 * 3 * 8),
        (nn.Linear(8, 5), (8,), 40),
        (nn.Linear(8, 5), (7, 8), 7 * 40),
        (nn.Linear(8, 5, bias=False), (3, 7, 8), 21 * 40),
    ],
    ids=str,
)
def test_single_layers(layer, shape, macs):
    found = counted(nn.Sequential(layer), *shape)
    assert (found.macs, found.unknown_operations) == (macs, ())
    assert found.params <= sum(parameter.numel() for parameter in layer.parameters())


class Products(nn.Module):
    def forward(self, x):
        return torch.matmul(x, x.transpose(1, 2)) @ x


def test_products_of_maps_count():
    assert counted(Products(), 5, 8).macs == 2 * 5 * 5 * 8


class Fourier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return torch.fft.fft(self.fc(x)).real


def test_an_unknown_operation_is_reported_and_not_counted_as_nothing():
    found = counted(Fourier(), 4)
    assert found.macs == 16
    assert "_fft_r2c" in found.unknown_operations


@pytest.mark.parametrize(
    "layer",
    [nn.LSTM(4, 5, batch_first=True), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)],
    ids=["lstm", "encoder"],
)
def test_a_fused_kernel_is_reported(layer):
    size = 4 if isinstance(layer, nn.LSTM) else 8
    assert counted(layer, 3, size).unknown_operations


@pytest.mark.parametrize(
    "layer",
    [
        nn.PReLU(),
        nn.GLU(1),
        nn.CELU(),
        nn.LocalResponseNorm(2),
        nn.ReplicationPad2d(1),
        nn.CircularPad2d(1),
        nn.Upsample(scale_factor=2, mode="bicubic"),
        nn.PixelUnshuffle(2),
        nn.Softshrink(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_what_only_moves_or_compares_numbers_is_known_to_multiply_nothing(layer):
    found = counted(layer, 4, 8, 8)
    assert (found.macs, found.unknown_operations) == (0, ())


def test_macs_of_8_bit_layers_are_told_apart():
    found = counted(LeNet5(), 1, 28, 28, int8=("conv1", "fc1"))
    assert (found.macs, found.int8_macs) == (2_293_000, 288_000 + 400_000)


def test_macs_of_factors_count_as_8_bit_where_they_are():
    model = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 6)), nn.Linear(6, 3))
    found = counted(model, 8, int8=("1.0", "1.1"))
    assert (found.macs, found.int8_macs) == (16 + 12 + 18, 16 + 12)


def test_zeros_are_no_parameters():
    model = nn.Sequential(nn.Linear(8, 5))
    with torch.no_grad():
        model[0].weight.fill_(1.0)[:2] = 0
        model[0].bias.fill_(1.0)
    assert counted(model, 8).params == 8 * 3 + 5


def test_activations_are_those_of_the_layers_and_not_of_views_or_of_pooling_indices():
    found = counted(LeNet5(), 1, 28, 28)
    assert found.activations == 20 * 24 * 24 + 20 * 12 * 12 + 50 * 8 * 8 + 50 * 4 * 4 + 500 + 500 + 10
    assert found.peak_memory_bytes == 4 * (20 * 24 * 24 + 20 * 12 * 12)


def test_peak_memory_is_what_lives_at_one_time():
    chain = nn.Sequential(*(nn.ReLU() for _ in range(6)))
    assert counted(chain, 4, 10, 10).peak_memory_bytes == 2 * 1600
    assert counted(nn.Sequential(nn.Flatten(), nn.Linear(400, 2)), 4, 10, 10).peak_memory_bytes == 8


class Skip(nn.Module):
    def forward(self, x):
        a = x.relu()
        b = a.relu()
        c = b.relu()
        return a + c


def test_a_shortcut_keeps_its_map_alive():
    assert counted(Skip(), 4, 10, 10).peak_memory_bytes == 4 * 1600


def test_the_macs_of_a_plan_are_those_of_its_techniques():
    model, x = LeNet5().eval(), torch.randn(4, 1, 28, 28)
    graph = ModelGraph.trace(model, x[:1])
    steps = {"conv2": (Step.of("svd_spatial", rank=10),), "fc1": (Step.of("svd", rank=16),)}
    plan = make_plan(Policy(steps), graph)
    found = profile(apply_plan(plan, graph, model, x).plain(), x[:1])
    spared = sum(layer.layer.macs - layer.techniques[0].cost(layer.layer).macs for layer in plan.layers)
    assert found.macs == 2_293_000 - spared


def test_counting_changes_nothing():
    model = DigitsCNN().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert counted(model, 1, 8, 8) == counted(model, 1, 8, 8)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_attention_is_counted_as_its_two_products():
    class Attention(nn.Module):
        def forward(self, x):
            heads = x.flatten(2).unflatten(1, (2, 4)).transpose(2, 3)
            return nn.functional.scaled_dot_product_attention(heads, heads, heads)

    counts = profile(Attention(), torch.randn(1, 8, 3, 3))
    assert counts.macs == 2 * (2 * 9 * 9 * 4)
    assert counts.unknown_operations == ()
