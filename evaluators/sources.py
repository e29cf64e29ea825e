"""Data sets by name, and from what a caller has: arrays, tensors, loaders."""

from __future__ import annotations

import difflib
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..policies.errors import DataError
from .data import MAX_BYTES, DataSet, Pictures, Preprocess, SplitSizes, split
from .fetch import FILES, default_directory, fetch
from .folders import PARTS, parts_of, read_folder
from .gathering import Reading, gather_pictures, is_labelled
from .layouts import Report, Takes
from .models import FUNCTION, import_function

MAX_CLASSES = 100_000
FORMS = ("digits", *FILES, "imagefolder:PATH", "npz:PATH", "package.module:function")
SPLIT_NAME = re.compile(r"\w[\w-]*")
"""Names of splits, which are names of folders and arrays too."""

Values = float | Sequence[float] | None


@dataclass(frozen=True)
class _Options:
    sizes: SplitSizes
    seed: int
    image_size: tuple[int, int] | None
    mean: Values
    std: Values
    limit: int | None
    report: Report
    takes: Takes | None
    validation_split: str | None = None

    @property
    def parts(self) -> dict[str, str]:
        """Return what the source calls its splits -> train, validation or test."""
        return parts_of(self.validation_split)

    def reading(self, what: str) -> Reading:
        """How pictures of this name are read."""
        return Reading(what, self.report, self.takes)

    def draw(self, count: int) -> slice | np.ndarray:
        """Which pictures the limit leaves, in order."""
        if self.limit is None or count <= self.limit:
            return slice(None)
        return np.sort(np.random.default_rng([self.seed, 0x11417]).permutation(count)[: self.limit])


def load_data(
    name: str,
    *,
    directory: Path | None = None,
    sizes: SplitSizes | None = None,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    mean: Values = None,
    std: Values = None,
    limit: int | None = None,
    validation_split: str | None = None,
    report: Report = print,
    takes: Takes | None = None,
) -> DataSet:
    """Load a data set by name and split it by the seed.

    Parameters
    ----------
    name
        ``digits``, ``mnist``, ``fashion_mnist``, ``cifar10`` (the last three are fetched where missing);
        ``imagefolder:PATH``: ``PATH/CLASS/picture`` or the same below ``train``, ``val`` and ``test``, where ``val``
        alone serves as the test split; ``npz:PATH`` with ``x_train, y_train[, x_val, y_val][, x_test, y_test]`` or
        ``x, y``; ``package.module:function``, the user's own code, which returns what ``as_dataset`` takes.
    directory
        Where fetched data sets are kept; ``default_directory()`` where ``None``.
    image_size
        (height, width) of the network's input. Folders of pictures are cut to its aspect and resized when read (default
        224 x 224); others are resized on their way into the network.
    mean, std
        For each channel or for all, in units of the [0, 1] scale; by default the training pictures' own for uint8
        pictures, 0 and 1 for float ones.
    limit
        At most so many pictures of each part that the source has, drawn by the seed.
    validation_split
        The split whose pictures are for validation: what the source calls it (a folder, the end of an array's name, a key of
        a mapping); ``validation`` or ``val`` where ``None`` and the source has it.
    report
        Gets a line for each thing that takes time, is left out, or could be read in two ways.
    takes
        Whether the network takes pictures of a shape (C, H, W); it decides where the channels of arrays lie, where their
        shape leaves that open.

    Raises
    ------
    DataError
        Where the name is unknown, or the data is missing, empty, corrupt or larger than 8 GB.
    """
    options = _Options(sizes or SplitSizes(), seed, image_size, mean, std, limit, report, takes, validation_split)
    kind, _, path = name.partition(":")
    if name == "digits":
        return _finish(name, {"train": _digits()}, options, 10, owned=True)
    if name in FILES:
        return _finish(name, _fetched(name, directory or default_directory(), report), options, 10, owned=True)
    if kind == "imagefolder":
        parts, classes = read_folder(Path(path).expanduser(), image_size, options.draw, report, validation_split)
        return _finish(name, parts, options, classes, owned=True)
    if kind == "npz":
        return _finish(name, _npz(Path(path).expanduser(), options), options, owned=True)
    check_name(name)
    return _from_object(_called(name), name, options)


def check_name(name: str) -> None:
    """Raise ``DataError`` where a data set's name is of none of the forms that ``load_data`` takes."""
    if name in ("digits", *FILES) or name.partition(":")[0] in ("imagefolder", "npz") or FUNCTION.fullmatch(name):
        return
    near = difflib.get_close_matches(name, FORMS, 1)
    raise DataError(
        f"unknown data set '{name}'; expected {', '.join(FORMS)}" + (f"; did you mean {near[0]}?" if near else "")
    )


