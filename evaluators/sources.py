"""Data sets by name, and from what a caller has: arrays, tensors, loaders."""

from __future__ import annotations

import difflib
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..policies.errors import DataError
from .data import DataSet, Pictures, Preprocess, SplitSizes, split
from .fetch import FILES, default_directory, fetch
from .models import FUNCTION, import_function

MAX_BYTES = 8 * 1024**3
MAX_CLASSES = 100_000
PICTURE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
FORMS = ("digits", *FILES, "imagefolder:PATH", "npz:PATH", "package.module:function")
PARTS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}

Values = float | Sequence[float] | None


@dataclass(frozen=True)
class _Options:
    sizes: SplitSizes
    seed: int
    image_size: tuple[int, int] | None
    mean: Values
    std: Values
    limit: int | None


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
    report: Callable[[str], None] = print,
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
    report
        Gets a line for each thing that takes time.

    Raises
    ------
    DataError
        Where the name is unknown, or the data is missing, empty, corrupt or larger than 8 GB.
    """
    options = _Options(sizes or SplitSizes(), seed, image_size, mean, std, limit)
    kind, _, path = name.partition(":")
    if name == "digits":
        return _finish(name, {"train": _digits()}, options, 10)
    if name in FILES:
        return _finish(name, _fetched(name, directory or default_directory(), report), options, 10)
    if kind == "imagefolder":
        parts, classes = _image_folder(Path(path).expanduser(), options)
        return _finish(name, parts, options, classes)
    if kind == "npz":
        return _finish(name, _npz(Path(path).expanduser()), options)
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
) -> DataSet:
    """A data set from what the caller has; the parameters are those of ``load_data``.

    Parameters
    ----------
    data
        A ``DataSet``, taken as it is; ``(images, labels)`` as arrays or tensors, images (N, C, H, W), (N, H, W, C) or
        (N, H, W); a loader of such batches or a torch ``Dataset``; a mapping with ``train`` and perhaps ``validation``
        and ``test``; or a tuple of two or three of these: train and test, or train, validation and test.

    Raises
    ------
    DataError
        Where it is none of these, empty, or larger than 8 GB.
    """
    return _from_object(data, name, _Options(sizes or SplitSizes(), seed, image_size, mean, std, limit))


def _from_object(data: object, name: str, options: _Options) -> DataSet:
    if isinstance(data, DataSet):
        return data
    parts = {part: _pictures(value, f"data set '{name}', {part}") for part, value in _parts(data, name).items()}
    return _finish(name, parts, options)


def _finish(name: str, parts: Mapping[str, Pictures], options: _Options, num_classes: int | None = None) -> DataSet:
    """Limit, split, and decide on the preprocessing."""
    drawn = {part: pictures.take(_drawn(len(pictures), options)) for part, pictures in parts.items()}
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
        )
    except DataError as error:
        if options.limit is None or all(len(part) < options.limit for part in drawn.values()):
            raise
        raise DataError(f"{error}, or raise data.limit, which is {options.limit}") from error
    mean = _per_channel("mean", options.mean, channels) or data.preprocess.mean
    std = _per_channel("std", options.std, channels) or data.preprocess.std
    return replace(data, preprocess=Preprocess(mean, std, options.image_size))


def _drawn(count: int, options: _Options) -> slice | np.ndarray:
    """Which pictures the limit leaves, in order."""
    if options.limit is None or count <= options.limit:
        return slice(None)
    return np.sort(np.random.default_rng([options.seed, 0x11417]).permutation(count)[: options.limit])


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


def _image_folder(root: Path, options: _Options) -> tuple[dict[str, Pictures], int]:
    base = root / "train" if (root / "train").is_dir() else root
    classes = sorted(entry.name for entry in base.iterdir() if _is_class(entry)) if base.is_dir() else []
    if not classes:
        raise DataError(f"no class folders in {base}; expected pictures as {base}/CLASS/NAME.jpg")
    folders = {"train": base}
    if base != root:
        held = {part: root / sub for sub, part in PARTS.items() if part != "train" and (root / sub).is_dir()}
        folders |= held if "test" in held or not held else {"test": held["validation"]}
    listed = {part: _listed(folder, classes, options) for part, folder in folders.items()}
    height, width = options.image_size or (224, 224)
    total = sum(map(len, listed.values())) * 3 * height * width
    if total > MAX_BYTES:
        raise DataError(
            f"{root}: {total / 1024**3:.1f} GB of pictures at {height} x {width}, at most {MAX_BYTES / 1024**3:.0f} are"
            " held in memory; set a smaller data.image_size or data.limit"
        )
    return {part: _decoded(files, height, width) for part, files in listed.items()}, len(classes)


def _is_class(entry: Path) -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _listed(folder: Path, classes: Sequence[str], options: _Options) -> list[tuple[Path, int]]:
    """Pictures with their class index, in the order of their paths; the limit is drawn before anything is decoded."""
    unknown = sorted({entry.name for entry in folder.iterdir() if _is_class(entry)} - set(classes))
    if unknown:
        raise DataError(f"{folder} has classes that the training pictures lack: {', '.join(unknown[:5])}")
    files = [
        (path, index)
        for index, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file()
    ]
    if not files:
        raise DataError(
            f"no pictures in {folder}; expected {folder}/CLASS/NAME with {', '.join(sorted(PICTURE_SUFFIXES))}"
        )
    drawn = _drawn(len(files), options)
    return files[drawn] if isinstance(drawn, slice) else [files[index] for index in drawn]


def _decoded(files: Sequence[tuple[Path, int]], height: int, width: int) -> Pictures:
    images = np.empty((len(files), 3, height, width), np.uint8)
    for index, (path, _) in enumerate(files):
        try:
            with Image.open(path) as picture:
                fitted = ImageOps.fit(picture.convert("RGB"), (width, height), Image.Resampling.BICUBIC)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} cannot be read as a picture: {error}; repair or remove it") from error
        images[index] = np.asarray(fitted).transpose(2, 0, 1)
    return Pictures(images, np.array([label for _, label in files], np.int64))


def _npz(path: Path) -> dict[str, Pictures]:
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
    names = {"x": "train"} if "x" in arrays else {f"x_{key}": part for key, part in PARTS.items()}
    found = {part: (arrays[key], arrays.get(f"y{key[1:]}")) for key, part in names.items() if key in arrays}
    if "train" not in found or any(labels is None for _, labels in found.values()):
        raise DataError(f"{path} holds the arrays {', '.join(arrays) or 'none'}; expected {expected}")
    return {part: _pictures(pair, f"{path}, {part}") for part, pair in found.items()}


def _called(name: str) -> object:
    """What the user's own function returns."""
    try:
        return import_function(name, DataError)()
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"data set '{name}': the function failed: {type(error).__name__}: {error}") from error


