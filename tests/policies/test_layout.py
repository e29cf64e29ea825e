"""How pictures lie in memory."""

from __future__ import annotations

import pytest
import torch
from paretopress.policies.layout import laid_out, layout
from torch import nn


class Views(nn.Module):
    """Flattens by a view, as many tutorials do."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4 * 36, 5)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).view(len(x), -1))


class Flattens(Views):
    """The same by flatten, which copies where it must."""

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).flatten(1))


@pytest.mark.parametrize(
    ("kind", "expected"), [(Views, torch.contiguous_format), (Flattens, torch.channels_last)], ids=["view", "flatten"]
)
def test_channels_come_last_where_the_network_bears_it(kind, expected):
    model, x = kind(), torch.randn(3, 3, 8, 8)
    assert layout(model, x[:1]) == expected
    pictures = laid_out(model, x)
    assert pictures.is_contiguous(memory_format=expected)
    assert torch.equal(pictures, x)
    model(pictures)


def test_asking_leaves_modes_and_statistics_as_they_were():
    model = Flattens().train()
    model.conv.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layout(model, torch.randn(1, 3, 8, 8))
    assert model.training
    assert not model.conv.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("channels", "expected"), [(4, torch.contiguous_format), (8, torch.channels_last)])
def test_a_shape_whose_backward_pass_corrupts_memory_stays_contiguous(channels, expected):
    model = nn.Sequential(nn.Conv2d(3, channels, 3), nn.Conv2d(channels, 8, 1, stride=2))
    assert layout(model, torch.randn(1, 3, 8, 8)) == expected
