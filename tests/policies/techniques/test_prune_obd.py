"""Optimal brain damage against its formula, and against magnitude on a trained network."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from paretopress.evaluators.data import DataSet, SplitSizes
from paretopress.evaluators.sources import load_data
from paretopress.evaluators.training.loop import Recipe, train
from paretopress.policies import forms
from paretopress.policies.errors import PolicyError
from paretopress.policies.recording import record_gradients
from paretopress.policies.techniques import Calibration
from paretopress.policies.techniques.prune_magnitude import PruneMagnitude
from paretopress.policies.techniques.prune_obd import PruneOBD, most_salient
from torch import nn
from torch.nn import functional

torch.set_num_threads(1)


@functools.cache
def trained(epochs: int) -> tuple[nn.Module, DataSet]:
    """A small network on real digits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    data = load_data("digits", sizes=SplitSizes(validation=300, calibration=256))
    train(model, data, Recipe(epochs=epochs, batch_size=64, lr=0.05), seed=0)
    return model.eval(), data


def loss_of(technique: PruneMagnitude | PruneOBD, epochs: int, layer: str) -> float:
    """Cross-entropy on pictures of no part in training or pruning, one layer pruned."""
    dense, data = trained(epochs)
    model = copy.deepcopy(dense)
    images = data.preprocess(data.calibration.images)
    technique.apply(
        model.get_submodule(layer), record_gradients(dense, {layer: dense.get_submodule(layer)}, images)[layer]
    )
    with torch.no_grad():
        logits = model(data.preprocess(data.validation.images))
    return functional.cross_entropy(logits, torch.from_numpy(data.validation.labels).long()).item()


@pytest.mark.parametrize(
    ("epochs", "layer", "curvature", "sparsity"),
    [
        *((1, "1", "fisher", 0.5), (1, "1", "fisher", 0.7), (1, "1", "inputs", 0.5)),
        # Of these networks most predictions are all but certain.
        *((10, "1", "fisher", 0.5), (60, "1", "fisher", 0.5), (60, "1", "fisher", 0.7), (60, "3", "fisher", 0.7)),
    ],
)
def test_the_loss_rises_less_than_by_magnitude_at_equal_sparsity(epochs, layer, curvature, sparsity):
    dense = loss_of(PruneMagnitude(0.0), epochs, layer)
    by_magnitude = loss_of(PruneMagnitude(sparsity), epochs, layer)
    by_curvature = loss_of(PruneOBD(sparsity, curvature), epochs, layer)
    assert by_curvature - dense < 0.7 * (by_magnitude - dense)


def test_weights_go_in_the_order_of_curvature_times_square():
    weight = torch.tensor([[1.0, -3.0, 2.0], [0.5, 4.0, 0.1]])
    curvature = torch.tensor([[9.0, 0.1, 1.0], [4.0, 0.0, 0.0]])
    # Saliencies 9, 0.9, 4 and 1, 0, 0: of the equal ones the larger weight stays longer.
    assert most_salient(weight, curvature, 5).tolist() == [[True, True, True], [True, True, False]]
    assert most_salient(weight, curvature, 3).tolist() == [[True, False, True], [True, False, False]]


def test_with_inputs_the_curvature_is_their_mean_square():
    layer, scale = nn.Linear(6, 5), torch.tensor([1.0, 2.0, 0.1, 3.0, 0.5, 1.0])
    inputs = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * scale
    expected = most_salient(layer.weight.detach(), inputs.square().mean(0)[None], 15)
    PruneOBD(0.5, "inputs").apply(layer, Calibration(inputs))
    assert torch.equal(forms.mask_of(layer), expected)


def test_with_the_fisher_the_curvature_is_the_mean_squared_gradient_of_each_picture():
    layer, generator = nn.Linear(4, 3), torch.Generator().manual_seed(0)
    inputs, gradients = torch.randn(9, 4, generator=generator), torch.randn(9, 3, generator=generator)
    fisher = (gradients[:, :, None] * inputs[:, None, :]).square().mean(0)
    expected = most_salient(layer.weight.detach(), fisher, 6)
    PruneOBD(0.5).apply(layer, Calibration(inputs, gradients))
    assert torch.equal(forms.mask_of(layer), expected)


def test_the_fisher_needs_gradients_and_a_wrong_curvature_is_refused():
    with pytest.raises(PolicyError, match="output gradients of the layer, got none"):
        PruneOBD(0.5).apply(nn.Linear(4, 4), Calibration(torch.ones(2, 4)))
    with pytest.raises(PolicyError, match="prune_obd: expected curvature fisher or inputs, got 'exact'"):
        PruneOBD(0.5, "exact")  # type: ignore[arg-type]
