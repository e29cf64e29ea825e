"""Data sets by name, from files and from what a caller has. No network is used."""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from paretopress.evaluators import folders, gathering
from paretopress.evaluators import sources as module
from paretopress.evaluators.data import DataSet, SplitSizes
from paretopress.evaluators.fetch import FILES
from paretopress.evaluators.sources import as_dataset, load_data
from paretopress.policies.errors import DataError
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)


def quiet(line: str) -> None:
    """Reports of progress are of no account here."""


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">{array.ndim + 1}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, count: int = 40) -> None:
    folder.mkdir(parents=True)
    for stem, number in (("train", count), ("t10k", count // 2)):
        images = np.random.default_rng(number).integers(0, 256, (number, 28, 28), np.uint8)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx((np.arange(number) % 10).astype(np.uint8)))


def pair(count: int = 20, dtype: Any = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (count, 3, 4, 4)).astype(dtype)
    return images, np.arange(count) % 3


def write_folder(root: Path, count: int = 5, classes: str = "ab") -> None:
    for index, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (20 + number, 10), (100 * index, 0, 50)).save(root / name / f"{number}.png")


def test_digits_are_split_by_the_seed() -> None:
    data, again, other = load_data("digits"), load_data("digits"), load_data("digits", seed=1)
    assert data.digest() == again.digest() != other.digest()
    assert data.input_shape == (1, 8, 8) and data.num_classes == 10
    assert data.test is not None and len(data.test) == 359
    assert len(data.train) + len(data.validation) + len(data.test) == 1797
    assert data.train.images.dtype == np.uint8 and data.train.images.max() == 255
    assert 0 < data.preprocess.mean[0] < 1


def test_idx_files_are_read_with_their_own_test_split(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    data = load_data("mnist", directory=tmp_path, sizes=SplitSizes(validation=10), report=quiet)
    assert (len(data.train), len(data.validation), len(data.test or ())) == (30, 10, 20)
    assert data.input_shape == (1, 28, 28) and data.num_classes == 10
    x, y = next(data.batches(data.test, 4)) if data.test else pytest.fail("no test split")
    assert x.shape == (4, 1, 28, 28) and y.tolist() == [0, 1, 2, 3]


def test_cifar_batches_are_read_plane_by_plane(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    row = bytes([7]) + bytes([1]) * 1024 + bytes([2]) * 1024 + bytes([3]) * 1024
    for file in FILES["cifar10"]:
        (tmp_path / "cifar10" / file).write_bytes(row * 2)
    data = load_data("cifar10", directory=tmp_path, report=quiet)
    assert len(data.train) + len(data.validation) == 10
    assert data.test is not None and data.test.images[0, :, 0, 0].tolist() == [1, 2, 3]
    assert set(data.test.labels.tolist()) == {7} and data.num_classes == 10


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b"", "is empty"),
        (b"\0\0", "too short"),
        (b"\x1f\x8b\x08\x00" * 5, "starts with 0x1f8b0800, expected 0x00000803"),
        (idx(np.zeros((40, 28, 28), np.uint8))[:-1], "expected 31376 by its header"),
        (idx(np.zeros((40, 28, 28), np.uint8)) + b"x", "expected 31376 by its header"),
        (struct.pack(">4I", 0x803, 2**31, 2**31, 2**31), "by its header"),
        (idx(np.zeros((39, 28, 28), np.uint8)), "has 40 labels for 39 pictures"),
    ],
)
def test_a_corrupt_idx_file_is_named_with_what_to_do(tmp_path: Path, content: bytes, fact: str) -> None:
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=rf"train-.*{fact}.*paretopress data fetch mnist"):
        load_data("mnist", directory=tmp_path, report=quiet)


