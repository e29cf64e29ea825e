"""Networks with wrapped layers, unused heads and shared parameters, searched: said at the start, and one network in all files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paretopress
import torch
from paretopress.evaluators.runtime import logits, session
from paretopress.search.front import FrontData
from paretopress.search.progress import Silence
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

torch.set_num_threads(1)


class Gated(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * x.mean(1, keepdim=True).sigmoid()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gated = nn.Conv2d(1, 8, 3, 2, 1), Gated(8, 8, 3, padding=1)
        self.wrapped = parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.masked, self.first, self.tied = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        prune.l1_unstructured(self.masked, "weight", amount=0.5)
        self.tied.weight = self.first.weight
        self.last, self.aux = nn.Linear(8, 10), nn.Linear(8, 2000)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.stem, self.gated, self.wrapped, self.masked, self.first, self.tied):
            x = layer(x).relu() + 0.1
        return self.last(x.mean((2, 3)))


class Heard(Silence):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def test_a_network_of_every_kind_is_searched_and_told_of_at_the_start(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, heard = Net().eval(), Heard()
    x = np.random.default_rng(0).normal(size=(120, 1, 12, 12)).astype(np.float32)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    front = paretopress.search(
        model,
        (x, np.arange(120) % 10),
        {"error": "+100", "stored": "1.5x"},
        evaluations=2,
        out=tmp_path / "run",
        listener=heard,
        space={"precision": ["float32", "w8a8"], "sparsity": [0.0, 0.5], "tie": "none"},
        search={"sampler": "random", "finalists": 2, "batch": 2, "stitch_pictures": 16},
        recovery={"epochs": 1, "batch_size": 32, "lr": 0.01, "tryout": 0.0},
        latency={"screen_seconds": 0.02, "pairs": 50},
        pool={"kind": "in-process"},
    )
    said = "\n".join(heard.lines)
    for words in ("wrapped (parametrized by SpectralNorm)", "masked (a mask", "aux (", "gated: Gated", "tied.weight"):
        assert words in said, words
    assert front.baseline["stored_bytes"] < sum(
        v.nbytes for n, v in state.items() if "aux" not in n and "tied.w" not in n
    )
    assert isinstance(front.found, FrontData) and len(front)
    pictures = front.given.data.preprocess(x[:20])
    for candidate in front:
        network = candidate.model()
        with torch.no_grad():
            expected = network(pictures).numpy()
        file = logits(session(candidate.export(tmp_path / "member.onnx").read_bytes()), pictures.numpy(), 20)
        int8 = "int8" in str(candidate.policy.as_dict())
        assert np.sqrt(((file - expected) ** 2).mean()) / expected.std() < (0.3 if int8 else 1e-5)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
