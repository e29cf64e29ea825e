"""Pictures labelled by the dense network, where quality means agreement with it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from ..evaluators.accuracy import file_logits
from ..evaluators.cores import available_cores
from ..evaluators.data import DataSet, Pictures


def labelled_by(reference: bytes, data: DataSet, threads: int) -> DataSet:
    """The same pictures, those that candidates are measured on labelled with the class that the dense network predicts."""
    validation = _relabelled(data.validation, reference, data, threads)
    test = None if data.test is None else _relabelled(data.test, reference, data, threads)
    classes = int(file_logits(reference, data, data.validation.take(slice(0, 1)), threads).shape[1])
    return replace(data, num_classes=classes, validation=validation, test=test)


def to_learn_from(quality: Literal["error", "agreement"], reference: bytes, data: DataSet) -> DataSet:
    """What a network is trained on whose labels count: without the test split, and with the labels that ``quality`` means."""
    data = data.without_test()
    if quality == "error":
        return data
    return replace(data, train=_relabelled(data.train, reference, data, available_cores()))


def _relabelled(part: Pictures, reference: bytes, data: DataSet, threads: int) -> Pictures:
    return Pictures(part.images, file_logits(reference, data, part, threads).argmax(1).astype(np.int64))
