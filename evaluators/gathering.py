"""Pictures with labels from what a caller has: arrays, tensors, data sets, loaders. What theirs raises is one sentence."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    default_collate,
)

from ..policies.errors import DataError
from .data import MAX_BYTES, Pictures
from .layouts import Report, Takes, to_channels_first

GATHERED = 256
"""Items of a data set that are joined at a time."""
CHECKED_ITEMS = 8
"""Items that are read twice to see whether they change; random changes are seldom left out for all of so many."""
IMAGE_KEYS = ("image", "images", "img", "pixel_values", "x", "input", "inputs", "picture", "pictures", "data")
LABEL_KEYS = ("label", "labels", "target", "targets", "y", "class", "fine_label", "fine_labels")
EXPECTED = "(images, labels), a loader of such batches or a torch Dataset"

Batch = tuple[np.ndarray, np.ndarray]
"""Images (B, ...) and labels (B,)."""


@dataclass(frozen=True)
class Reading:
    """How pictures are read.

    Parameters
    ----------
    what
        What they are called in messages.
    report
        Gets a line for each thing that the caller should know.
    takes
        Whether the network takes pictures of a shape (C, H, W), where there is one.
    """

    what: str
    report: Report
    takes: Takes | None = None


def gather_pictures(value: Any, reading: Reading) -> Pictures:
    """Return the pictures of a pair of arrays or tensors, a loader, or a torch data set.

    Raises
    ------
    DataError
        Where it is none of these, holds other things, or raises an exception of its own.
    """
    if isinstance(value, Pictures):
        return value
    images, labels = _as_pair(value) or _gather(value, reading)
    images, labels = _as_array(images, reading.what), _as_array(labels, reading.what)
    if images.nbytes > MAX_BYTES:
        raise DataError(
            f"{reading.what}: {images.nbytes / 1024**3:.1f} GB of pictures, at most {MAX_BYTES / 1024**3:.0f} are held"
        )
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim == 4:
        images = to_channels_first(images, reading.what, reading.report, reading.takes)
    if images.dtype.kind == "f" and images.dtype != np.float32:
        images = images.astype(np.float32)
    if images.dtype == np.float32 and not all(np.isfinite(picture).all() for picture in images):
        raise DataError(f"{reading.what}: pictures hold NaN or infinity; expected finite values")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{reading.what}: expected labels (N,) of integers, got {labels.shape} of {labels.dtype}")
    return Pictures(images, labels.astype(np.int64))


def is_labelled(value: object) -> bool:
    """Tell whether a value is images with their labels, rather than parts of a data set."""
    return _as_pair(value) is not None


def _is_array_pair(value: object) -> bool:
    """Tell whether a value is two arrays or tensors, images and labels."""
    return isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], np.ndarray | Tensor)


def _as_pair(value: Any) -> tuple[Any, Any] | None:
    """Images and labels of an item, a batch or a whole data set; ``None`` where it is nothing of that kind."""
    if _is_array_pair(value):
        return value[0], value[1]
    if not isinstance(value, Mapping):
        return None
    images = [value[key] for key in IMAGE_KEYS if key in value]
    labels = [value[key] for key in LABEL_KEYS if key in value]
    return (images[0], labels[0]) if len(images) == len(labels) == 1 else None


def _gather(source: object, reading: Reading) -> Batch:
    """All batches of a loader or a data set, joined."""
    is_source = isinstance(source, Iterable) or _is_numbered(source)
    if not is_source or isinstance(source, np.ndarray | Tensor | str | bytes):
        raise DataError(f"{reading.what}: expected {EXPECTED}, got a {type(source).__name__}")
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    total_bytes = 0
    for value in _batches(source, reading):
        batch = _as_batch(value, reading.what)
        if images and batch[0].shape[1:] != images[0].shape[1:]:
            raise DataError(f"{reading.what}: pictures differ in shape between batches; resize them alike")
        images.append(batch[0])
        labels.append(batch[1])
        total_bytes += batch[0].nbytes
        if total_bytes > MAX_BYTES:
            raise DataError(
                f"{reading.what}: the loader gave more than {MAX_BYTES / 1024**3:.0f} GB; give fewer or smaller pictures"
            )
    if not images:
        raise DataError(f"{reading.what}: the loader is empty; expected batches (images, labels)")
    return _join(images), _join(labels)


def _join(batches: list[np.ndarray]) -> np.ndarray:
    """The batches as one array; each is freed once it is copied, so that they are never all in memory twice."""
    joined = np.empty((sum(map(len, batches)), *batches[0].shape[1:]), np.result_type(*batches))
    end = len(joined)
    while batches:
        batch = batches.pop()
        joined[end - len(batch) : end] = batch
        end -= len(batch)
    return joined


def _as_batch(value: Any, what: str) -> Batch:
    """Images (B, ...) and labels (B,) of what a loader gave; a single item is a batch of one."""
    pair = _as_pair(value)
    if pair is None:
        came = f"the keys {', '.join(map(str, value))}" if isinstance(value, Mapping) else f"a {type(value).__name__}"
        raise DataError(
            f"{what}: expected batches (images, labels) of tensors, or with one key of {', '.join(IMAGE_KEYS)}"
            f" and one of {', '.join(LABEL_KEYS)}; got {came}"
        )
    images, labels = _as_array(pair[0], what), _as_array(pair[1], what)
    if labels.ndim == 0:
        return images[None], labels[None]
    return images, labels.reshape(-1)


def _batches(source: object, reading: Reading) -> Iterator[Any]:
    """What the source gives; pictures that it would shuffle come in the order of its data set instead."""
    if isinstance(source, DataLoader):
        _warn_of_changing_items(source.dataset, reading)
        order = _shuffled_indices(source)
        loader = source if order is None else _in_order(source, order)
        return _watch(loader, reading, source.dataset, order)
    if _is_numbered(source):
        _warn_of_changing_items(source, reading)
        items = _items(source, reading)
        return _collate(items, reading) if isinstance(source, Dataset) else items
    if isinstance(source, IterableDataset):
        return _collate(_watch(source, reading), reading)
    return _watch(source, reading)


def _is_numbered(source: object) -> bool:
    """Tell whether a source is a data set whose items are asked for by their numbers."""
    if isinstance(source, IterableDataset):
        return False
    return isinstance(source, Dataset) or (not isinstance(source, Iterable) and hasattr(source, "__getitem__"))


def _items(dataset: Any, reading: Reading) -> Iterator[Any]:
    """The items of a data set by their numbers."""
    with _told(reading.what, "its length"):
        count = len(dataset)
    for number in range(count):
        with _told(reading.what, f"item {number}"):
            item = dataset[number]
        yield item


def _collate(items: Iterator[Any], reading: Reading) -> Iterator[Any]:
    """Items joined to batches."""
    first = 0
    while part := list(islice(items, GATHERED)):
        with _told(reading.what, f"items {first} to {first + len(part) - 1} cannot be joined"):
            batch = default_collate(part)
        yield batch
        first += len(part)


def _watch(source: Any, reading: Reading, dataset: object = None, order: Sequence[int] | None = None) -> Iterator[Any]:
    """What an iterable gives; where it fails, the number of the item is looked for in its data set."""
    number = 0
    iterator: Iterator[Any] | None = None
    while True:
        try:
            # A loader's workers are started, and fail, here too.
            iterator = iter(source) if iterator is None else iterator
            value = next(iterator)
        except StopIteration:
            return
        except DataError:
            raise
        # Whatever code of the caller's raises is about the data.
        except Exception as error:
            raise _failure(error, reading.what, number, dataset, order) from error
        yield value
        number += 1


def _failure(error: Exception, what: str, number: int, dataset: object, order: Sequence[int] | None) -> DataError:
    """The error of a source that raised one when its value of this number was asked for."""
    item = None if dataset is None else _failing_item(dataset, order)
    if item is not None:
        return _error(what, f"item {item[0]}", item[1])
    return _error(what, f"batch or item {number}", error)


def _failing_item(dataset: Any, order: Sequence[int] | None) -> tuple[int, Exception] | None:
    """The first item that cannot be read, and why."""
    if isinstance(dataset, IterableDataset):
        return None
    try:
        numbers = range(len(dataset)) if order is None else order
    except TypeError:
        return None
    for number in numbers:
        try:
            dataset[number]
        except Exception as error:
            return number, error
    return None


@contextmanager
def _told(what: str, where: str) -> Iterator[None]:
    """Whatever code of the caller's raises in here is an error in the data at this place."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise _error(what, where, error) from error


