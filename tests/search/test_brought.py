"""Whole searches on networks and data that people bring: wrapped, of strange types, shuffled, failing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paretopress as pp
import pytest
import torch
from paretopress.evaluators.runtime import logits, session
from paretopress.policies.errors import DataError, ModelError, RunDirectoryError
from paretopress.search.cli import run as run_command
from paretopress.search.progress import Silence
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

COUNT = 120
LABELS = np.arange(COUNT) % 3
IMAGES = np.random.default_rng(0).normal(size=(COUNT, 2, 9, 9)).astype(np.float32)
IMAGES += np.random.default_rng(1).normal(size=(3, 2, 9, 9)).astype(np.float32)[LABELS]
SECTIONS: dict[str, Any] = {
    "space": {"precision": ["float32", "w8a8", "w8"]},
    "search": {"sampler": "random", "finalists": 1, "stitch_pictures": 32},
    "recovery": {"epochs": 1, "tryout": 0.0},
    "latency": {"screen_seconds": 0.02, "pairs": 50},
    "pool": {"kind": "in-process"},
}


class Strange(nn.Module):
    """Buffers of many types, a state beside its tensors, a lambda; its weights are those of the plain network."""

    def __init__(self, of_type: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c1, self.norm, self.c2 = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3)
        self.head = nn.Linear(6, 3)
        self.act = lambda x: x.clamp_min(0)
        self.register_buffer("scale", torch.full((6,), 1.5).to(torch.bfloat16))
        self.register_buffer("shift", torch.tensor([3], dtype=torch.int8))
        self.register_buffer("flag", torch.tensor(True))
        self.register_buffer("exact", torch.tensor(0.5, dtype=torch.float64))
        self.register_buffer("unused", torch.ones(2).to(torch.float8_e4m3fn))

    def get_extra_state(self) -> dict[str, Any]:
        return {"version": 3}

    def set_extra_state(self, state: Any) -> None:
        self.version = state["version"]

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.c1(x))) * self.scale.float().view(1, -1, 1, 1)
        return self.head(self.act(self.c2(x)).mean((2, 3))) + self.shift.float() * self.exact.float()


@pytest.fixture(autouse=True)
def _one_core(one_core: None) -> None:
    """Each search is small."""


def search(model: nn.Module, data: object, out: Path, **more: Any) -> pp.Front:
    return pp.search(model, data, {"error": "+100"}, evaluations=2, out=out, **(SECTIONS | more))


def plain_outputs(model: nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(IMAGES[:20])).numpy()


def outputs_of(path: Path) -> np.ndarray:
    return logits(session(path.read_bytes()), IMAGES[:20], 10)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_network_of_strange_parts_is_searched_as_it_is_whatever_torchs_default_type(
    tmp_path: Path, kind: torch.dtype
) -> None:
    model = Strange().eval()
    torch.set_default_dtype(kind)
    try:
        front = search(model, (IMAGES, LABELS), tmp_path / "run")
        member = front[0]
        network, path = member.model(), member.export(tmp_path / "m.onnx")
        assert torch.get_default_dtype() == kind
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_allclose(outputs_of(front.run.reference), plain_outputs(model), atol=1e-5)
    eight_bit = any("w8a8" in str(step) for step in member.policy.as_dict().items())
    np.testing.assert_allclose(outputs_of(path), plain_outputs(network), atol=0.1 if eight_bit else 0.05)
    assert network.scale.dtype == torch.bfloat16 and network.shift.dtype == torch.int8
    assert network.get_extra_state() == {"version": 3}


def test_a_wrapped_network_is_searched_as_what_is_inside(tmp_path: Path) -> None:
    inner = Strange().eval()
    front = search(torch.compile(inner, backend="eager"), (IMAGES, LABELS), tmp_path / "run")
    np.testing.assert_allclose(outputs_of(front.run.reference), plain_outputs(inner), atol=1e-5)
    again = pp.resume(tmp_path / "run", model=inner, data=(IMAGES, LABELS))
    assert again.found == front.found


class Stops(Silence):
    """As somebody who presses ctrl-C at the first candidate."""

    def progress(self, progress: Any) -> None:
        raise KeyboardInterrupt


class Shuffles:
    """A loader of the user's own, which gives another order, or other pixels, each time."""

    def __init__(self, noise: float) -> None:
        self.generator, self.noise = np.random.default_rng(0), noise

    def __iter__(self) -> Iterator[Any]:
        order = self.generator.permutation(COUNT)
        noise = self.noise * self.generator.normal(size=IMAGES.shape).astype(np.float32)
        yield from zip(np.array_split(IMAGES[order] + noise, 4), np.array_split(LABELS[order], 4))