@pytest.mark.parametrize(("content", "fact"), [(b"", "is empty"), (b"x" * 3074, "multiple of 3073")])
def test_a_corrupt_cifar_file_is_named_with_what_to_do(tmp_path: Path, content: bytes, fact: str) -> None:
    (tmp_path / "cifar10").mkdir()
    for file in FILES["cifar10"]:
        (tmp_path / "cifar10" / file).write_bytes(content)
    with pytest.raises(DataError, match=rf"data_batch_1.bin.*{fact}.*paretopress data fetch cifar10"):
        load_data("cifar10", directory=tmp_path, report=quiet)


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").write_bytes(idx(np.full(20, 11, np.uint8)))
    with pytest.raises(DataError, match="test: labels run from 11 to 11"):
        load_data("mnist", directory=tmp_path, report=quiet)


def test_a_missing_data_set_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []

    def fetch(name: str, directory: Path, report: Callable[[str], None]) -> None:
        fetched.append(name)
        report("fetching")
        write_mnist(directory / name)

    monkeypatch.setattr(module, "fetch", fetch)
    lines: list[str] = []
    for _ in range(2):
        load_data("fashion_mnist", directory=tmp_path, report=lines.append)
    assert fetched == ["fashion_mnist"] and lines == ["fetching"]