def as_dataset(
    data: object,
    *,
    name: str = "data",
    sizes: SplitSizes | None = None,
    seed: int = 0,
    image_size: tuple[int, int] | None = None,
    mean: Values = None,
    std: Values = None,
    limit: int | None = None,
    validation_split: str | None = None,
    report: Report = print,
    takes: Takes | None = None,
) -> DataSet:
    """A data set from what the caller has; the parameters are those of ``load_data``.

    Parameters
    ----------
    data
        A ``DataSet``, taken as it is; ``(images, labels)`` as arrays or tensors, images (N, C, H, W), (N, H, W, C) or
        (N, H, W); a loader of such batches, a torch ``Dataset`` or anything that gives items, as pairs or as mappings such
        as ``{"image": ..., "label": ...}``; a mapping with ``train`` and perhaps ``validation`` and ``test``; or a tuple
        of two or three of these: train and test, or train, validation and test. What a torch ``DataLoader`` shuffles is
        read in the order of its data set.

    Raises
    ------
    DataError
        Where it is none of these, empty, or larger than 8 GB, or where code of the caller's fails.
    """
    options = _Options(sizes or SplitSizes(), seed, image_size, mean, std, limit, report, takes, validation_split)
    return _from_object(data, name, options)


def _from_object(data: object, name: str, options: _Options) -> DataSet:
    if isinstance(data, DataSet):
        if options.validation_split not in (None, "validation", "val"):
            raise _no_split(name, options, ("train", "validation", "test"))
        return data
    values = _parts(data, name, options)
    parts = {
        part: gather_pictures(value, options.reading(f"data set '{name}', {part}")) for part, value in values.items()
    }
    gathered = not any(isinstance(value, Pictures) or is_labelled(value) for value in values.values())
    return _finish(name, parts, options, owned=gathered)


def _finish(
    name: str, parts: Mapping[str, Pictures], options: _Options, num_classes: int | None = None, owned: bool = False
) -> DataSet:
    """Limit, split, and decide on the preprocessing; pictures that are ours are put in order where they lie."""
    if options.validation_split is not None and "validation" not in parts:
        raise _no_split(name, options, parts)
    drawn = {part: pictures.take(options.draw(len(pictures))) for part, pictures in parts.items()}
    bound = num_classes or MAX_CLASSES
    for part, pictures in drawn.items():
        lowest, highest = (int(pictures.labels.min()), int(pictures.labels.max())) if len(pictures) else (0, 0)
        if lowest < 0 or highest >= bound:
            raise DataError(
                f"data set '{name}', {part}: labels run from {lowest} to {highest}; expected 0 to {bound - 1} at most"
            )
        if pictures.images.shape[1:] != drawn["train"].images.shape[1:]:
            shapes = f"{pictures.images.shape[1:]}, those of train {drawn['train'].images.shape[1:]}"
            raise DataError(f"data set '{name}': pictures of {part} have the shape {shapes}; make them alike")
    channels = drawn["train"].images.shape[1]
    plain = Preprocess((0.0,) * channels, (1.0,) * channels)
    floating = drawn["train"].images.dtype == np.float32
    try:
        data = split(
            name,
            drawn["train"],
            drawn.get("test"),
            options.sizes,
            options.seed,
            preprocess=plain if floating else None,
            num_classes=num_classes,
            validation=drawn.get("validation"),
            owned=owned,
        )
    except DataError as error:
        if options.limit is None or all(len(part) < options.limit for part in drawn.values()):
            raise
        raise DataError(f"{error}, or raise data.limit, which is {options.limit}") from error
    mean = _per_channel("mean", options.mean, channels) or data.preprocess.mean
    std = _per_channel("std", options.std, channels) or data.preprocess.std
    return replace(data, preprocess=Preprocess(mean, std, options.image_size))


def _no_split(name: str, options: _Options, parts: Iterable[str]) -> DataError:
    return DataError(
        f"data.validation_from: data set '{name}' has no split '{options.validation_split}' beside {', '.join(parts)};"
        " expected training, testing or the name of one that it has"
    )


def _per_channel(what: str, values: Values, channels: int) -> tuple[float, ...] | None:
    if values is None:
        return None
    each = tuple(map(float, values)) if isinstance(values, Sequence) else (float(values),) * channels
    if len(each) == 1:
        each *= channels
    if len(each) != channels or not np.isfinite(each).all() or (what == "std" and min(each) <= 0):
        raise DataError(f"{what}: expected {channels} finite values (std above 0), one a channel; got {values}")
    return each


