"""A search does not depend on what its caller has set in torch, and leaves it, and the network, as they were."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import paretopress as pp
import pytest
import torch
from paretopress.evaluators.runtime import logits, session
from paretopress.policies.errors import ModelError
from paretopress.policies.own_network import own_copy
from paretopress.search.caller_state import keep_caller_state
from torch import Tensor, nn
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("one_core")


class Awkward(nn.Module):
    """Changes its input, gives two outputs in training mode, shares a layer, and its ``train`` returns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1)
        self.norm, self.fc, self.aux = nn.BatchNorm2d(16), nn.Linear(16, 4), nn.Linear(16, 4)

    def train(self, mode: bool = True) -> None:
        super().train(mode)

    def forward(self, x: Tensor) -> Any:
        x = functional.relu(self.norm(self.stem(x.sub_(0.5))))
        y = functional.relu(self.shared(functional.relu(self.shared(x)) * 4)).mean((2, 3))
        return (self.fc(y), self.aux(x.mean((2, 3)))) if self.training else self.fc(y)


def pictures() -> tuple[np.ndarray, np.ndarray]:
    drawn, labels = np.random.default_rng(0), np.arange(160) % 4
    images = drawn.normal(size=(4, 3, 8, 8))[labels] + drawn.normal(size=(160, 3, 8, 8))
    return images.astype(np.float32), labels


def trained() -> Awkward:
    torch.manual_seed(0)
    model, (images, labels) = Awkward(), pictures()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(30):
        outputs, aux = model(torch.from_numpy(images.copy()))
        target = torch.from_numpy(labels)
        loss = functional.cross_entropy(outputs, target) + functional.cross_entropy(aux, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.zero_grad()
    return model


def searched(model: nn.Module, out: Path, **changes: Any) -> pp.Front:
    sections: dict[str, Any] = {
        "space": {"precision": ["float32", "w8a8"], "channels": [1.0, 0.5], "multiple": 1},
        "search": {"sampler": "random", "finalists": 1, "stitch_pictures": 32},
        "recovery": {"epochs": 1, "batch_size": 32, "tryout": 0.0},
        "latency": {"screen_seconds": 0.02, "pairs": 50},
        "pool": {"kind": "in-process"},
        **changes,
    }
    return pp.search(model, pictures(), {"error": "+60"}, evaluations=2, out=out, **sections)


def settings() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),
        random.getstate(),
    )


MODES: dict[str, AbstractContextManager[Any]] = {
    "no_grad": torch.no_grad(),
    "inference_mode": torch.inference_mode(),
    "autocast": torch.autocast("cpu", torch.bfloat16),
    "as usual": nullcontext(),
}


@pytest.mark.parametrize("mode", MODES)
def test_work_is_done_in_the_same_modes_whatever_the_callers_are(mode: str) -> None:
    threads = torch.get_num_threads()
    with MODES[mode]:
        torch.set_default_dtype(torch.float64)
        try:
            before = settings()
            with keep_caller_state():
                layer = nn.Linear(4, 2)
                layer(torch.zeros(1, 4)).sum().backward()
                assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
                torch.set_num_threads(threads + 1)
                torch.manual_seed(5), np.random.seed(5), random.seed(5)
                torch.set_grad_enabled(False)
            assert settings() == before
        finally:
            torch.set_default_dtype(torch.float32)


def test_a_failure_leaves_the_callers_settings_too() -> None:
    before = settings()
    with pytest.raises(ZeroDivisionError), keep_caller_state():
        torch.manual_seed(9), torch.set_num_threads(torch.get_num_threads() + 1)
        raise ZeroDivisionError
    assert settings() == before


@pytest.fixture(scope="module")
def awkward_run(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Awkward, dict[str, Tensor], tuple[Any, ...], pp.Front]:
    model = trained()
    model.norm.eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        before = settings()
        front = searched(model.requires_grad_(False), tmp_path_factory.mktemp("awkward") / "run")
        assert settings() == before
    return model, weights, before, front


def test_the_callers_network_keeps_its_modes_weights_and_hooks(awkward_run: Any) -> None:
    model, weights, _, front = awkward_run
    front.pick().model()
    assert model.training and not model.norm.training and not model._forward_pre_hooks and not model._forward_hooks
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_files_of_an_awkward_network_are_the_network(awkward_run: Any) -> None:
    model, _, _, front = awkward_run
    images = front.given.data.preprocess(pictures()[0][:40])
    with torch.no_grad():
        dense = own_copy(model)(images.clone()).numpy()
    file = logits(session(front.run.reference.read_bytes()), images.numpy(), 8)
    assert np.abs(file - dense).max() < 1e-4 * dense.std()
    candidate = front.pick()
    restored = candidate.model()
    with torch.no_grad():
        own = restored(images.clone()).numpy()
    onnx = front.run.artefact(candidate.member.id, "model.onnx").read_bytes()
    assert np.sqrt(np.mean((logits(session(onnx), images.numpy(), 8) - own) ** 2)) < 0.1 * own.std()


def test_a_network_that_cannot_be_trained_is_refused_before_anything_is_screened(tmp_path: Path) -> None:
    class Untrainable(Awkward):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Any:
            return super().forward(x)

    torch.manual_seed(0)
    with pytest.raises(ModelError, match=r"no gradient flows through the network in training mode"):
        searched(Untrainable(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert len(searched(Untrainable(), tmp_path / "run", recovery={"epochs": 0})) == 1