def test_a_flat_folder_of_classes_is_split(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    data = load_data(f"imagefolder:{tmp_path}", image_size=(6, 8))
    assert data.input_shape == (3, 6, 8) and data.num_classes == 2
    assert len(data.train) + len(data.validation) + len(data.test or ()) == 10
    for images, label in zip(data.train.images, data.train.labels):
        assert images[:, 0, 0].tolist() == [100 * label, 0, 50]


def test_folders_of_parts_are_kept_apart(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "val", 2)
    only_val = load_data(f"imagefolder:{tmp_path}", image_size=(4, 4))
    assert len(only_val.test or ()) == 4 and len(only_val.train) + len(only_val.validation) == 10
    write_folder(tmp_path / "test", 3)
    both = load_data(f"imagefolder:{tmp_path}", image_size=(4, 4))
    assert (len(both.train), len(both.validation), len(both.test or ())) == (10, 4, 6)


def test_a_folder_of_any_name_gives_the_validation_pictures_and_val_is_then_tested_on(tmp_path: Path) -> None:
    for name, count in (("train", 5), ("val", 2), ("further", 3)):
        write_folder(tmp_path / name, count)

    def sizes(split: str | None) -> tuple[int, int, int, str, str]:
        data = load_data(f"imagefolder:{tmp_path}", image_size=(4, 4), validation_split=split)
        return len(data.train), len(data.validation), len(data.test or ()), data.validation_from, data.test_from

    assert sizes("further") == (10, 6, 4, "own", "own")
    assert sizes(None) == (9, 1, 4, "training", "own")
    assert sizes("val") == sizes("validation") == (8, 4, 2, "own", "training"), "one folder is not used twice"
    write_folder(tmp_path / "test", 1)
    assert sizes("further") == (10, 6, 2, "own", "own")
    assert sizes("val") == (10, 4, 2, "own", "own")
    with pytest.raises(DataError, match="no split 'other' beside train, test"):
        sizes("other")


def test_an_array_or_entry_of_any_name_gives_the_validation_pictures(tmp_path: Path) -> None:
    images, labels = pair()
    parts = {"train": (images, labels), "val": (images[:3], labels[:3]), "further": (images[:6], labels[:6])}
    np.savez(
        tmp_path / "d.npz",
        **{f"{axis}_{name}": array for name, both in parts.items() for axis, array in zip("xy", both)},
    )
    for split, count in (("further", 6), ("val", 3), ("validation", 3), (None, 3)):
        assert len(load_data(f"npz:{tmp_path / 'd.npz'}", validation_split=split).validation) == count
    assert len(as_dataset(parts, validation_split="further").validation) == 6
    with pytest.raises(DataError, match="expected train"):
        as_dataset(parts)
    with pytest.raises(DataError, match="no split 'other'"):
        as_dataset({"train": (images, labels)}, validation_split="other")
    data = as_dataset({"train": (images, labels)})
    with pytest.raises(DataError, match="no split 'other'"):
        as_dataset(data, validation_split="other")


def test_pictures_are_224_by_default_and_limited_before_they_are_read(tmp_path: Path) -> None:
    write_folder(tmp_path, 10)
    data = load_data(f"imagefolder:{tmp_path}", limit=10)
    assert data.input_shape == (3, 224, 224)
    assert len(data.train) + len(data.validation) + len(data.test or ()) == 10


def test_an_unreadable_picture_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "b" / "3.png").write_bytes((tmp_path / "b" / "3.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"b/3\.png cannot be read as a picture"):
        load_data(f"imagefolder:{tmp_path}", image_size=(4, 4))


def test_folders_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no class folders"):
        load_data(f"imagefolder:{tmp_path / 'lost'}")
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", 1, "abz")
    with pytest.raises(DataError, match="classes that the training pictures lack: z"):
        load_data(f"imagefolder:{tmp_path}")
    monkeypatch.setattr(folders, "MAX_BYTES", 1000)
    with pytest.raises(DataError, match=r"data.image_size or data.limit"):
        load_data(f"imagefolder:{tmp_path / 'train'}")
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="no pictures in"):
        load_data(f"imagefolder:{tmp_path / 'empty'}")


def test_npz_parts_are_read_and_channels_moved_to_the_front(tmp_path: Path) -> None:
    images, labels = pair()
    last = images.transpose(0, 2, 3, 1)
    np.savez(
        tmp_path / "d.npz", x_train=last, y_train=labels, x_val=last[:5], y_val=labels[:5], x_test=last, y_test=labels
    )
    data = load_data(f"npz:{tmp_path / 'd.npz'}")
    assert (len(data.train), len(data.validation), len(data.test or ())) == (20, 5, 20)
    assert np.array_equal(data.test.images, images)
    np.savez(tmp_path / "xy.npz", x=images.astype(np.float32), y=labels)
    assert len(load_data(f"npz:{tmp_path / 'xy.npz'}").test or ()) == 4


def test_an_npz_with_objects_or_other_names_is_refused(tmp_path: Path) -> None:
    images, labels = pair()
    np.savez(tmp_path / "o.npz", x=np.array([{}], object), y=labels)
    np.savez(tmp_path / "n.npz", pictures=images, y=labels)
    (tmp_path / "e.npz").write_bytes(b"")
    with pytest.raises(DataError, match=r"o\.npz cannot be read"):
        load_data(f"npz:{tmp_path / 'o.npz'}")
    with pytest.raises(DataError, match="holds the arrays pictures, y; expected x_train"):
        load_data(f"npz:{tmp_path / 'n.npz'}")
    with pytest.raises(DataError, match=r"e\.npz cannot be read"):
        load_data(f"npz:{tmp_path / 'e.npz'}")


def test_the_users_own_function_gives_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "import numpy as np\n"
        "def pair():\n    return np.zeros((20, 1, 4, 4), np.uint8), np.arange(20) % 2\n"
        "def parts():\n    return pair(), pair()\n"
        "def broken():\n    raise KeyError('disk')\n"
        "def leaving():\n    raise SystemExit(0)\n"
    )
    name = f"data_{hashlib.md5(text.encode()).hexdigest()[:8]}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert len(load_data(f"{name}:pair").test or ()) == 4
    assert len(load_data(f"{name}:parts").test or ()) == 20
    with pytest.raises(DataError, match="the function failed: KeyError: 'disk'"):
        load_data(f"{name}:broken")
    with pytest.raises(DataError, match="the function failed: SystemExit: 0"):
        load_data(f"{name}:leaving")


