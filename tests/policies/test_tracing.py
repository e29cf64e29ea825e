"""Networks that are followed stay as they were."""

from __future__ import annotations

import copy

import torch
from paretopress.policies.tracing import follow
from torch import Tensor, nn

torch.set_num_threads(1)


class Caching(nn.Module):
    """Keeps what it computes from its table until it trains again, as LeViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.kept, self.fc = nn.Parameter(torch.ones(4)), {}, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if "bias" not in self.kept:
            self.kept["bias"] = self.table.square()
        return self.fc(x + self.kept["bias"] + torch.ones(4))


def test_what_a_network_keeps_for_later_is_none_of_the_symbols_that_it_is_followed_with() -> None:
    model, x = Caching().eval(), torch.ones(1, 4)
    before = set(vars(model))
    assert follow(model) is not None
    assert not model.kept and set(vars(model)) == before
    assert copy.deepcopy(model)(x).shape == (1, 2)
