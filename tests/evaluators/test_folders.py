"""Folders of pictures: every pixel format, links, classes without pictures, what is left out. No network is used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from paretopress.evaluators.sources import load_data
from paretopress.policies.errors import DataError
from PIL import Image

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
"""Every value of 8 bit once."""


def write(path: Path, pixels: np.ndarray | Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    picture.save(path)


def read(root: Path, lines: list[str] | None = None) -> tuple[np.ndarray, np.ndarray, int]:
    """All pictures and labels, in any order, and the number of classes."""
    data = load_data(f"imagefolder:{root}", image_size=(16, 16), report=[].append if lines is None else lines.append)
    splits = [split for split in (data.train, data.validation, data.test) if split is not None]
    return np.concatenate([s.images for s in splits]), np.concatenate([s.labels for s in splits]), data.num_classes


def two_classes(root: Path, pixels: np.ndarray | Image.Image, name: str, count: int = 6) -> Path:
    """The picture in class b, black ones in class a."""
    for number in range(count):
        write(root / "a" / f"{number}.png", np.zeros((16, 16), np.uint8))
        write(root / "b" / f"{number}{Path(name).suffix}", pixels)
    return root


DEEP = RAMP.astype(np.uint16) * 257
PALETTE = Image.fromarray(RAMP).convert("P")
PALETTE.info["transparency"] = bytes(range(256))


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("grey.png", RAMP),
        ("deep.png", DEEP),
        ("deep.tif", DEEP),
        ("big-endian.tif", DEEP.astype(">u2")),
        ("deep.ppm", Image.fromarray(DEEP)),
        ("float.tif", (RAMP / np.float32(255)).astype(np.float32)),
        ("grey-alpha.png", np.stack([RAMP, RAMP[::-1]], 2)),
        ("colour-alpha.png", np.stack([RAMP] * 3 + [RAMP[::-1]], 2)),
        ("palette-alpha.png", PALETTE),
        ("ink.tif", Image.fromarray(np.stack([255 - RAMP] * 3 + [np.zeros_like(RAMP)], 2), "CMYK")),
    ],
)
def test_every_pixel_format_is_scaled_to_8_bit_by_its_range(tmp_path: Path, name: str, pixels: np.ndarray) -> None:
    images, labels, _ = read(two_classes(tmp_path, pixels, name))
    of_b = images[labels == 1]
    assert np.array_equal(of_b, np.broadcast_to(RAMP, of_b.shape)), name


def test_a_picture_of_one_bit_is_black_and_white(tmp_path: Path) -> None:
    images, labels, _ = read(two_classes(tmp_path, Image.fromarray(RAMP > 127), "bits.png"))
    assert np.array_equal(images[labels == 1][0, 0], np.where(RAMP > 127, 255, 0))


@pytest.mark.parametrize(
    ("pixels", "reason"),
    [
        (RAMP.astype(np.int32) * 1000, "32-bit or signed integers, whose range no file tells"),
        (RAMP.astype(np.float32), "values run from 0 to 255, expected 0 to 1"),
        (np.full((16, 16), np.nan, np.float32), "values run from nan to nan"),
        (np.full((16, 16), -0.5, np.float32), "values run from -0.5 to -0.5"),
    ],
)
def test_a_picture_whose_range_is_not_known_is_refused_by_its_name(
    tmp_path: Path, pixels: np.ndarray, reason: str
) -> None:
    with pytest.raises(DataError, match=rf"b/0\.tif cannot be read as a picture: .*{reason}"):
        read(two_classes(tmp_path, pixels, "p.tif"))


def test_links_to_classes_folders_and_pictures_are_followed(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / "store" / "inner" / f"{number}.png", RAMP)
        write(tmp_path / "store" / f"{number}.png", RAMP)
    root = tmp_path / "root"
    two_classes(root, RAMP, "p.png")
    (root / "c").symlink_to(tmp_path / "store")
    (root / "a" / "more").symlink_to(tmp_path / "store" / "inner")
    (root / "b" / "linked.png").symlink_to(tmp_path / "store" / "0.png")
    _, labels, classes = read(root)
    assert (np.bincount(labels).tolist(), classes) == ([10, 7, 8], 3)


def test_links_that_lead_back_are_not_followed_and_said(tmp_path: Path) -> None:
    root = two_classes(tmp_path / "root", RAMP, "p.png")
    (root / "a" / "all").symlink_to(root)
    (root / "b" / "self").symlink_to(root / "b")
    lines: list[str] = []
    _, labels, _ = read(root, lines)
    assert np.bincount(labels).tolist() == [6, 6]
    assert [line for line in lines if "a/all is not followed" in line]
    assert [line for line in lines if "b/self is not followed" in line]


def test_a_link_to_nowhere_is_refused_by_its_name(tmp_path: Path) -> None:
    two_classes(tmp_path, RAMP, "p.png")
    (tmp_path / "a" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"a/lost\.png is a link to .*nowhere\.png, where no picture lies"):
        read(tmp_path)


def test_a_class_without_pictures_is_refused_with_what_lies_there(tmp_path: Path) -> None:
    two_classes(tmp_path, RAMP, "p.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no pictures in .* for the classes 'empty'; expected .* in every class$"):
        read(tmp_path)
    write(tmp_path / "empty" / "0.gif", RAMP)
    with pytest.raises(DataError, match=r"what is there is not read: 1 \.gif"):
        read(tmp_path)


def test_a_class_that_the_test_pictures_lack_keeps_its_number(tmp_path: Path) -> None:
    two_classes(tmp_path / "train", RAMP, "p.png")
    for number in range(3):
        write(tmp_path / "test" / "b" / f"{number}.png", RAMP)
    data = load_data(f"imagefolder:{tmp_path}", image_size=(16, 16))
    assert data.test is not None and data.test.labels.tolist() == [1, 1, 1] and data.num_classes == 2


def test_endings_are_read_in_any_case_and_others_are_said(tmp_path: Path) -> None:
    two_classes(tmp_path, RAMP, "p.png")
    for number in range(4):
        (tmp_path / "a" / f"{number}.png").rename(tmp_path / "a" / f"{number}.PNG")
    write(tmp_path / "a" / "moving.gif", RAMP)
    (tmp_path / "b" / "notes.txt").write_text("no picture")
    (tmp_path / "b" / ".DS_Store").write_text("no picture")
    write(tmp_path / "stray.png", RAMP)
    lines: list[str] = []
    _, labels, _ = read(tmp_path, lines)
    assert np.bincount(labels).tolist() == [6, 6]
    assert len(lines) == 1 and all(f"1 {ending}" in lines[0] for ending in (".gif", ".txt", ".png"))
    assert "DS_Store" not in lines[0] and "without" not in lines[0]


def test_folders_of_parts_are_never_taken_for_classes(tmp_path: Path) -> None:
    two_classes(tmp_path / "training", RAMP, "p.png")
    two_classes(tmp_path / "validation", RAMP, "p.png")
    with pytest.raises(DataError, match=r"holds 'training', 'validation' and no 'train': these are the parts"):
        read(tmp_path)
    (tmp_path / "training").rename(tmp_path / "train")
    (tmp_path / "validation").rename(tmp_path / "valid")
    lines: list[str] = []
    read(tmp_path, lines)
    assert len(lines) == 1 and "not read are the folders 'valid'" in lines[0]
