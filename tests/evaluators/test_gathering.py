"""Data sets and loaders of the caller's: what they give, in which order, and what is said where their code fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from paretopress.evaluators.sources import as_dataset, load_data
from paretopress.policies.errors import DataError
from PIL import Image
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

torch.set_num_threads(1)
COUNT = 50
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (COUNT, 3, 6, 6)).astype(np.uint8))
LABELS = torch.arange(COUNT) % 4
DIGEST = as_dataset((IMAGES, LABELS)).digest()


class Items(Dataset[Any]):
    """A data set whose items a function makes."""

    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, number: int) -> Any:
        return self.item(number)


class Stream(IterableDataset[Any]):
    """Items in turn, the seventh of which may fail."""

    def __init__(self, failing: Exception | None = None) -> None:
        self.failing = failing

    def __iter__(self) -> Iterator[Any]:
        for number in range(COUNT):
            if self.failing is not None and number == 7:
                raise self.failing
            yield IMAGES[number], int(LABELS[number])


def failing(number: int) -> Any:
    if number == 7:
        raise OSError("image file is truncated")
    return IMAGES[number], int(LABELS[number])


def named(number: int) -> Any:
    return {"image": IMAGES[number], "label": int(LABELS[number])}


class Rows:
    """As data sets of other libraries are: no torch Dataset, rows by number and in turn."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, number: int) -> Any:
        if number >= COUNT:
            raise IndexError(number)
        picture = Image.fromarray(IMAGES[number].permute(1, 2, 0).numpy())
        return {"image": picture, "label": int(LABELS[number])}


class RowsInTurn(Rows):
    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(COUNT))


@pytest.mark.parametrize(
    "make",
    [
        lambda: TensorDataset(IMAGES, LABELS),
        lambda: Items(lambda number: (IMAGES[number], int(LABELS[number]))),
        lambda: Stream(),
        lambda: Items(named),
        lambda: DataLoader(Items(named), 7),
        lambda: DataLoader(Items(lambda n: {"pixel_values": IMAGES[n], "labels": LABELS[n], "row": n}), 7),
        lambda: {"image": IMAGES, "label": LABELS},
        lambda: Rows(),
        lambda: RowsInTurn(),
        lambda: ((IMAGES[start : start + 9], LABELS[start : start + 9]) for start in range(0, COUNT, 9)),
        lambda: ((image, label) for image, label in zip(IMAGES, LABELS)),
        lambda: DataLoader(TensorDataset(IMAGES, LABELS), batch_size=None),
        lambda: DataLoader(TensorDataset(IMAGES, LABELS), 8, shuffle=True),
        lambda: DataLoader(TensorDataset(IMAGES, LABELS), 8, shuffle=True, drop_last=True),
        lambda: DataLoader(TensorDataset(IMAGES, LABELS), 8, sampler=SubsetRandomSampler(range(COUNT))),
        lambda: {"train": DataLoader(Items(named), 8, shuffle=True)},
    ],
)
def test_all_forms_of_the_same_pictures_are_the_same_data(make: Callable[[], object]) -> None:
    assert as_dataset(make(), report=lambda line: pytest.fail(line)).digest() == DIGEST


def test_a_loader_of_some_items_gives_these_alone() -> None:
    picked = [41, 3, 17, 8, 30, 22, 5, 44, 12, 9]
    loader = DataLoader(TensorDataset(IMAGES, LABELS), 4, sampler=SubsetRandomSampler(picked))
    ordered = sorted(picked)
    assert as_dataset(loader).digest() == as_dataset((IMAGES[ordered], LABELS[ordered])).digest()


def test_a_loader_that_draws_with_weights_is_taken_as_it_comes() -> None:
    sampler = WeightedRandomSampler([1.0] + [0.0] * (COUNT - 1), 30)
    data = as_dataset(DataLoader(TensorDataset(IMAGES, LABELS), 8, sampler=sampler))
    assert np.unique(data.train.images.reshape(len(data.train), -1), axis=0).shape[0] == 1


def test_a_shuffling_loader_keeps_its_own_way_to_join_items() -> None:
    def join(items: list[Any]) -> Any:
        return torch.stack([255 - image for image, _ in items]), torch.tensor([label for _, label in items])

    dataset = Items(lambda number: (IMAGES[number], int(LABELS[number])))
    loader = DataLoader(dataset, 8, shuffle=True, collate_fn=join)
    assert as_dataset(loader).digest() == as_dataset((255 - IMAGES, LABELS)).digest()


