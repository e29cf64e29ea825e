"""Where the channels of an array lie: the network decides, then the shape, and nothing is turned round unsaid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from paretopress.evaluators.layouts import shapes_taken_by, to_channels_first
from paretopress.policies.errors import DataError
from torch import nn

torch.set_num_threads(1)


def convolution(channels: int) -> nn.Module:
    layers = (nn.Conv2d(channels, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    return nn.Sequential(*layers)


def read(shape: tuple[int, int, int], network: nn.Module | None = None) -> tuple[tuple[int, ...], list[str]]:
    """The shape that pictures of this shape are read as, and what is said."""
    images = np.arange(2 * np.prod(shape), dtype=np.float32).reshape(2, *shape)
    lines: list[str] = []
    takes = None if network is None else shapes_taken_by(network, None)
    found = to_channels_first(images, "data", lines.append, takes)
    turned = found.shape != images.shape
    assert np.array_equal(found, images.transpose(0, 3, 1, 2) if turned else images)
    return found.shape[1:], lines


@pytest.mark.parametrize("shape", [(2, 64, 1), (4, 32, 3), (16, 40, 1), (8, 8, 1), (16, 16, 3), (5, 20, 2), (3, 9, 1)])
def test_pictures_that_the_network_takes_as_they_are_stay_as_they_are(shape: tuple[int, int, int]) -> None:
    assert read(shape, convolution(shape[0])) == (shape, [])


@pytest.mark.parametrize("shape", [(20, 30, 1), (20, 30, 3), (10, 30, 2), (10, 12, 4), (9, 9, 3), (1, 30, 3)])
def test_pictures_that_the_network_takes_turned_round_are_turned_and_said(shape: tuple[int, int, int]) -> None:
    height, width, channels = shape
    found, lines = read(shape, convolution(channels))
    assert found == (channels, height, width)
    assert len(lines) == 1 and f"{height} x {width} pictures of {channels} channels" in lines[0]


@pytest.mark.parametrize("network", [None, nn.Sequential(nn.Flatten(), nn.LazyLinear(2)), convolution(7)])
def test_where_the_network_does_not_decide_square_pictures_have_their_channels_last(network: nn.Module | None) -> None:
    assert read((28, 28, 1), network) == ((1, 28, 28), [])
    assert read((4, 4, 3), network) == ((3, 4, 4), [])
    assert read((3, 40, 1), network) == ((3, 40, 1), [])


def test_without_a_network_what_is_plain_is_read_and_said_and_the_rest_refused() -> None:
    found, lines = read((2, 64, 1))
    assert found == (2, 64, 1) and "64 x 1 pictures of 2 channels" in lines[0]
    found, lines = read((48, 64, 3))
    assert found == (3, 48, 64) and "48 x 64 pictures of 3 channels" in lines[0]
    with pytest.raises(
        DataError, match=r"\(16, 40, 1\) may be 16 channels of 40 x 1, or 16 x 40 pictures of 1 channels"
    ):
        read((16, 40, 1))


def test_a_network_is_left_as_it_was_by_trying_it() -> None:
    network = convolution(3).train()
    network[1].eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    shapes_taken_by(network, None)((3, 8, 8))
    assert [module.training for module in network] == [True, False, True, True, True]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_sizes_are_those_that_pictures_are_resized_to() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    assert shapes_taken_by(network, (8, 8))((3, 20, 30)) and not shapes_taken_by(network, None)((3, 20, 30))
