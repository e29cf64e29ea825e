"""Data sets: pictures and labels in four splits (train, calibration, validation, test) that the seed fixes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ..policies.errors import DataError

MAX_BYTES = 8 * 1024**3
"""Of the pictures of a data set, which are held in memory."""
CHUNK_VALUES = 2**20
"""Of which a copy is made at a time; of all pictures at once it would take their memory again, or eight times as float64."""


@dataclass(frozen=True)
class Pictures:
    """Pictures with labels.

    Parameters
    ----------
    images
        (N, C, H, W), uint8 or float32.
    labels
        (N,) int64 class indices.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or len(self.images) != len(self.labels):
            shapes = f"{self.images.shape} and {self.labels.shape}"
            raise DataError(f"expected images (N, C, H, W) and labels (N,); got arrays of shapes {shapes}")
        if self.images.dtype not in (np.uint8, np.float32):
            raise DataError(f"expected images of uint8 or float32, got {self.images.dtype}; convert them first")

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray | slice) -> Pictures:
        """The pictures at these indices."""
        return Pictures(self.images[indices], self.labels[indices])

    def digest(self) -> str:
        """SHA-256 (hex) over shapes, types, pixels and labels."""
        sha = hashlib.sha256(f"{self.images.shape}{self.images.dtype}".encode())
        for chunk in _chunks(self.images):
            sha.update(np.ascontiguousarray(chunk).data)
        sha.update(np.ascontiguousarray(self.labels.astype(np.int64)).data)
        return sha.hexdigest()


def _chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    """The pictures (N, C, H, W) in turn, so many at a time that a copy of them is small."""
    count = max(1, CHUNK_VALUES * len(images) // max(1, images.size))
    return (images[start : start + count] for start in range(0, len(images), count))


@dataclass(frozen=True)
class Preprocess:
    """From stored pixels to the network's input: scale to [0, 1], resize, normalise.

    Parameters
    ----------
    mean, std
        One value a channel, in units of the [0, 1] scale (float pictures are taken as they are before this).
    size
        (height, width) the network takes; ``None`` keeps the pictures' own.
    """

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = None

    def __call__(self, images: np.ndarray) -> Tensor:
        """Float32 input (N, C, H, W) of the network."""
        # Torch takes no memory that must not be written, and none that is walked backwards.
        taken = images.flags.writeable and all(stride > 0 for stride in images.strides)
        source = images if taken else images.copy()
        # A single channel may have any stride, and torch would choose the layout of all maps by it.
        x = torch.from_numpy(source).reshape(-1).view(source.shape)
        x = x.float().div_(255.0) if images.dtype == np.uint8 else x
        if self.size is not None and tuple(x.shape[-2:]) != self.size:
            x = functional.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=True)
        # Whatever type the caller has made torch's default.
        mean = torch.tensor(self.mean, dtype=torch.float32).view(1, -1, 1, 1)
        std = torch.tensor(self.std, dtype=torch.float32).view(1, -1, 1, 1)
        return (x - mean) / std


