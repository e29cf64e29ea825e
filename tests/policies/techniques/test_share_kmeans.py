from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paretopress.policies import forms
from paretopress.policies.errors import PolicyError
from paretopress.policies.techniques.base import Calibration
from paretopress.policies.techniques.prune_magnitude import PruneMagnitude
from paretopress.policies.techniques.share_kmeans import ShareKMeans, kmeans_1d
from sklearn.cluster import KMeans
from torch import nn

torch.set_num_threads(1)

RNG = np.random.default_rng(5)
WEIGHTS = {
    "normal": RNG.normal(size=8000),
    "laplace": RNG.laplace(size=8000),
    "heavy tails": RNG.standard_t(3, size=8000),
    "pruned": (lambda x: x[abs(x) > 1])(RNG.normal(size=16000)),
    "with an outlier": np.append(RNG.normal(size=4000), 300.0),
}


def loss(values, centroids, codes):
    return float(((values.astype(np.float64) - centroids[codes]) ** 2).sum())


@pytest.mark.parametrize("clusters", [4, 16, 32])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_loss_is_not_above_that_of_scikit_learn(weights, clusters):
    values = weights.astype(np.float32)
    start = np.linspace(values.min(), values.max(), clusters, dtype=np.float32)[:, None]
    reference = KMeans(clusters, init=start, n_init=1, tol=0, max_iter=1000).fit(values[:, None].astype(np.float64))
    expected = loss(values, reference.cluster_centers_[:, 0], reference.labels_)
    assert loss(values, *kmeans_1d(values, clusters)) <= 1.001 * expected


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-40, 40), min_size=1, max_size=60), st.integers(2, 9))
def test_every_value_goes_to_its_nearest_centroid_and_every_centroid_is_used(values, clusters):
    array = np.array(values, np.float32)
    centroids, codes = kmeans_1d(array, clusters)
    distances = np.abs(array[:, None] - centroids)
    assert np.allclose(distances[np.arange(len(array)), codes], distances.min(1))
    assert len(centroids) == min(clusters, len(np.unique(array)))
    assert set(codes) == set(range(len(centroids)))


def test_fewer_distinct_values_than_clusters_are_kept_as_they_are():
    layer = nn.Linear(6, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([-0.5, 0.25, 3.0]).repeat(4).view(2, 6))
    before = layer.weight.detach().clone()
    ShareKMeans(16).apply(layer, None)
    assert torch.equal(layer.weight, before)
    assert layer.parametrizations.weight.original.shape == (3,)


def test_pruned_weights_stay_zero_and_take_no_part():
    layer = PruneMagnitude(0.8).apply(nn.Linear(40, 20), None)
    smallest = layer.weight[layer.weight != 0].abs().min()
    ShareKMeans(4).apply(layer, None)
    kept = forms.mask_of(layer)
    assert int((layer.weight == 0).sum()) == 640
    assert layer.weight[kept].unique().numel() == 4
    assert layer.weight[kept].abs().min() >= smallest


@pytest.mark.parametrize("rounding", ["nearest", "second_order"])
def test_a_tensor_without_kept_weights_stays_zero(rounding):
    layer = nn.Linear(3, 2)
    forms.set_form(layer, forms.MaskedWeight(torch.zeros(2, 3)))
    ShareKMeans(4, rounding).apply(layer, Calibration(torch.ones(5, 3)))
    assert not layer.weight.any()
    assert not forms.stored_weight(layer).decode().any()


@pytest.mark.parametrize("clusters", [4, 8])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_second_order_rounding_errs_less_on_other_inputs_with_the_same_codebook(clusters, sparsity):
    generator = torch.Generator().manual_seed(2)
    sources, mixing = torch.randn(900, 8, generator=generator), torch.randn(8, 24, generator=generator)
    inputs, others = ((sources @ mixing).relu() + 0.1 * torch.randn(900, 24, generator=generator)).split([450, 450])
    dense, errors, codebooks = PruneMagnitude(sparsity).apply(nn.Linear(24, 20), None), [], []
    mask = forms.mask_of(dense)
    for rounding in ("nearest", "second_order"):
        layer = ShareKMeans(clusters, rounding).apply(copy.deepcopy(dense), Calibration(inputs))
        assert mask is None or not layer.weight[~mask].any()
        errors.append(float((layer(others) - dense(others)).detach().square().mean()))
        codebooks.append(layer.parametrizations.weight.original)
    assert errors[1] < 0.8 * errors[0]
    assert torch.equal(*codebooks)


def test_only_second_order_rounding_needs_calibration():
    assert not ShareKMeans(4).needs_calibration
    assert ShareKMeans(4, "second_order").needs_calibration
    with pytest.raises(PolicyError, match="needs calibration inputs"):
        ShareKMeans(4, "second_order").apply(nn.Linear(4, 4), None)


def test_a_centroid_gets_the_sum_of_the_gradients_of_its_weights():
    layer = ShareKMeans(3).apply(nn.Linear(8, 4), None)
    upstream = torch.randn(4, 8)
    (layer.weight * upstream).sum().backward()
    codes = forms.form_of(layer).codes.long().flatten()
    expected = torch.zeros(3).index_add(0, codes, upstream.flatten())
    assert torch.allclose(layer.parametrizations.weight.original.grad, expected, atol=1e-6)
