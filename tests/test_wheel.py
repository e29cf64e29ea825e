"""The wheel holds the whole package and works away from the sources."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import paretopress
import pytest

ROOT = Path(paretopress.__file__).parent
BESIDE = {"build", "configs", "dist", "docs", "runs", "tests"}
"""Folders of the repository that are no part of the package."""


def settings() -> dict[str, object]:
    content = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = content["tool"]["setuptools"]
    assert isinstance(found, dict)
    return found


def package_folders() -> list[Path]:
    """Every folder with Python files, the root first."""
    folders = [ROOT]
    for entry in sorted(ROOT.iterdir()):
        if (
            entry.is_dir()
            and entry.name not in BESIDE
            and not entry.name.startswith(".")
            and entry.suffix != ".egg-info"
        ):
            folders += sorted({file.parent for file in entry.rglob("*.py") if "__pycache__" not in file.parts})
    return folders


def shipped_files() -> set[str]:
    """What the wheel must hold, by its paths there."""
    files = {file for folder in package_folders() for file in folder.iterdir() if file.is_file()}
    code = {file for file in files if file.suffix in (".py", ".jinja") or file.name == "py.typed"}
    return {str(Path("paretopress") / file.relative_to(ROOT)) for file in code}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the sources stay as they are."""
    copied = tmp_path_factory.mktemp("sources") / "paretopress"
    copied.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copied)
    for entry in ROOT.iterdir():
        if (entry.is_dir() and (entry / "__init__.py").is_file()) or entry.name == "tests":
            shutil.copytree(entry, copied / entry.name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*ROOT.glob("*.py"), ROOT / "py.typed"):
        shutil.copy(file, copied)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copied)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel installed in a directory of its own."""
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*command, "--disable-pip-version-check", str(wheel)], check=True, timeout=300)
    return target


def run_installed(installed: Path, elsewhere: Path, code: str, *arguments: str) -> str:
    """What code prints that sees the installed copy and its dependencies, but neither the sources nor where they lie.

    ``-I`` keeps the current directory and ``PYTHONPATH`` away, ``-S`` the ``.pth`` file of the editable install.
    """
    paths = [str(installed), *dict.fromkeys(sysconfig.get_paths()[name] for name in ("purelib", "platlib"))]
    prelude = f"import sys; sys.path[:0] = {paths!r}\nimport paretopress\nassert paretopress.__file__.startswith({paths[0]!r})\n"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, "-I", "-S", "-c", prelude + code, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, cwd=elsewhere, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_folder_of_the_package_is_listed() -> None:
    names = {".".join(("paretopress", *folder.relative_to(ROOT).parts)) for folder in package_folders()}
    assert names == set(settings()["packages"]), "list it under [tool.setuptools] packages"  # type: ignore[call-overload]
    for folder in package_folders():
        assert (folder / "__init__.py").is_file(), f"{folder.relative_to(ROOT)} is no package"


def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert any(name.endswith("LICENSE") for name in archive.namelist())
    assert names == shipped_files()
    assert {Path(name).suffix for name in names} >= {".py", ".jinja", ".typed"}


def test_the_installed_copy_works_in_another_directory(installed: Path, tmp_path: Path) -> None:
    code = (
        "from paretopress.search.cli import run\n"
        "from paretopress.search import config\n"
        "assert config.__file__.startswith(paretopress.__path__[0])\n"
        "assert run(['schema', '--json']) == 0\n"
        "assert run(['init', '--json']) == 0\n"
    )
    schema, starter = (json.loads(line) for line in run_installed(installed, tmp_path, code).splitlines())
    assert "search" in schema["properties"] and "family:digits_cnn" in starter["configuration"]


def test_the_installed_copy_writes_reports(installed: Path, tmp_path: Path) -> None:
    code = (
        "import runpy\n"
        "made = runpy.run_path(sys.argv[1])['make_run'](20)\n"
        "from paretopress.search.report import render\n"
        "print(render(made))\n"
    )
    page = run_installed(installed, tmp_path, code, str(ROOT / "tests" / "search" / "report_fixture.py"))
    assert page.lstrip().lower().startswith("<!doctype html>") and "mnist_lenet5" in page and len(page) > 100_000


def test_the_installed_command_is_the_command_line(installed: Path, tmp_path: Path) -> None:
    code = (
        "from importlib.metadata import distributions\n"
        "(mine,) = distributions(name='paretopress', path=[sys.path[0]])\n"
        "(entry,) = mine.entry_points.select(group='console_scripts')\n"
        "sys.argv[1:] = ['--version']\n"
        "print(entry.name, mine.version)\n"
        "entry.load()()\n"
    )
    assert run_installed(installed, tmp_path, code).split() == ["paretopress", "0.1.0", "0.1.0"]