@dataclass(frozen=True)
class DataSet:
    """A named data set in four splits.

    ``test`` is read once per final candidate; ``without_test`` is what workers get.

    Parameters
    ----------
    validation_from
        Where the validation pictures come from: a split of the source's ``own``, its ``training`` split or its ``testing``
        split.
    test_from
        Where the test pictures come from: a split of the source's ``own``, or its ``training`` split.
    """

    name: str
    num_classes: int
    train: Pictures
    calibration: Pictures
    validation: Pictures
    test: Pictures | None
    preprocess: Preprocess = field(default_factory=Preprocess)
    validation_from: Literal["own", "training", "testing"] = "own"
    test_from: Literal["own", "training"] = "own"

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the network's input."""
        channels, height, width = self.train.images.shape[1:]
        return (channels, *(self.preprocess.size or (height, width)))

    def without_test(self) -> DataSet:
        """The same without its test split."""
        return replace(self, test=None)

    def digest(self) -> str:
        """SHA-256 (hex) over all splits and the preprocessing."""
        sha = hashlib.sha256(repr((self.name, self.num_classes, self.preprocess)).encode())
        for split in (self.train, self.calibration, self.validation, self.test):
            sha.update((split.digest() if split is not None else "none").encode())
        return sha.hexdigest()

    def batches(self, split: Pictures, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Input (B, C, H, W) and labels (B,) of a split, in order."""
        for start in range(0, len(split), batch_size):
            part = split.take(slice(start, start + batch_size))
            yield self.preprocess(part.images), torch.from_numpy(part.labels.astype(np.int64))


LEAST = 10
"""Pictures of a split on which errors are measured; of fewer, one is more than ten points of error."""


@dataclass(frozen=True)
class SplitSizes:
    """How many pictures the held-out parts take from the training pictures.

    Parameters
    ----------
    validation
        Pictures on which candidates are compared; a share of the training pictures where below 1.
    calibration
        Training pictures (they stay in ``train`` too) for activation ranges and batch-norm statistics.
    test
        Pictures taken for the test split where the source has none of its own; a share where below 1.

    Raises
    ------
    DataError
        Where a number of pictures is not whole.
    """

    validation: float = 0.1
    calibration: int = 512
    test: float = 0.2

    def __post_init__(self) -> None:
        for part, size in (("validation", self.validation), ("test", self.test)):
            if not 0 < size < 1 and (size < 1 or size % 1):
                raise DataError(
                    f"data.{part}: expected a share above 0 and below 1, or a whole number of pictures; got {size:g}"
                )


def split(
    name: str,
    pictures: Pictures,
    test: Pictures | None,
    sizes: SplitSizes,
    seed: int,
    preprocess: Preprocess | None = None,
    num_classes: int | None = None,
    validation: Pictures | None = None,
    owned: bool = False,
) -> DataSet:
    """Split training pictures by the seed; where no test or validation pictures came, hold some out.

    Every split but a test split that came is in random order: its first pictures are a fair sample, also of data that is
    sorted by its classes. Splits of the same pictures are views of one array.

    Parameters
    ----------
    owned
        Whether the pictures are nobody else's and may be put in order where they lie, which saves a copy of them all.

    Raises
    ------
    DataError
        Where there are too few pictures for the sizes asked.
    """
    if len(pictures) == 0:
        raise DataError(f"data set '{name}' is empty: expected training pictures, got none; check its path")
    order = np.random.default_rng([seed, 0x5EED]).permutation(len(pictures))
    for part, given in (("test", test), ("validation", validation)):
        if given is not None and len(given) == 0:
            raise DataError(f"data set '{name}': the {part} split is empty; give pictures, or none to hold some out")
    train = _in_order(pictures, order, owned)
    change = ["data.validation"]
    test_from: Literal["own", "training"] = "training" if test is None else "own"
    validation_from: Literal["own", "training"] = "training" if validation is None else "own"
    if test is None:
        count = _held_out(name, "test", sizes.test, len(train), ["data.test"])
        test, train = train.take(slice(0, count)), train.take(slice(count, None))
        change.append("data.test")
    if validation is None:
        count = _held_out(name, "validation", sizes.validation, len(train), change)
        validation, train = train.take(slice(0, count)), train.take(slice(count, None))
    else:
        shuffled = np.random.default_rng([seed, 0xA11D]).permutation(len(validation))
        validation = _in_order(validation, shuffled, owned)
    labels = [part.labels.max(initial=0) for part in (pictures, validation, test)]
    return DataSet(
        name=name,
        num_classes=num_classes or int(max(labels)) + 1,
        train=train,
        calibration=train.take(slice(0, sizes.calibration)),
        validation=validation,
        test=test,
        preprocess=preprocess or standardise(train),
        validation_from=validation_from,
        test_from=test_from,
    )


def _in_order(pictures: Pictures, order: np.ndarray, owned: bool) -> Pictures:
    """The pictures in the order of a permutation: where they lie if they are ours, else as a copy."""
    images = pictures.images
    if not owned or not images.flags.writeable:
        return pictures.take(order)
    placed = np.zeros(len(order), bool)
    for first in range(len(order)):
        if placed[first]:
            continue
        # Along a cycle each picture moves to the place that the one before it has left.
        held, place = images[first].copy(), first
        while order[place] != first:
            images[place] = images[order[place]]
            placed[place] = True
            place = int(order[place])
        images[place] = held
        placed[place] = True
    return Pictures(images, pictures.labels[order])


def check_measurable(data: DataSet, limit: int | None = None) -> None:
    """Refuse splits on which an error says nothing.

    Parameters
    ----------
    limit
        What was left of each part that the source has, where that was limited.

    Raises
    ------
    DataError
        Where fewer than ``LEAST`` pictures are for validation or test, or there is no test split.
    """
    if data.test is None:
        raise DataError(
            f"data set '{data.name}' has no test split; give test pictures, each final candidate needs them"
        )
    for part, pictures in (("validation", data.validation), ("test", data.test)):
        if len(pictures) < LEAST:
            limited = "" if limit is None else f" or data.limit, which is {limit}"
            raise DataError(
                f"data set '{data.name}': the {part} split has {len(pictures)} pictures, on which an error says nothing;"
                f" expected {LEAST} or more; raise data.{part}{limited}, or give more pictures"
            )


MAX_STANDARDISED = 10_000
"""Pictures that the preprocessing's mean and spread are taken of; more change no digit that is kept."""


def standardise(pictures: Pictures, size: tuple[int, int] | None = None) -> Preprocess:
    """Preprocessing by the pictures' own mean and spread, per channel."""
    sample = pictures.images[:MAX_STANDARDISED]
    scale = 255.0 if sample.dtype == np.uint8 else 1.0
    count = sample.size // sample.shape[1]
    totals = sum(chunk.sum(axis=(0, 2, 3), dtype=np.float64) for chunk in _chunks(sample))
    mean = np.asarray(totals) / count
    # From the mean, since a difference of two sums of squares loses the digits of a small spread.
    squares = sum(np.square(chunk - mean[:, None, None]).sum(axis=(0, 2, 3)) for chunk in _chunks(sample))
    mean, std = mean / scale, np.sqrt(np.asarray(squares) / count) / scale
    return Preprocess(tuple(np.round(mean, 4).tolist()), tuple(np.maximum(np.round(std, 4), 1e-3).tolist()), size)


def _held_out(name: str, part: str, size: float, total: int, change: list[str]) -> int:
    count = round(size * total) if size < 1 else int(size)
    if not 1 <= count < total:
        raise DataError(
            f"data set '{name}': {total} pictures cannot give {count} for {part} and keep some for training;"
            f" change {' or '.join(change)}"
        )
    return count
