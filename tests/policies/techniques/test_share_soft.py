"""Soft weight-sharing (1702.04008): the mixture's slopes are right, it trains in the common loop, and draws weights together."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from paretopress.evaluators.data import DataSet, Pictures
from paretopress.evaluators.training.loop import Recipe, train
from paretopress.policies import forms
from paretopress.policies.coding.press import decode, encode
from paretopress.policies.mixture import Mixture, PrecisionPrior, slopes, start
from paretopress.policies.techniques.prune_magnitude import PruneMagnitude
from paretopress.policies.techniques.share_kmeans import ShareKMeans
from paretopress.policies.techniques.share_soft import ShareSoft
from torch import nn

torch.set_num_threads(1)


def test_slopes_are_those_of_automatic_differentiation():
    generator = torch.Generator().manual_seed(0)
    weights = (0.1 * torch.randn(300, generator=generator)).double().requires_grad_()
    means = torch.tensor([-0.1, 0.05, 0.2], dtype=torch.float64, requires_grad=True)
    logs = torch.tensor([6.0, 5.0, 4.5, 5.5], dtype=torch.float64, requires_grad=True)
    logits = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    prior = PrecisionPrior(200.0, 300)
    all_means = torch.cat([torch.zeros(1, dtype=torch.float64), means])
    shares = torch.cat([torch.tensor([0.9], dtype=torch.float64), 0.1 * logits.softmax(0)])
    scores = shares.log() + 0.5 * logs - 0.5 * logs.exp() * (weights[:, None] - all_means) ** 2
    strengths = prior.strengths(4).double()
    loss = -scores.logsumexp(1).sum() - (strengths * logs - strengths / 200.0 * logs.exp()).sum()
    loss.backward()
    found = slopes(weights.detach(), Mixture(all_means.detach(), logs.detach(), shares.log().detach()), prior)
    assert torch.allclose(found.weights, weights.grad)
    assert torch.allclose(found.means[1:], means.grad)
    assert float(found.means[0]) == 0
    assert torch.allclose(found.log_precisions, logs.grad)
    assert torch.allclose(found.logits, logits.grad)


def test_the_start_finds_clusters_that_are_there():
    generator = torch.Generator().manual_seed(1)
    centers = torch.tensor([0.0] * 6 + [-0.5, 0.25, 0.5, 1.0])
    weights = centers[torch.randint(10, (4000,), generator=generator)] + 0.01 * torch.randn(4000, generator=generator)
    mixture, _ = start(weights, 7, 0.6)
    for center in (-0.5, 0.25, 0.5, 1.0):
        assert float((mixture.means - center).abs().min()) < 0.02
    zero = (mixture.most_responsible(weights) == 0).float().mean()
    assert 0.5 < float(zero) < 0.65


def test_the_spike_stays_narrow_where_zero_takes_more_weights_than_the_layer_can_spare():
    torch.manual_seed(0)
    layer = nn.Linear(100, 10)
    ShareSoft(16, zero=0.99, strength=1e-2).apply(layer, None)
    form = layer.parametrizations.weight[0]
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    for _ in range(30):
        assert float(form.mixture().log_precisions[0].detach().exp()) >= 0.9 * form.prior.expected
        assert 0.3 < float((layer.eval().weight != 0).float().mean()) < 0.9
        optimizer.zero_grad()
        # Nothing but the prior moves the weights.
        (0 * layer.train()(torch.ones(2, 100)).sum()).backward()
        optimizer.step()


def blobs(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    images = rng.normal(0, 40, (count, 1, 4, 4)) + 128
    images[np.arange(count), 0, labels, labels] += 100
    return Pictures(images.clip(0, 255).astype(np.uint8), labels.astype(np.int64))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    parts = [blobs(512, 0), blobs(16, 1), blobs(256, 2)]
    data = DataSet("blobs", 4, parts[0], parts[1], parts[2], None, _preprocess)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 4))
    train(model, data, Recipe(epochs=6, batch_size=64, optimizer="adamw", lr=0.01, weight_decay=0.0), seed=0)
    return model, data


def _preprocess(images):
    return (torch.from_numpy(images).float() / 255 - 0.5) * 4


def error_pct(model, data):
    with torch.no_grad():
        guesses = model.eval()(data.preprocess(data.validation.images)).argmax(1).numpy()
    return 100 * float((guesses != data.validation.labels).mean())


def shared(model, technique):
    model = copy.deepcopy(model).eval()
    for index in (1, 3):
        model[index] = technique.apply(model[index], None)
    return model


def stored(model):
    return {str(i): forms.stored_weight(model[i]) for i in (1, 3)}


RECIPE = Recipe(epochs=20, batch_size=64, optimizer="adamw", lr=1e-2, weight_decay=0.0)


def away(layer):
    """What collapsing the trained weights changes, over their squared size."""
    original = layer.parametrizations.weight.original.detach()
    return float((original - layer.eval().weight.detach()).square().sum() / original.square().sum())


@pytest.fixture(scope="module")
def drawn(trained):
    model, data = trained
    soft = shared(model, ShareSoft(6, zero=0.999, strength=1e-3))
    start_means = soft[1].parametrizations.weight[0].means.detach().clone()
    before = error_pct(soft, data)
    train(soft, data, RECIPE, seed=1)
    return soft, before, start_means


def test_training_draws_weights_to_zero_and_to_shared_values_in_fewer_bytes_at_no_more_error(trained, drawn):
    (model, data), (soft, before, start_means) = trained, drawn
    assert error_pct(soft, data) <= min(error_pct(model, data), before)
    assert float((soft[1].weight == 0).float().mean()) > 0.6
    assert not torch.equal(soft[1].parametrizations.weight[0].means, start_means)
    written = encode(stored(soft), {})
    assert len(written) < 0.85 * len(encode(stored(shared(model, ShareKMeans(6))), {}))
    for name, tensor in decode(written).tensors.items():
        assert tensor.decode().tobytes() == soft[int(name)].weight.detach().numpy().tobytes()


def test_a_strong_prior_leaves_nothing_to_collapse_and_a_weak_one_does(trained, drawn):
    weak = shared(trained[0], ShareSoft(6, zero=0.999, strength=1e-7))
    train(weak, trained[1], replace(RECIPE, epochs=5), seed=1)
    assert away(drawn[0][1]) < 1e-3
    assert away(weak[1]) > 0.05


def test_pruned_weights_stay_zero_while_the_mixture_trains():
    layer = PruneMagnitude(0.7).apply(nn.Linear(20, 10), None)
    mask = forms.mask_of(layer).clone()
    ShareSoft(4, strength=1e-2).apply(layer, None)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        layer.train()(torch.ones(3, 20)).square().sum().backward()
        optimizer.step()
    assert not layer.weight[~mask].any()
    assert not layer.eval().weight[~mask].any()
    assert torch.equal(forms.mask_of(layer), mask)


def test_a_layer_without_kept_weights_stays_zero():
    layer = nn.Linear(3, 2)
    forms.set_form(layer, forms.MaskedWeight(torch.zeros(2, 3)))
    ShareSoft(4).apply(layer, None)
    layer.train()(torch.ones(2, 3)).sum().backward()
    assert not layer.eval().weight.any()
    assert not forms.stored_weight(layer).decode().any()