def test_a_stopped_run_goes_on_with_a_loader_that_shuffles(tmp_path: Path) -> None:
    model, tensors = Strange().eval(), TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS))
    loader = DataLoader(tensors, 16, shuffle=True)
    with pytest.raises(KeyboardInterrupt):
        search(model, loader, tmp_path / "run", listener=Stops())
    front = pp.resume(tmp_path / "run", model=model, data=loader)
    assert len(front) == 1


@pytest.mark.parametrize(
    ("noise", "said"), [(0.0, "in another order .*does the loader shuffle"), (0.1, "other pixels .*loader augment")]
)
def test_a_stopped_run_says_what_differs_where_a_loader_of_ones_own_does_not_repeat_itself(
    tmp_path: Path, noise: float, said: str
) -> None:
    model, loader = Strange().eval(), Shuffles(noise)
    with pytest.raises(KeyboardInterrupt):
        search(model, loader, tmp_path / "run", listener=Stops())
    with pytest.raises(RunDirectoryError, match=f"differing: the data: .*{said}"):
        pp.resume(tmp_path / "run", model=model, data=loader)
    with torch.no_grad():
        model.head.bias += 1
    with pytest.raises(RunDirectoryError, match=r"differing: the network's weights; the data: "):
        pp.resume(tmp_path / "run", model=model, data=loader)


def with_lock() -> nn.Module:
    import threading

    model = Strange()
    model.lock = threading.Lock()
    return model


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (with_lock, "attribute 'lock' is a lock"),
        (lambda: torch.fx.symbolic_trace(nn.Conv2d(2, 3, 3)), "gives .*logits"),
        (lambda: Strange().to(torch.float64), "expected weights in float32"),
    ],
)
def test_a_network_that_cannot_be_searched_leaves_nothing_behind(
    tmp_path: Path, make: Callable[[], nn.Module], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        search(make(), (IMAGES, LABELS), tmp_path / "runs" / "deep" / "run")
    assert list(tmp_path.iterdir()) == []


def test_narrow_arrays_are_what_the_network_takes(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, (3, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    column = np.ascontiguousarray(IMAGES.reshape(COUNT, 2, 81, 1))
    assert search(network, (column, LABELS), tmp_path / "run").run.path.is_dir()


FAILING = """
import numpy as np, torch
from torch import nn
class Rows(torch.utils.data.Dataset):
    def __len__(self): return 40
    def __getitem__(self, i):
        if i == 23: raise {error}
        return np.zeros((3, 8, 8), np.float32), i % 2
def network(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))
"""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ValueError('two\\nlines')", "item 23: ValueError: two lines"),
        ("RuntimeError('out of memory')", "item 23: RuntimeError: out of memory"),
        ("AssertionError", "item 23: AssertionError"),
    ],
)
def test_what_a_data_set_raises_is_one_sentence_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: str, said: str
) -> None:
    name = f"failing_{abs(hash(error))}"
    (tmp_path / f"{name}.py").write_text(FAILING.format(error=error.replace("\n", "\\n")))
    (tmp_path / "c.yaml").write_text(
        f"model: {{name: '{name}:network'}}\ndata: {{name: '{name}:Rows'}}\nbudgets: {{error: +1.0}}\n"
        "space: {precision: [float32, w8a8]}\npool: {kind: in-process}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run_command(["search", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "runs" / "a")]) == 2
    errors = capsys.readouterr().err
    assert said in errors and "Traceback" not in errors and len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_data_that_fails_in_python_leaves_nothing_behind(tmp_path: Path) -> None:
    def batches() -> Iterator[Any]:
        yield IMAGES[:20], LABELS[:20]
        raise ConnectionError("the server is gone")

    with pytest.raises(DataError, match="batch or item 1: ConnectionError: the server is gone"):
        search(Strange().eval(), batches(), tmp_path / "runs" / "run")
    assert list(tmp_path.iterdir()) == []