def test_a_data_set_that_augments_is_said_and_draws_as_if_nobody_had_looked() -> None:
    noisy = Items(lambda number: (IMAGES[number].float() + torch.rand(3, 6, 6), int(LABELS[number])))
    lines: list[str] = []
    torch.manual_seed(3)
    data = as_dataset(noisy, report=lines.append)
    assert len(lines) == 1 and "pictures change each time they are read" in lines[0]
    torch.manual_seed(3)
    images = torch.stack([IMAGES[number].float() + torch.rand(3, 6, 6) for number in range(COUNT)])
    assert data.digest() == as_dataset((images, LABELS)).digest()


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (Items(failing), "item 7"),
        (DataLoader(Items(failing), 4), "item 7"),
        (DataLoader(Items(failing), 4, shuffle=True), "item 7"),
        (DataLoader(Items(failing), 4, num_workers=1), "item 7"),
        (Stream(OSError("image file is truncated")), "item 7"),
        ((failing(number) for number in range(COUNT)), "item 7"),
    ],
)
def test_what_code_of_the_callers_raises_is_one_sentence_with_the_item(data: object, place: str) -> None:
    with pytest.raises(
        DataError, match=rf"^data set 'data', train: .*{place}: OSError: image file is truncated"
    ) as came:
        as_dataset(data)
    assert "\n" not in str(came.value)


class WithoutLength(Items):
    def __len__(self) -> int:
        raise RuntimeError("the index is missing")


class WithoutStart:
    def __iter__(self) -> Iterator[Any]:
        raise PermissionError("no key")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (WithoutLength(failing), "its length: RuntimeError: the index is missing"),
        (WithoutStart(), "PermissionError: no key"),
        (
            Items(lambda number: (IMAGES[number][:, : 6 - number % 2], 0)),
            "items 0 to 49 cannot be joined: RuntimeError",
        ),
        (Items(lambda number: (Image.new("RGB", (4, 4)), 0)), "items 0 to 49 cannot be joined: TypeError"),
        (Items(lambda number: (IMAGES[number], 0, number)), "expected batches .images, labels."),
        (Items(lambda number: {"image": IMAGES[number]}), "expected batches .* got the keys image"),
        (
            Items(lambda number: {"image": IMAGES[number], "x": IMAGES[number], "label": 0}),
            "got the keys image, x, label",
        ),
        ((torch.eye(4).to_sparse(), LABELS), "expected arrays or dense tensors"),
        ([(IMAGES[:4], LABELS[:4]), (IMAGES[:4, :, :5], LABELS[:4])] * 2, "differ in shape between batches"),
    ],
)
def test_other_faults_of_the_callers_data_are_sentences(data: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        as_dataset(data)


@pytest.mark.parametrize("leaving", [KeyboardInterrupt, SystemExit])
def test_who_leaves_while_the_data_is_read_leaves(leaving: type[BaseException]) -> None:
    def item(number: int) -> Any:
        raise leaving

    with pytest.raises(leaving):
        as_dataset(Items(item))


@pytest.mark.parametrize(
    "turn",
    [
        lambda x: x[:, ::-1],
        lambda x: x[:, :, :, ::-1],
        lambda x: x[::-1, :, ::-1],
        lambda x: np.broadcast_to(x[:1], x.shape),
        lambda x: np.asfortranarray(x),
        lambda x: x.astype(">f4"),
    ],
)
@pytest.mark.parametrize("part", ["train", "test"])
def test_pictures_may_lie_in_memory_in_any_way(turn: Callable[[np.ndarray], np.ndarray], part: str) -> None:
    images, labels = IMAGES.numpy(), LABELS.numpy()
    pictures = turn(images)
    straight = {"train": (images.astype(pictures.dtype), labels), part: (np.array(pictures, order="C"), labels)}
    turned = {"train": (images.astype(pictures.dtype), labels), part: (pictures, labels)}
    one, other = as_dataset(straight), as_dataset(turned)
    assert one.digest() == other.digest()
    assert one.test is not None or part == "train"
    for split in ("train", "validation", "test"):
        batches = zip(one.batches(getattr(one, split), 9), other.batches(getattr(other, split), 9))
        assert all(torch.equal(x, y) for (x, _), (y, _) in batches)


def test_a_default_type_of_float64_changes_no_input() -> None:
    plain = as_dataset((IMAGES, LABELS))
    torch.set_default_dtype(torch.float64)
    try:
        x = plain.preprocess(IMAGES.numpy())
        assert as_dataset((IMAGES, LABELS)).digest() == plain.digest()
    finally:
        torch.set_default_dtype(torch.float32)
    assert x.dtype == torch.float32 and torch.equal(x, plain.preprocess(IMAGES.numpy()))


def test_a_failing_item_of_the_users_own_function_is_named(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing_rows_module.py").write_text(
        "import numpy as np\n"
        "class Rows:\n"
        "    def __len__(self): return 20\n"
        "    def __getitem__(self, i):\n"
        "        if i == 11: raise ValueError('row 11 is\\nbroken')\n"
        "        return np.zeros((3, 4, 4), np.uint8), 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DataError, match="item 11: ValueError: row 11 is broken"):
        load_data("failing_rows_module:Rows")
