"""What a run says where it is taken up on something else, and what changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from paretopress.evaluators.data import DataSet
from paretopress.evaluators.sources import as_dataset
from paretopress.search.identity import Identity, labels_digest, pictures_digest

IMAGES = np.random.default_rng(0).integers(0, 256, (60, 1, 4, 4), np.uint8)
LABELS = np.arange(60) % 3


def identity(data: DataSet, **changes: str) -> Identity:
    known = Identity("1", "w", data.digest(), pictures_digest(data), labels_digest(data), "s")
    return replace(known, **changes)


def data(images: np.ndarray = IMAGES, labels: np.ndarray = LABELS) -> DataSet:
    return as_dataset((images, labels))


BEFORE = identity(data())


def test_the_same_parts_differ_in_nothing_also_from_their_text() -> None:
    assert identity(data()).differences(Identity.from_text(BEFORE.to_text())) == []


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (identity(data(), weights="v"), ["the network's weights"]),
        (identity(data(), release="2"), ["the release (1 then, 2 now)"]),
        (identity(data(), settings="t"), ["teachers, supernet or settings"]),
        (identity(data(), weights="v", settings="t"), ["the network's weights", "teachers, supernet or settings"]),
    ],
)
def test_each_part_is_named(now: Identity, said: list[str]) -> None:
    assert now.differences(BEFORE) == said


def test_data_in_another_order_is_told_from_other_pixels_and_from_other_pictures() -> None:
    order = np.random.default_rng(1).permutation(60)
    noisy = IMAGES ^ np.random.default_rng(2).integers(0, 2, IMAGES.shape, np.uint8)
    differences = [
        identity(other).differences(BEFORE)
        for other in (
            data(IMAGES[order], LABELS[order]),
            data(noisy),
            data(noisy[order], LABELS[order]),
            data(IMAGES[:50], LABELS[:50]),
            data(IMAGES, LABELS[::-1] // 2),
        )
    ]
    assert ["the same pictures, in another order" in line for (line,) in differences] == [True] + [False] * 4
    assert ["other pixels" in line for (line,) in differences] == [False, True, True, False, False]
    assert ["other pictures" in line for (line,) in differences] == [False] * 3 + [True] * 2


def test_a_picture_with_another_label_is_another_picture() -> None:
    swapped = LABELS.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert pictures_digest(data()) != pictures_digest(data(labels=swapped))
    assert labels_digest(data()) == labels_digest(data(labels=swapped))
