"""Networks of ours. Each family is one file; this table turns the name in a configuration into its class."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .digits_cnn import DigitsCNN
from .lenet import LeNet5, LeNet300100
from .resnet_cifar import ResNet20

FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "digits_cnn": DigitsCNN,
    "lenet300100": LeNet300100,
    "lenet5": LeNet5,
    "resnet20": ResNet20,
}

__all__ = ["FAMILIES", "DigitsCNN", "LeNet5", "LeNet300100", "ResNet20"]