def _error(what: str, where: str, error: Exception) -> DataError:
    return DataError(f"{what}: {where}: {_reason(error)}; mend the data, or leave this out of it")


def _reason(error: Exception) -> str:
    """The exception on one line; of one that crossed from a loader's worker, the one that was raised there."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("Original Traceback" in line for line in lines):
        return lines[-1]
    return ": ".join([type(error).__name__, *([" ".join(lines)] if lines else [])])


def _shuffled_indices(loader: DataLoader[Any]) -> Sequence[int] | None:
    """The numbers of the items that a shuffling loader gives, in ascending order; ``None`` where it does not shuffle.

    A run is known by its pictures in their order: shuffled, they would be others each time that it is taken up.
    """
    own_way = type(loader).__iter__ is not DataLoader.__iter__ or loader.batch_size is None
    if own_way or isinstance(loader.dataset, IterableDataset) or type(loader.batch_sampler) is not BatchSampler:
        return None
    sampler = loader.sampler
    if type(sampler) is RandomSampler and not sampler.replacement:
        count = len(loader.dataset)  # type: ignore[arg-type]
        return range(count) if sampler.num_samples == count else None
    if type(sampler) is SubsetRandomSampler:
        return sorted(int(index) for index in sampler.indices)
    return None


def _in_order(loader: DataLoader[Any], order: Sequence[int]) -> DataLoader[Any]:
    """The loader over the same items in this order; none is dropped at the end."""
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=order,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        prefetch_factor=loader.prefetch_factor,
    )


def _warn_of_changing_items(dataset: Any, reading: Reading) -> None:
    """Say where items are other ones each time: such a run cannot be taken up again once it is stopped."""
    if isinstance(dataset, IterableDataset):
        return
    try:
        with _random_states_restored():
            changing = any(_changes(dataset, number) for number in range(min(CHECKED_ITEMS, len(dataset))))
    # What cannot be read is told when it is needed.
    except Exception:
        return
    if changing:
        reading.report(
            f"{reading.what}: its pictures change each time they are read (augmentation); a run on them that is stopped"
            " cannot be taken up again: leave augmentation to recovery.augment"
        )


def _changes(dataset: Any, number: int) -> bool:
    one, other = _as_pair(dataset[number]), _as_pair(dataset[number])
    if one is None or other is None:
        return False
    return not np.array_equal(_as_array(one[0], "a picture"), _as_array(other[0], "a picture"))


@contextmanager
def _random_states_restored() -> Iterator[None]:
    """What is drawn in here is drawn again afterwards: looking at data must not change it."""
    of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)


def _as_array(value: Any, what: str) -> np.ndarray:
    try:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.is_floating_point() else value).numpy()
        return np.asarray(value)
    # Sparse and quantized tensors, nested lists of uneven lengths: each has its own exception.
    except Exception as error:
        raise DataError(f"{what}: expected arrays or dense tensors: {_reason(error)}; convert them first") from error
