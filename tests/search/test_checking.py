"""Networks that cannot be searched are refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from paretopress.policies.errors import ConfigError, ModelError
from paretopress.search.config import make_config
from paretopress.search.prepare import dense_network, read_data
from paretopress.search.rundir import RunDirectory
from paretopress.tests.search.runs import small

NETWORKS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, before=lambda x: x.flatten(1), after=lambda x: x, outputs=10):
        super().__init__()
        self.before, self.after, self.fc = before, after, nn.Linear(64, outputs)

    def forward(self, x):
        return self.after(self.fc(self.before(x)))

def maps(): return nn.Conv2d(1, 8, 3)
def several(): return Net(after=lambda x: (x, x))
def few(): return Net(outputs=5)
def single(): return Net(before=lambda x: x.reshape(1, -1))
def joined(): return Net(after=lambda x: x[:1])
def empty(): return nn.Flatten()
def unexportable(): return Net(after=lambda x: torch.fft.fft(x).real)
def labels(): return Net(after=lambda x: (x > 0).long())
def double(): return Net(before=lambda x: x.flatten(1).double()).double()

def quantized():
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear})

def broken():
    net = Net()
    net.fc.weight.data.fill_(float("nan"))
    return net
"""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("family:lenet300100", r"the network fails on pictures of shape \(1, 1, 8, 8\): .*; check data.image_size"),
        ("maps", r"expected a classifier that gives logits \(N, classes\); the network gives \(1, 8, 6, 6\)"),
        ("several", "the network gives tuple"),
        ("few", "the network has 5 outputs but the data has the label 9; set model.num_classes"),
        ("single", r"the network fails on pictures of shape \(2, 1, 8, 8\): .*; it must take any number"),
        ("joined", r"the network gives \(1, 10\) for pictures of shape \(2, 1, 8, 8\)"),
        ("empty", "nothing to compress"),
        ("unexportable", "cannot be exported to ONNX"),
        ("labels", "expected logits in float32; the network gives int64"),
        ("double", r"expected weights in float32, fc.weight is float64; give model.float\(\)"),
        ("quantized", r"expected tensors alone in the network's state, .*; give the network in float32"),
        (
            "broken",
            r"expected finite logits; the network gives \[nan, nan, nan, ...\]; fc.weight holds NaN or infinity",
        ),
    ],
)
def test_a_network_that_cannot_be_searched_is_refused_before_it_is_trained(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_networks_of_test_checking.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    whole = name if ":" in name else f"own_networks_of_test_checking:{name}"
    config = make_config(small(model={"name": whole, "train": {"epochs": 1}}))
    said: list[str] = []
    with pytest.raises(ModelError, match=message):
        dense_network(config, read_data(config, said.append), RunDirectory(tmp_path / "run"), said.append)
    assert not said and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"rules": [{"layers": "nope", "sparsity": [0.5, 0.2]}]}, "space.rules.0: 'nope' matches no layer"),
        ({"precision": ["float32"], "sparsity": [0.0], "channels": [1.0]}, "every menu has one option"),
    ],
)
def test_a_space_that_does_not_fit_the_network_is_refused_before_it_is_trained(
    space: dict[str, object], message: str, tmp_path: Path
) -> None:
    config, said = make_config(small(space=space)), list[str]()
    with pytest.raises(ConfigError, match=message):
        dense_network(config, read_data(config, said.append), RunDirectory(tmp_path), said.append)
    assert not said and not list(tmp_path.iterdir())
