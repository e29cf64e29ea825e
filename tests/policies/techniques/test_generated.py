"""Weights from few parameters: projections are the nearest of their class, and a circulant block is what FFT multiplies by."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from paretopress.policies import forms
from paretopress.policies.coding.generated import GENERATORS, noise, signs
from paretopress.policies.coding.press import decode, encode
from paretopress.policies.coding.tensors import GeneratedTensor
from paretopress.policies.errors import PolicyError
from paretopress.policies.stored_layers import read_layer, write_layer
from paretopress.policies.techniques.base import LayerInfo
from paretopress.policies.techniques.circulant import Circulant
from paretopress.policies.techniques.fastfood import Fastfood, fit_fastfood
from paretopress.policies.techniques.prune_magnitude import PruneMagnitude
from paretopress.policies.techniques.structured import project
from paretopress.policies.techniques.toeplitz import Toeplitz
from torch import nn

torch.set_num_threads(1)

SHAPES = [(12, 8), (7, 13), (13, 7), (1, 9), (6, 5, 3, 3), (3, 10, 1, 2)]
KINDS = [("circulant", 4, 0), ("circulant", 5, 3), ("circulant", 64, 1), ("toeplitz", 4, 0), ("toeplitz", 64, 0)]


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def made(kind, values, shape, block, seed):
    return torch.from_numpy(GeneratedTensor(kind, values.numpy(), shape, block, seed).decode())


def basis(kind, shape, block, seed):
    """The weight of each parameter alone, as rows."""
    count = GENERATORS[kind].count(shape, block)
    return torch.stack([made(kind, row, shape, block, seed).flatten() for row in torch.eye(count)])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("kind", "block", "seed"), KINDS)
def test_the_projection_is_the_least_squares_optimum_of_the_class(kind, block, seed, shape):
    weight = normal(*shape)
    best = torch.linalg.lstsq(basis(kind, shape, block, seed).T.double(), weight.double().flatten()[:, None]).solution
    assert torch.allclose(project(kind, weight, block, seed), best[:, 0].float(), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("kind", "block", "seed"), KINDS)
def test_a_member_of_the_class_is_reproduced_and_each_parameter_counts(kind, block, seed, shape):
    values = normal(GENERATORS[kind].count(shape, block))
    weight = made(kind, values, shape, block, seed)
    assert torch.allclose(project(kind, weight, block, seed), values, atol=1e-6)
    assert basis(kind, shape, block, seed).abs().sum(1).min() > 0


def test_a_circulant_layer_multiplies_as_the_fourier_transform_does():
    layer = Circulant(8, seed=4).apply(nn.Linear(8, 8, bias=False), None)
    inputs = normal(5, 8)
    flipped = inputs * torch.from_numpy(signs(4, 0, 8))
    defining = forms.stored_weight(layer).values
    product = torch.fft.ifft(torch.fft.fft(torch.from_numpy(defining)) * torch.fft.fft(flipped)).real
    assert torch.allclose(layer(inputs), product, atol=1e-5)


@pytest.mark.parametrize("technique", [Circulant(3), Toeplitz(3)], ids=str)
def test_a_convolution_has_a_block_for_each_place_of_its_kernel(technique):
    weight = technique.apply(nn.Conv2d(6, 6, 3), None).weight.detach()
    for y in range(3):
        for x in range(3):
            block = weight[3:, :3, y, x]
            assert torch.equal(block[0, 0].expand(3), block.diagonal())
            assert torch.equal(block[1, 0], block[2, 1])
            assert torch.equal(block[0, 2], block[1, 0]) == (technique.name == "circulant")


def test_a_block_larger_than_the_layer_is_a_single_one():
    assert Circulant(1000).cost(layer_info(20, 24)).weight_bits == 32 * (20 + 24 - 1)
    assert Circulant(24).cost(layer_info(24, 24)).weight_bits == 32 * 24
    assert Toeplitz(24).cost(layer_info(24, 24)).weight_bits == 32 * 47


def layer_info(out, into):
    return LayerInfo("fc", "linear", (out, into), (into,), (out,))


def dense_fastfood(values, shape, seed):
    """S H G P H B / d by matrix products in float64."""
    n, m = sorted((shape[0], int(np.prod(shape[1:]))))
    d = 1
    while d < n:
        d *= 2
    k = -(-m // d)
    hadamard = np.ones((1, 1))
    while len(hadamard) < d:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    b, g, s = np.split(values.astype(np.float64), [k * n, k * (n + d)])
    rows = []
    for block in range(k):
        permutation = np.eye(d)[np.argsort(noise(seed, block, d), kind="stable")]
        inputs = np.diag(np.pad(b[block * n : (block + 1) * n], (0, d - n)))
        rows.append(hadamard @ np.diag(g[block * d : (block + 1) * d]) @ permutation @ hadamard @ inputs)
    matrix = np.diag(s) @ np.concatenate(rows)[:m, :n] / d
    return (matrix if m == shape[0] else matrix.T).reshape(shape)


@pytest.mark.parametrize("shape", [(16, 16), (10, 40), (40, 10), (6, 4, 3, 3), (1, 5), (5, 1)], ids=str)
def test_fastfood_is_the_product_of_its_matrices(shape):
    values = normal(GENERATORS["fastfood"].count(shape, 1))
    expected = dense_fastfood(values.numpy(), shape, 9)
    assert np.allclose(made("fastfood", values, shape, 1, 9).numpy(), expected, atol=1e-5)


def test_fastfood_of_a_square_power_of_two_has_three_diagonals():
    assert GENERATORS["fastfood"].count((64, 64), 1) == 3 * 64


def test_fastfood_finds_the_middle_diagonal_that_a_weight_was_made_with():
    shape = (32, 32)
    start = np.concatenate([signs(6, 1, 32), normal(32).numpy(), np.ones(32, np.float32)]).astype(np.float32)
    weight = torch.from_numpy(dense_fastfood(start, shape, 6)).float()
    found = made("fastfood", fit_fastfood(weight, 6, sweeps=30), shape, 1, 6)
    assert float((found - weight).norm() / weight.norm()) < 0.05


@pytest.mark.parametrize("shape", [(30, 50), (8, 6, 3, 3)], ids=str)
def test_no_sweep_of_fastfood_raises_the_error(shape):
    weight = normal(*shape)
    errors = [float((made("fastfood", fit_fastfood(weight, 1, n), shape, 1, 1) - weight).norm()) for n in range(5)]
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(errors))
    assert errors[4] < errors[0]


def test_a_weight_of_zeros_becomes_one_of_zeros():
    assert not made("fastfood", fit_fastfood(torch.zeros(12, 20), 1), (12, 20), 1, 1).any()


@pytest.mark.parametrize("technique", [Circulant(4), Circulant(4, 2), Toeplitz(4), Fastfood()], ids=str)
@pytest.mark.parametrize("make", [lambda: nn.Linear(24, 20), lambda: nn.Conv2d(12, 16, 3)], ids=["linear", "conv"])
def test_a_layer_comes_back_from_its_file_and_trains_on_in_its_class(technique, make):
    saved, restored = technique.apply(make(), None), make()
    read_layer(write_layer(saved), restored, pruned=False)
    assert torch.equal(restored.weight, saved.weight)
    assert [p.shape for p in restored.parameters()] == [p.shape for p in saved.parameters()]


def test_the_numbers_behind_signs_and_permutations_never_change():
    # splitmix64 of seed 0, published with the generator.
    assert [hex(int(x)) for x in noise(0, 0, 2)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]
    assert signs(1, 0, 4).tolist() == signs(1, 0, 9)[:4].tolist()
    assert set(signs(1, 0, 64).tolist()) == {1.0, -1.0}


def test_a_file_holds_little_more_than_the_parameters():
    weight = Circulant(8).apply(nn.Linear(64, 64), None)
    stored = forms.stored_weight(weight)
    data = encode({"w": stored}, {})
    assert len(data) < 64 * 64 * 4 / 8 + 60
    assert decode(data).tensors["w"].decode().tobytes() == weight.weight.detach().numpy().tobytes()


@pytest.mark.parametrize("technique", [Circulant(4), Toeplitz(4), Fastfood()], ids=str)
def test_a_pruned_weight_is_refused(technique):
    pruned = PruneMagnitude(0.5).apply(nn.Linear(16, 16), None)
    with pytest.raises(PolicyError, match="one with a structure already"):
        technique.apply(pruned, None)
