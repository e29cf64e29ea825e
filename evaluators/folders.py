"""Pictures from folders: one folder a class, links followed, every pixel format scaled to 8 bit by its own range."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ..policies.errors import DataError
from .data import MAX_BYTES, Pictures

DEFAULT_SIZE = (224, 224)
"""(height, width) in pixels; what most networks for photographs take."""
PICTURE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
PARTS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
NAMES_OF_PARTS = frozenset({*PARTS, "dev", "eval", "holdout", "testing", "training", "valid"})
"""Folders of these names alone are the parts of a data set, never its classes."""
MAX_SHOWN = 5

Draw = Callable[[int], slice | np.ndarray]
"""How many pictures there are -> which of them are used, in order."""
File = tuple[Path, int]
"""A picture and its class index."""


def parts_of(validation_split: str | None) -> dict[str, str]:
    """Return what a source calls its splits -> train, validation or test.

    Parameters
    ----------
    validation_split
        The split whose pictures are for validation, where it was named.
    """
    if validation_split is None or validation_split in PARTS:
        return PARTS
    return {"train": "train", "test": "test", validation_split: "validation"}


def read_folder(
    root: Path,
    size: tuple[int, int] | None,
    draw: Draw,
    report: Callable[[str], None],
    validation_split: str | None = None,
) -> tuple[dict[str, Pictures], int]:
    """Read ``root/CLASS/picture``, or the same below ``train``, ``val`` and ``test``.

    Parameters
    ----------
    size
        (height, width) that pictures are cut and resized to; 224 x 224 where ``None``.
    draw
        Which pictures of a part are read.
    report
        Gets a line where something in the folders is left out.
    validation_split
        The folder of the validation pictures, where it was named.

    Returns
    -------
    tuple
        The pictures of each part, (N, 3, height, width) of uint8, and the number of classes: the class folders of the
        training pictures, in the order of their names.

    Raises
    ------
    DataError
        Where there are no class folders, one of them has no pictures, or a picture cannot be read.
    """
    try:
        files, classes = _list_parts(root, report, validation_split)
    except OSError as error:
        raise DataError(f"{root} cannot be read: {error}; mend its permissions or give another folder") from error
    for part, listed in files.items():
        drawn = draw(len(listed))
        files[part] = listed[drawn] if isinstance(drawn, slice) else [listed[index] for index in drawn]
    height, width = size or DEFAULT_SIZE
    total = sum(map(len, files.values())) * 3 * height * width
    if total > MAX_BYTES:
        raise DataError(
            f"{root}: {total / 1024**3:.1f} GB of pictures at {height} x {width}, at most {MAX_BYTES / 1024**3:.0f} are"
            " held in memory; set a smaller data.image_size or data.limit"
        )
    return {part: _decode(listed, height, width) for part, listed in files.items()}, len(classes)


def _list_parts(
    root: Path, report: Callable[[str], None], validation_split: str | None
) -> tuple[dict[str, list[File]], list[str]]:
    """The pictures of each part and the names of the classes."""
    folders = _folders_of_parts(root, report, validation_split)
    classes = _class_names(folders["train"])
    _refuse_parts_for_classes(folders["train"], classes)
    return {part: _list_pictures(folder, classes, part, report) for part, folder in folders.items()}, classes


def _folders_of_parts(root: Path, report: Callable[[str], None], validation_split: str | None) -> dict[str, Path]:
    """The folder of each part; a flat folder of classes is all training pictures."""
    base = root / "train"
    if not base.is_dir():
        return {"train": root}
    parts = parts_of(validation_split)
    held = {part: root / name for name, part in parts.items() if part != "train" and (root / name).is_dir()}
    if "test" not in held:
        # Where there are validation pictures alone, they are what everybody reports figures on, unless others were named.
        usual = [root / name for name, part in PARTS.items() if part == "validation" and (root / name).is_dir()]
        unused = [folder for folder in usual if validation_split is None or folder != held.get("validation")]
        if unused and validation_split is None:
            held = {"test": unused[-1]}
        elif unused:
            held["test"] = unused[-1]
    read = {"train", *(folder.name for folder in held.values())}
    unknown = [entry.name for entry in _entries(root) if _is_class(entry) and entry.name not in read]
    if unknown:
        report(f"{root}: not read are the folders {_shown(unknown)}; expected {', '.join(PARTS)}")
    return {"train": base} | held


def _class_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in _entries(folder) if _is_class(entry)) if folder.is_dir() else []


def _refuse_parts_for_classes(folder: Path, classes: Sequence[str]) -> None:
    if not classes:
        raise DataError(f"no class folders in {folder}; expected pictures as {folder}/CLASS/NAME.jpg")
    if NAMES_OF_PARTS.issuperset(classes):
        raise DataError(
            f"{folder} holds {_shown(classes)} and no 'train': these are the parts of a data set, not its classes;"
            f" expected {folder}/train/CLASS/NAME.jpg"
        )


def _is_class(entry: Path) -> bool:
    return entry.is_dir() and not _is_hidden(entry)


def _is_hidden(entry: Path) -> bool:
    return entry.name.startswith(".")


def _list_pictures(folder: Path, classes: Sequence[str], part: str, report: Callable[[str], None]) -> list[File]:
    """All pictures with their class index, in the order of their paths."""
    unknown = sorted({entry.name for entry in _entries(folder) if _is_class(entry)} - set(classes))
    if unknown:
        raise DataError(f"{folder} has classes that the training pictures lack: {', '.join(unknown[:MAX_SHOWN])}")
    suffixes = Counter(_suffix(entry) for entry in _entries(folder) if entry.is_file() and not _is_hidden(entry))
    files: list[File] = []
    empty: list[str] = []
    for index, name in enumerate(classes):
        pictures: list[Path] = []
        for path in _walk(folder / name, report) if (folder / name).is_dir() else ():
            if path.suffix.lower() in PICTURE_SUFFIXES:
                pictures.append(path)
            elif not _is_hidden(path):
                suffixes[_suffix(path)] += 1
        if not pictures:
            empty.append(name)
        files.extend((path, index) for path in sorted(pictures))
    unread = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(MAX_SHOWN))
    if not files or (empty and part == "train"):
        there = f"; what is there is not read: {unread}" if unread else ""
        lacking = f" for the classes {_shown(empty)}" if files else ""
        raise DataError(
            f"no pictures in {folder}{lacking}; expected {folder}/CLASS/NAME with {', '.join(sorted(PICTURE_SUFFIXES))}"
            f" in every class{there}"
        )
    if unread:
        report(f"{folder}: not read are files of other kinds or outside of a class: {unread}")
    return files


def _suffix(path: Path) -> str:
    return path.suffix or "without a suffix"


def _walk(folder: Path, report: Callable[[str], None], above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """All files below a folder; links are followed, but for those that lead back to a folder that they lie in."""
    if not above:
        above = _identities(folder.parent)
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        report(f"{folder} is not followed: the link leads back to a folder that it lies in")
        return
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _walk(entry, report, (*above, identity))
        elif entry.is_file():
            yield entry
        elif entry.is_symlink() and entry.suffix.lower() in PICTURE_SUFFIXES:
            raise DataError(f"{entry} is a link to {entry.readlink()}, where no picture lies; repair or remove it")


def _identities(folder: Path) -> tuple[tuple[int, int], ...]:
    """Device and inode of a folder and of all that it lies in, where links and names may differ."""
    statuses = [place.stat() for place in (folder.resolve(), *folder.resolve().parents)]
    return tuple((status.st_dev, status.st_ino) for status in statuses)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def _shown(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:MAX_SHOWN]) + more


def _decode(files: Sequence[File], height: int, width: int) -> Pictures:
    images = np.empty((len(files), 3, height, width), np.uint8)
    for index, (path, _) in enumerate(files):
        try:
            with Image.open(path) as picture:
                fitted = ImageOps.fit(_to_rgb(picture), (width, height), Image.Resampling.BICUBIC)
        # A damaged file may make its decoder fail in any way.
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise DataError(f"{path} cannot be read as a picture: {reason}; repair or remove it") from error
        images[index] = np.asarray(fitted).transpose(2, 0, 1)
    return Pictures(images, np.array([label for _, label in files], np.int64))


def _to_rgb(picture: Image.Image) -> Image.Image:
    """Convert any pixel format to 8-bit RGB, scaled by the range that the format has; transparency is left out.

    Pillow's own conversion clips what is beyond 8 bit, so that a 16-bit picture comes out white.

    Raises
    ------
    DataError
        Where the range of the values is not known.
    """
    if picture.mode.startswith("I;16"):
        return _to_gray(np.asarray(picture), 65_535.0).convert("RGB")
    if picture.mode == "I":
        if picture.format not in ("PNG", "PPM"):
            raise DataError("it holds 32-bit or signed integers, whose range no file tells; store it in 8 or 16 bit")
        # Pillow's form of the 16-bit grey of these formats.
        return _to_gray(np.asarray(picture), 65_535.0).convert("RGB")
    if picture.mode == "F":
        return _to_gray(np.asarray(picture), 1.0).convert("RGB")
    if picture.mode == "P" and isinstance(picture.info.get("transparency"), bytes):
        # The direct way gives the same colours with a warning.
        return picture.convert("RGBA").convert("RGB")
    return picture.convert("RGB")


def _to_gray(values: np.ndarray, highest: float) -> Image.Image:
    """Scale values (H, W) in [0, highest] to 8 bit."""
    if not (values.min(initial=0) >= 0 and values.max(initial=0) <= highest):
        came = f"{values.min():g} to {values.max():g}"
        raise DataError(f"its values run from {came}, expected 0 to {highest:g}; scale them or store it in 8 or 16 bit")
    return Image.fromarray(np.round(values * (255.0 / highest)).astype(np.uint8))