def _parts(data: object, name: str) -> dict[str, object]:
    """The value for each of train, validation and test."""
    if isinstance(data, Mapping):
        unknown = [str(key) for key in data if key not in PARTS]
        if unknown or "train" not in data:
            raise DataError(f"data set '{name}': expected train[, validation][, test], got {', '.join(map(str, data))}")
        return {PARTS[key]: value for key, value in data.items()}
    if isinstance(data, tuple | list) and not _is_pair(data) and len(data) in (2, 3):
        return dict(zip(("train", "test") if len(data) == 2 else ("train", "validation", "test"), data))
    return {"train": data}


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], np.ndarray | Tensor)


def _pictures(value: Any, what: str) -> Pictures:
    """Pictures from a pair of arrays or tensors, a loader, or a torch data set."""
    if isinstance(value, Pictures):
        return value
    if not _is_pair(value):
        value = _gathered(DataLoader(value, 256) if isinstance(value, Dataset) else value, what)
    images, labels = _array(value[0]), _array(value[1])
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim == 4 and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if images.nbytes > MAX_BYTES:
        raise DataError(
            f"{what}: {images.nbytes / 1024**3:.1f} GB of pictures, at most {MAX_BYTES / 1024**3:.0f} are held"
        )
    if images.dtype in (np.float16, np.float64):
        images = images.astype(np.float32)
    if images.dtype == np.float32 and not np.isfinite(images).all():
        raise DataError(f"{what}: pictures hold NaN or infinity; expected finite values")
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{what}: expected labels (N,) of integers, got {labels.shape} of {labels.dtype}")
    return Pictures(images, labels.astype(np.int64))


def _gathered(loader: object, what: str) -> tuple[np.ndarray, np.ndarray]:
    """All batches of a loader, joined."""
    if not isinstance(loader, Iterable) or isinstance(loader, np.ndarray | Tensor | str | bytes):
        expected = "(images, labels), a loader of such batches or a torch Dataset"
        raise DataError(f"{what}: expected {expected}, got a {type(loader).__name__}")
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    total = 0
    for batch in loader:
        if not _is_pair(batch):
            raise DataError(f"{what}: expected batches (images, labels) of tensors, got a {type(batch).__name__}")
        images.append(_array(batch[0]))
        labels.append(_array(batch[1]).reshape(-1))
        total += images[-1].nbytes
        if total > MAX_BYTES:
            raise DataError(
                f"{what}: the loader gave more than {MAX_BYTES / 1024**3:.0f} GB; give fewer or smaller pictures"
            )
    if not images:
        raise DataError(f"{what}: the loader is empty; expected batches (images, labels)")
    if len({batch.shape[1:] for batch in images}) != 1:
        raise DataError(f"{what}: pictures differ in shape between batches; resize them alike")
    return np.concatenate(images), np.concatenate(labels)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    return np.asarray(value)
