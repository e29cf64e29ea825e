"""Networks of ours. Each family is one file; this table turns the name in a configuration into what builds it."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .densenet import DenseNet, DenseNetKnobs
from .digits_cnn import DigitsCNN
from .inception import GoogLeNet, InceptionKnobs
from .knobs import Family, Knobs
from .lenet import LeNet5, LeNet300100
from .mobilenet_v1 import MobileNetV1, MobileNetV1Knobs
from .mobilenet_v2 import MobileNetV2, MobileNetV2Knobs
from .plain import PlainKnobs, PlainNet
from .pocket import PocketKnobs, PocketNet
from .resnet_cifar import ResNet20
from .shufflenet import ShuffleNet, ShuffleNetKnobs
from .squeezenet import SqueezeNet, SqueezeNetKnobs
from .tied import TiedResNet, TiedResNetKnobs
from .xception import Xception, XceptionKnobs

SHAPED: dict[str, Family] = {
    "densenet": Family(DenseNetKnobs, DenseNet, num_classes=10),
    "inception": Family(InceptionKnobs, GoogLeNet),
    "mobilenet_v1": Family(MobileNetV1Knobs, MobileNetV1),
    "mobilenet_v2": Family(MobileNetV2Knobs, MobileNetV2),
    "plain": Family(PlainKnobs, PlainNet, num_classes=10),
    "pocket": Family(PocketKnobs, PocketNet, num_classes=10),
    "shufflenet": Family(ShuffleNetKnobs, ShuffleNet),
    "squeezenet": Family(SqueezeNetKnobs, SqueezeNet),
    "tied_resnet": Family(TiedResNetKnobs, TiedResNet, num_classes=10),
    "xception": Family(XceptionKnobs, Xception),
}

FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "digits_cnn": DigitsCNN,
    "lenet300100": LeNet300100,
    "lenet5": LeNet5,
    "resnet20": ResNet20,
    **SHAPED,
}

__all__ = [
    "FAMILIES",
    "SHAPED",
    "DigitsCNN",
    "Family",
    "Knobs",
    "LeNet5",
    "LeNet300100",
    "ResNet20",
]