@pytest.mark.parametrize(("name", "hint"), [("minst", "did you mean mnist"), ("cifar100", "did you mean cifar10")])
def test_an_unknown_name_lists_the_known(name: str, hint: str) -> None:
    with pytest.raises(DataError, match=rf"digits, mnist, .*package.module:function.*{hint}"):
        load_data(name)


def test_arrays_tensors_and_loaders_of_the_same_pictures_are_the_same_data() -> None:
    images, labels = pair()
    tensors = (torch.from_numpy(images), torch.from_numpy(labels))
    forms: list[object] = [
        (images, labels),
        tensors,
        TensorDataset(*tensors),
        DataLoader(TensorDataset(*tensors), batch_size=7),
        {"train": (images, labels)},
        (images.transpose(0, 2, 3, 1), labels.tolist()),
    ]
    digests = {as_dataset(form).digest() for form in forms}
    assert len(digests) == 1


def test_parts_given_by_the_caller_are_kept() -> None:
    images, labels = pair()
    data = as_dataset({"train": (images, labels), "val": (images[:4], labels[:4]), "test": (images[4:9], labels[4:9])})
    assert (len(data.train), len(data.validation), len(data.test or ())) == (20, 4, 5)
    same = as_dataset(((images, labels), (images[:4], labels[:4]), (images[4:9], labels[4:9])))
    assert same.digest() == data.digest()
    assert as_dataset(data) is data


def test_preprocessing_is_the_pictures_own_for_bytes_and_none_for_floats() -> None:
    images, labels = pair()
    assert as_dataset((images, labels)).preprocess.mean != (0.0, 0.0, 0.0)
    plain = as_dataset(pair(dtype=np.float64)).preprocess
    assert (plain.mean, plain.std) == ((0.0,) * 3, (1.0,) * 3)
    given: DataSet = as_dataset((images, labels), mean=0.5, std=(0.1, 0.2, 0.3), image_size=(8, 6))
    assert (given.preprocess.mean, given.preprocess.std) == ((0.5,) * 3, (0.1, 0.2, 0.3))
    assert given.input_shape == (3, 8, 6)
    with pytest.raises(DataError, match="mean: expected 3 finite values"):
        as_dataset((images, labels), mean=(0.5, 0.5))


def test_the_limit_draws_by_the_seed() -> None:
    images, labels = pair(100)
    first, again, other = (as_dataset((images, labels), limit=30, seed=seed) for seed in (0, 0, 1))
    assert len(first.train) + len(first.validation) + len(first.test or ()) == 30
    assert first.digest() == again.digest() != other.digest()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((3, 1, 4, 4), np.uint8), "expected .*images, labels"),
        ((np.zeros((3, 1, 4, 4), np.uint8), np.zeros((3, 2), np.int64)), r"labels \(N,\) of integers, got \(3, 2\)"),
        ((np.zeros((3, 1, 4, 4), np.uint8), np.zeros(3)), "float64"),
        ((np.zeros((3, 1, 4, 4), np.int64), np.zeros(3, int)), "int64; convert them first"),
        ((np.full((3, 1, 4, 4), np.nan), np.zeros(3, int)), "NaN"),
        ((np.zeros((3, 1, 4, 4), np.uint8), np.full(3, -1)), "labels run from -1"),
        ((np.zeros((0, 1, 4, 4), np.uint8), np.zeros(0, int)), "empty"),
        ({"test": pair()}, "expected train"),
        ([], "loader is empty"),
        ([{"image": 1}], "expected batches"),
        ((pair(), (np.zeros((3, 1, 4, 4), np.uint8), np.zeros(3, int))), "make them alike"),
        (3, "got a int"),
    ],
)
def test_data_of_another_form_is_refused(data: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_dataset(data)


def test_a_loader_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "MAX_BYTES", 10_000)
    endless = iter(lambda: (torch.zeros(8, 1, 4, 4), torch.zeros(8, dtype=torch.int64)), None)
    with pytest.raises(DataError, match="the loader gave more than"):
        as_dataset(endless)
