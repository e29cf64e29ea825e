"""Tests and checks do not depend on the name or the path of the folder that the repository lies in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import paretopress
import pytest

ROOT = Path(paretopress.__file__).parent
NAMES = ["paretopress-main", "my project", "1st.try", ".hidden", "build", "torch"]
PROBE = """\
from pathlib import Path

import paretopress


def test_the_package_is_the_one_of_this_folder() -> None:
    assert Path(paretopress.__file__).samefile(Path(__file__).parents[1] / "__init__.py")
"""


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources without their history and environment, as an archive holds them, with one quick test."""
    copy = tmp_path_factory.mktemp("a folder.with 2 blanks") / "copy"
    beside = shutil.ignore_patterns(".*", "__pycache__", "build", "configs", "dist", "docs", "runs", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=beside)
    (copy / "tests" / "test_probe.py").write_text(PROBE, encoding="utf-8")
    return copy


@pytest.fixture
def named(copied: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The copy under another name, in a folder that cannot be written to."""
    renamed = copied.rename(copied.with_name(request.param))
    renamed.parent.chmod(0o555)
    yield renamed
    renamed.parent.chmod(0o755)
    renamed.rename(copied)


def run_in(folder: Path, packages: Path, *arguments: str) -> str:
    """What a module prints that runs in a folder and sees the package that ``packages`` links to."""
    environment = os.environ | {"PYTHONPATH": str(packages), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def packages(named: Path, tmp_path: Path) -> Path:
    """A folder that holds the copy as ``paretopress``."""
    (tmp_path / "paretopress").symlink_to(named)
    return tmp_path


@pytest.mark.parametrize("named", NAMES, indirect=True)
def test_the_linter_and_the_formatter_find_nothing(named: Path, packages: Path) -> None:
    run_in(named, packages, "ruff", "check", "--no-cache", ".")
    run_in(named, packages, "ruff", "format", "--no-cache", "--check", ".")


@pytest.mark.parametrize("named", NAMES, indirect=True)
def test_tests_are_collected_and_pass(named: Path, packages: Path) -> None:
    closing = run_in(named, packages, "pytest", "tests/test_probe.py", "-p", "no:cacheprovider")
    assert "1 passed" in closing


@pytest.mark.parametrize("named", ["paretopress-main"], indirect=True)
def test_tests_are_collected_through_a_link_and_from_another_folder(named: Path, packages: Path) -> None:
    link = packages / "paretopress"
    for folder, argument in (
        (link, "tests/test_probe.py"),
        (named / "policies", str(named / "tests" / "test_probe.py")),
    ):
        assert "1 passed" in run_in(folder, packages, "pytest", argument, "-p", "no:cacheprovider")


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "paretopress", "--version"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.stdout == f"{paretopress.__version__}\n"
    wrong = [sys.executable, "-m", "paretopress", "report", str(tmp_path / "nothing")]
    assert subprocess.run(wrong, capture_output=True, check=False, cwd=tmp_path, timeout=60).returncode == 2
