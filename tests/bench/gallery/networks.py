"""Three trained networks with the pictures that their layers see."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from paretopress.evaluators.data import DataSet
from paretopress.evaluators.models import build_model, load_weights
from paretopress.evaluators.sources import load_data
from paretopress.evaluators.training.augment import Augment
from paretopress.evaluators.training.loop import Recipe, train
from paretopress.policies.graph import ModelGraph
from torch import Tensor, nn

ROOT = Path(__file__).parents[3]
WEIGHTS = ROOT / "configs" / "weights" / "cifar10_resnet20.safetensors"
PICTURES = 256


@dataclass(frozen=True, eq=False)
class Network:
    """A trained network, in evaluation mode.

    Parameters
    ----------
    name
        As it is told to the reader.
    model
        Not to be changed.
    data
        What it was trained on.
    """

    name: str
    model: nn.Module
    data: DataSet

    @cached_property
    def pictures(self) -> Tensor:
        """Calibration pictures (N, C, H, W) as the network takes them."""
        return self.data.preprocess(self.data.train.images[:PICTURES])

    @cached_property
    def graph(self) -> ModelGraph:
        return ModelGraph.trace(self.model, self.pictures[:1])


def resnet() -> Network:
    """ResNet-20 with the weights of this repository, and CIFAR-10, which is fetched where missing."""
    data = load_data("cifar10", report=_tell)
    model = build_model("family:resnet20")
    load_weights(model, WEIGHTS)
    return Network("ResNet-20", model.eval(), data)


def digits() -> Network:
    """The quick start's network for scikit-learn's digits, trained by the recipe of ``configs/quickstart.yaml``."""
    data = load_data("digits", report=_tell)
    model = build_model("family:digits_cnn")
    train(model, data, Recipe(epochs=30, batch_size=64, lr=0.05, augment=Augment(shift=1)), seed=0)
    return Network("digits network", model.eval(), data)


def lenet() -> Network:
    """LeNet-5 after two epochs on MNIST, which is fetched where missing."""
    data = load_data("mnist", report=_tell)
    model = build_model("family:lenet5")
    train(model, data, Recipe(epochs=2, batch_size=64, lr=0.02), seed=0)
    return Network("LeNet-5", model.eval(), data)


NETWORKS: dict[str, Callable[[], Network]] = {"resnet": resnet, "digits": digits, "lenet": lenet}


def _tell(line: str) -> None:
    print(line, file=sys.stderr)
