"""Multiplications by Winograd's minimal filtering, against the paper's ratios and an actual computation."""

from __future__ import annotations

import pytest
import torch
from paretopress.evaluators.winograd import F2, F4, Winograd, by_algorithm
from paretopress.policies.architectures import LeNet5, ResNet20
from paretopress.policies.graph import ModelGraph
from paretopress.policies.techniques.base import LayerInfo
from torch import Tensor, nn

torch.set_num_threads(1)


def layer_of(conv: nn.Conv2d, side: int) -> LayerInfo:
    model = nn.Sequential(conv, nn.Flatten())
    return ModelGraph.trace(model, torch.zeros(1, conv.in_channels, side, side)).layers["0"]


@pytest.mark.parametrize(("algorithm", "tile", "saving"), [(F2, 16, 2.25), (F4, 36, 4.0)])
def test_the_savings_are_the_papers(algorithm, tile, saving):
    assert (algorithm.tile, algorithm.saving) == (tile, saving)
    layer = layer_of(nn.Conv2d(8, 12, 3, padding=1), 16)
    assert layer.macs / algorithm.multiplications(layer) == saving


def test_tiles_over_the_edge_are_computed_whole():
    layer = layer_of(nn.Conv2d(2, 3, 3, padding=1), 7)
    assert F2.multiplications(layer) == 4 * 4 * 16 * 6
    assert F4.multiplications(layer) == 2 * 2 * 36 * 6
    # On a map of one pixel a whole tile is dearer than the nine products.
    tiny = layer_of(nn.Conv2d(2, 3, 3, padding=1), 1)
    assert F4.multiplications(tiny) == 36 * 6 > tiny.macs


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (nn.Conv2d(4, 4, 3, stride=2, padding=1), "stride"),
        (nn.Conv2d(4, 4, 3, dilation=2, padding=2), "dilation"),
        (nn.Conv2d(4, 4, 1), "no 3x3"),
        (nn.Conv2d(4, 4, 5, padding=2), "no 3x3"),
    ],
)
def test_other_layers_are_counted_direct_with_the_reason(conv, reason):
    layer = layer_of(conv, 8)
    assert reason in F2.why_not(layer)
    assert F2.multiplications(layer) == layer.macs


def test_depthwise_layers_save_as_much():
    layer = layer_of(nn.Conv2d(6, 6, 3, padding=1, groups=6), 8)
    assert layer.macs == 4 * F4.multiplications(layer)


def test_a_network_is_counted_by_each_algorithm():
    graph = ModelGraph.trace(ResNet20().eval(), torch.zeros(1, 3, 32, 32))
    counts = by_algorithm(graph.layers.values())
    assert counts["direct"] == 40_813_184
    strided = [layer for layer in graph.layers.values() if F2.why_not(layer)]
    rest = sum(layer.macs for layer in strided)
    assert len(strided) == 5
    assert (counts["direct"] - rest) / (counts["winograd_2x2"] - rest) == 2.25
    assert (counts["direct"] - rest) / (counts["winograd_4x4"] - rest) == 4.0
    lenet = by_algorithm(ModelGraph.trace(LeNet5().eval(), torch.zeros(1, 1, 28, 28)).layers.values())
    assert set(lenet.values()) == {2_293_000}


# B^T, G and A^T of F(2 x 2, 3 x 3) (equation 7).
DATA = torch.tensor([[1.0, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
FILTER = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
OUTPUT = torch.tensor([[1.0, 1, 1, 0], [0, 1, -1, -1]])


def filtered(x: Tensor, weight: Tensor) -> tuple[Tensor, int]:
    """F(2 x 2, 3 x 3) on maps (C, H, W) of even size, padded by 1, and how many products it took."""
    tiles = nn.functional.pad(x, (1, 1, 1, 1)).unfold(1, 4, 2).unfold(2, 4, 2)
    data, filters = DATA @ tiles @ DATA.T, FILTER @ weight @ FILTER.T
    products = filters[:, :, None, None] * data[None]
    maps = OUTPUT @ products.sum(1) @ OUTPUT.T
    return maps.transpose(2, 3).flatten(3, 4).flatten(1, 2), products.numel()


def test_as_many_products_as_are_counted_do_compute_the_convolution():
    conv = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    x = torch.randn(3, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        maps, products = filtered(x, conv.weight)
        torch.testing.assert_close(maps, conv(x[None])[0], rtol=1e-4, atol=1e-5)
    model = nn.Sequential(conv, nn.Flatten())
    layer = ModelGraph.trace(model, x[None]).layers["0"]
    assert Winograd(2).multiplications(layer) == products