def _digits() -> Pictures:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    return Pictures(images, digits.target.astype(np.int64))


def _fetched(name: str, directory: Path, report: Callable[[str], None]) -> dict[str, Pictures]:
    folder = directory / name
    if not all((folder / file).is_file() for file in FILES[name]):
        fetch(name, directory, report)
    if name == "cifar10":
        batches = [_read(folder / file, name, _cifar_batch) for file in FILES[name]]
        joined = [np.concatenate(arrays) for arrays in zip(*batches[:-1])]
        return {"train": Pictures(joined[0], joined[1]), "test": Pictures(*batches[-1])}
    parts = {}
    for part, stem in (("train", "train"), ("test", "t10k")):
        images = _read(folder / f"{stem}-images-idx3-ubyte", name, lambda content: _idx(content, 3))
        path = folder / f"{stem}-labels-idx1-ubyte"
        labels = _read(path, name, lambda content: _idx(content, 1))
        if len(images) != len(labels):
            raise _corrupt(path, f"has {len(labels)} labels for {len(images)} pictures", name)
        parts[part] = Pictures(images[:, None], labels.astype(np.int64))
    return parts


def _read(path: Path, name: str, parse: Callable[[bytes], Any]) -> Any:
    try:
        if path.stat().st_size > 2 * FILES[name][path.name].size_bytes:
            raise ValueError(f"has {path.stat().st_size} bytes, far more than expected")
        return parse(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _corrupt(path, str(error), name) from error


def _corrupt(path: Path, fact: str, name: str) -> DataError:
    return DataError(f"{path} {fact}; fetch it anew: paretopress data fetch {name}")


def _idx(content: bytes, dims: int) -> np.ndarray:
    """An array of unsigned bytes in the idx format: magic 0x000008NN, NN big-endian sizes, the values."""
    start = 4 * (dims + 1)
    if len(content) < start:
        raise ValueError(f"has {len(content)} bytes, too short for its header" if content else "is empty")
    magic, *shape = struct.unpack(f">{dims + 1}I", content[:start])
    if magic != 0x0800 + dims:
        raise ValueError(f"starts with {magic:#010x}, expected {0x0800 + dims:#010x}")
    expected = start + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise ValueError(f"has {len(content)} bytes, expected {expected} by its header")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _cifar_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) from CIFAR-10's binary version: rows of a label and three planes."""
    if not content or len(content) % 3073:
        raise ValueError(f"has {len(content)} bytes, expected a multiple of 3073" if content else "is empty")
    rows = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].astype(np.int64)


def _npz(path: Path, options: _Options) -> dict[str, Pictures]:
    expected = "x_train, y_train[, x_val, y_val][, x_test, y_test] or x, y"
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
        if total > MAX_BYTES:
            raise DataError(f"{path} holds {total / 1024**3:.1f} GB, at most {MAX_BYTES / 1024**3:.0f} are read")
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as .npz: {error}; expected arrays {expected} without objects"
        ) from error
    names = {"x": "train"} if "x" in arrays else {f"x_{key}": part for key, part in options.parts.items()}
    found = {part: (arrays[key], arrays.get(f"y{key[1:]}")) for key, part in names.items() if key in arrays}
    if "train" not in found or any(labels is None for _, labels in found.values()):
        raise DataError(f"{path} holds the arrays {', '.join(arrays) or 'none'}; expected {expected}")
    return {part: gather_pictures(pair, options.reading(f"{path}, {part}")) for part, pair in found.items()}


def _called(name: str) -> object:
    """What the user's own function returns."""
    try:
        return import_function(name, DataError)()
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"data set '{name}': the function failed: {type(error).__name__}: {error}") from error


def _parts(data: object, name: str, options: _Options) -> dict[str, object]:
    """The value for each of train, validation and test."""
    if is_labelled(data):
        return {"train": data}
    if isinstance(data, Mapping):
        unknown = [str(key) for key in data if key not in PARTS and key not in options.parts]
        if unknown or "train" not in data:
            raise DataError(f"data set '{name}': expected train[, validation][, test], got {', '.join(map(str, data))}")
        return {options.parts[key]: value for key, value in data.items() if key in options.parts}
    if isinstance(data, tuple | list) and len(data) in (2, 3):
        return dict(zip(("train", "test") if len(data) == 2 else ("train", "validation", "test"), data))
    return {"train": data}
