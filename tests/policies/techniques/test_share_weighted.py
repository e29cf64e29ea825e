"""Weighted, entropy-constrained and differently started weight sharing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from paretopress.policies import forms
from paretopress.policies.coding.press import encode
from paretopress.policies.policy import Step
from paretopress.policies.techniques import spelled_out
from paretopress.policies.techniques.base import Calibration
from paretopress.policies.techniques.clustering import entropy_constrained_1d, kmeans_1d
from paretopress.policies.techniques.fisher import weight_fisher
from paretopress.policies.techniques.share_kmeans import ShareKMeans
from torch import nn

torch.set_num_threads(1)

RNG = np.random.default_rng(3)
VALUES = RNG.laplace(size=4000).astype(np.float32)


def loss(values, found, importance=1.0):
    centroids, codes = found
    return float((importance * (values.astype(np.float64) - centroids[codes]) ** 2).sum())


@pytest.mark.parametrize("initial", ["linear", "density", "random"])
def test_every_start_ends_where_no_value_is_nearer_to_another_centroid_and_centroids_are_means(initial):
    centroids, codes = kmeans_1d(VALUES, 12, initial)
    assert np.array_equal(np.abs(VALUES[:, None] - centroids).argmin(1), codes)
    means = np.array([VALUES[codes == j].astype(np.float64).mean() for j in range(12)])
    assert np.allclose(means, centroids)


def test_linear_centroids_keep_outliers_apart_and_density_ones_crowd_where_the_weights_are():
    far, crowded = (np.abs(kmeans_1d(VALUES, 16, initial)[0]) for initial in ("linear", "density"))
    assert far.max() > crowded.max()
    assert np.median(far) > np.median(crowded)


def test_weighted_k_means_is_that_of_repeated_values():
    values, times = np.array([0.0, 1, 2, 5, 6, 9], np.float32), np.array([3, 1, 2, 1, 4, 1])
    weighted = kmeans_1d(values, 3, importance=times.astype(float))
    repeated = kmeans_1d(np.repeat(values, times), 3)
    assert np.allclose(weighted[0], repeated[0])
    assert np.array_equal(np.repeat(weighted[1], times), repeated[1])


def test_weighting_lowers_the_weighted_loss_at_as_many_values():
    """1612.01543, section 4: the sum of ``h_ii (w_i - c_j)^2`` is what the network's loss rises by."""
    torch.manual_seed(0)
    layer = nn.Linear(60, 40)
    inputs = torch.randn(80, 60) * torch.logspace(-2, 1, 60)
    seen = Calibration(inputs, torch.randn(80, 40) * torch.logspace(-2, 1, 40))
    (fisher,) = weight_fisher(layer, [layer], seen)
    weight = layer.weight.detach().clone()
    losses = []
    for weighting in ("none", "fisher"):
        fresh = nn.Linear(60, 40)
        with torch.no_grad():
            fresh.weight.copy_(weight)
        found = ShareKMeans(8, weighting=weighting).apply(fresh, seen)
        assert len(forms.stored_weight(found).codebook) == 8
        losses.append(float((fisher * (found.weight.detach() - weight).square()).sum()))
    assert losses[1] < 0.9 * losses[0]


def test_weights_without_any_gradient_are_shared_as_if_unweighted():
    torch.manual_seed(1)
    layer = nn.Linear(12, 10)
    plain = ShareKMeans(4).apply(nn.Linear(12, 10), None)
    with torch.no_grad():
        layer.weight.copy_(plain.weight + 0.01 * torch.randn(10, 12))
    weight = layer.weight.detach().clone()
    seen = Calibration(torch.randn(9, 12), torch.zeros(9, 10))
    shared = ShareKMeans(4, weighting="fisher").apply(layer, seen).weight.detach()
    expected = kmeans_1d(weight.numpy().ravel(), 4)
    assert np.allclose(shared.numpy().ravel(), expected[0][expected[1]], atol=1e-6)


def test_paying_for_code_lengths_shrinks_the_file_by_a_quarter_at_two_per_cent_of_error():
    """1612.01543, section 5: at equal numbers of clusters ECSQ trades error for entropy."""
    weight = (0.05 * VALUES).reshape(40, 100)
    sizes, errors = [], []
    for entropy in (0.0, 0.03):
        layer = nn.Linear(100, 40)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight))
        shared = ShareKMeans(32, entropy=entropy).apply(layer, None)
        sizes.append(len(encode({"w": forms.stored_weight(shared)}, {})))
        error = (shared.weight.detach() - torch.from_numpy(weight)).square().sum()
        errors.append(float(error / (torch.from_numpy(weight)).square().sum()))
    assert sizes[1] < 0.77 * sizes[0]
    assert errors[0] < errors[1] < 0.02


def test_the_price_of_a_bit_is_what_is_minimized():
    price, bit = 0.02, 0.02 * float(VALUES.astype(np.float64).var())

    def cost(found):
        counts = np.bincount(found[1])
        counts = counts[counts > 0]
        return loss(VALUES, found) - bit * float((counts * np.log2(counts / len(VALUES))).sum())

    found = entropy_constrained_1d(VALUES, 16, price)
    assert cost(found) < cost(kmeans_1d(VALUES, 16))
    assert (np.diff(found[0]) > 0).all()
    assert set(found[1]) == set(range(len(found[0])))


def test_policies_without_the_later_hyper_parameters_keep_their_digest():
    known = Step.of("share", clusters=16, rounding="nearest")
    assert spelled_out(ShareKMeans(16)) == known
    assert spelled_out(ShareKMeans(16, initial="linear", weighting="none", entropy=0.0)) == known
    changed = Step.of("share", clusters=16, rounding="nearest", weighting="fisher")
    assert spelled_out(ShareKMeans(16, weighting="fisher")) == changed


@pytest.mark.parametrize("technique", [ShareKMeans(6, weighting="fisher"), ShareKMeans(6, entropy=0.02)], ids=str)
def test_sharing_outlives_training_and_a_centroid_moves_by_the_sum_over_its_weights(technique):
    torch.manual_seed(2)
    inputs = torch.randn(16, 20)
    layer = technique.apply(nn.Linear(20, 10), Calibration(inputs, torch.randn(16, 10)))
    before, codes = layer.weight.detach().clone(), forms.form_of(layer).codes.long()
    values = layer.parametrizations.weight.original
    optimizer = torch.optim.SGD([values], lr=0.01)
    dense = nn.Linear(20, 10)
    with torch.no_grad():
        dense.weight.copy_(before)
        dense.bias.copy_(layer.bias)
    dense(inputs).square().sum().backward()
    layer(inputs).square().sum().backward()
    summed = torch.zeros(len(values)).index_add(0, codes.flatten(), dense.weight.grad.flatten())
    assert torch.allclose(values.grad, summed, rtol=1e-4, atol=1e-4)
    optimizer.step()
    assert not torch.equal(layer.weight, before)
    assert layer.weight.unique().numel() == before.unique().numel()
    assert torch.equal(layer.weight, values[codes])
