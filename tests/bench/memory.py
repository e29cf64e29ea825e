"""Memory at the peak while data is read, split, standardised and digested, against the pictures' bytes; JSON on stdout.

Run by ``make bench-memory``. Each way that pictures come is read by a process of its own, which writes nothing but figures;
the peak is the most memory that it held (VmHWM of Linux, set back before the reading) above what it held before. Arrays of
the caller's are there before: the caller holds them besides.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from paretopress.evaluators.data import DataSet, Pictures, SplitSizes, check_measurable, standardise
from paretopress.evaluators.sources import as_dataset, load_data
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

PICTURES, SIDE, CLASSES = 10_000, 224, 10
LIMIT = 2.0
"""Times the pictures' bytes that the peak may be."""


class Stream(IterableDataset[tuple[torch.Tensor, int]]):
    """Pictures that nobody holds."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        generator = np.random.default_rng(0)
        for number in range(self.count):
            yield torch.from_numpy(picture(generator)), number % CLASSES


def picture(generator: np.random.Generator) -> np.ndarray:
    """(3, side, side) of uint8."""
    return generator.integers(0, 256, (3, SIDE, SIDE), np.uint8)


def arrays(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures as a caller has them, and labels."""
    images, generator = np.empty((count, 3, SIDE, SIDE), np.uint8), np.random.default_rng(0)
    for number in range(count):
        images[number] = picture(generator)
    return images, np.arange(count) % CLASSES


def write_npz(folder: Path, count: int) -> Path:
    """The arrays as a file."""
    images, labels = arrays(count)
    np.savez(folder / "pictures.npz", x=images, y=labels)
    return folder / "pictures.npz"


def write_folder(folder: Path, count: int) -> Path:
    """Pictures of the same size as files: some, which links repeat."""
    generator = np.random.default_rng(0)
    for name in range(CLASSES):
        (folder / str(name)).mkdir(parents=True)
    for number in range(count):
        path, shown = (
            folder / str(number % CLASSES) / f"{number}.bmp",
            folder / str(number % CLASSES) / f"{number % 100}.bmp",
        )
        if number < 100:
            Image.fromarray(picture(generator).transpose(1, 2, 0)).save(path)
        else:
            path.symlink_to(shown)
    return folder


def use(data: DataSet) -> DataSet:
    """What a run does with its data before its first candidate."""
    check_measurable(data)
    data.digest()
    standardise(data.train)
    return data


def quiet(line: str) -> None:
    """Nothing is said."""


READERS: dict[str, Callable[[Path, int], DataSet]] = {
    "npz": lambda folder, count: load_data(f"npz:{folder / 'pictures.npz'}", report=quiet),
    "imagefolder": lambda folder, count: load_data(f"imagefolder:{folder / 'folder'}", report=quiet),
    "loader": lambda folder, count: as_dataset(DataLoader(Stream(count), 256), report=quiet),
    "arrays": lambda folder, count: as_dataset(HELD[0], sizes=SplitSizes(), report=quiet),
}
HELD: list[tuple[np.ndarray, np.ndarray]] = []


def memory_bytes(entry: str) -> int:
    """An entry of this process's status: ``VmRSS`` held now, ``VmHWM`` at the peak since it was set back."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{entry}:"))


def measure(source: str, folder: Path, count: int) -> dict[str, float]:
    """Read the pictures in this process."""
    # What is imported late is no picture.
    use(as_dataset(Pictures(np.zeros((200, 3, 8, 8), np.uint8), np.arange(200) % CLASSES), report=quiet))
    if source == "arrays":
        HELD.append(arrays(count))
    before = memory_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    data = use(READERS[source](folder, count))
    size = count * 3 * SIDE * SIDE
    assert data.test is not None and len(data.train) + len(data.validation) + len(data.test) == count
    peak, held = memory_bytes("VmHWM") - before, memory_bytes("VmRSS") - before
    return {"pictures_mb": size / 1e6, "peak_mb": peak / 1e6, "held_mb": held / 1e6, "peak_ratio": peak / size}


def main() -> None:
    """All ways, each in a process of its own; exit code 1 where one takes more than ``LIMIT``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--one", choices=READERS, help="measure this way in this process")
    parser.add_argument("--folder", type=Path, help="where its files lie")
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(chosen.one, chosen.folder, chosen.pictures)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_npz(folder, chosen.pictures)
        write_folder(folder / "folder", chosen.pictures)
        figures = {}
        for source in READERS:
            command = [sys.executable, "-m", "paretopress.tests.bench.memory", "--one", source]
            command += ["--folder", temporary, "--pictures", str(chosen.pictures)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            figures[source] = json.loads(printed.splitlines()[-1])
    print(json.dumps(figures, indent=2))
    sys.exit(any(figure["peak_ratio"] > LIMIT for figure in figures.values()))


if __name__ == "__main__":
    main()
