"""``make`` sets itself up with the first Python that fits; what is missing is said in one line."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import paretopress
import pytest

SETUP = Path(paretopress.__file__).parent / ".ci" / "setup"
TOOLS = ["basename", "cat", "dirname", "grep", "ln", "mkdir", "rm", "sh", "tail"]
SHIM = "echo 'shim: command not found' >&2; exit 127"
TOO_OLD = 'case "$2" in "") exit 0;; *write*) printf 3.9.2;; *) exit 1;; esac'
INTERPRETER = shlex.quote(sys.executable)
WHOLE = f'exec {INTERPRETER} "$@"'
BARE = f'case "$2" in *ensurepip*) exit 1;; esac; [ "$1" = -m ] && exit 1; exec {INTERPRETER} "$@"'
REFUSED = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A package of one line, with the setup, in a folder whose path has blanks."""
    folder = tmp_path / "a folder" / "paretopress-main"
    (folder / ".ci").mkdir(parents=True)
    shutil.copy(SETUP, folder / ".ci")
    (folder / "constraints.txt").touch()
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "tiny"\nversion = "1"\n[project.optional-dependencies]\ndev = []\ndashboard = []\n'
        "[tool.setuptools]\npackages = []\n",
        encoding="utf-8",
    )
    return folder


def set_up(folder: Path, programs: dict[str, str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the setup where PATH holds a few tools and these shell programs alone."""
    path = folder.parent / "bin"
    path.mkdir(exist_ok=True)
    for tool in TOOLS:
        if not (path / tool).exists():
            (path / tool).symlink_to(shutil.which(tool) or tool)
    for name, body in programs.items():
        (path / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (path / name).chmod(0o755)
    environment = {"PATH": str(path), "HOME": str(folder.parent)} | REFUSED | variables
    command = ["/bin/sh", str(folder / ".ci" / "setup")]
    return subprocess.run(
        command, cwd=folder.parent, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize(
    ("programs", "variables", "words"),
    [
        ({}, {}, ["no Python runs here", "python3.11", "PYTHON="]),
        ({"python3.11": SHIM}, {}, ["no Python runs here"]),
        ({"python3.11": SHIM, "python3": TOO_OLD}, {}, ["3.11 or later", "python3 is 3.9.2"]),
        ({"python3": TOO_OLD, "python": BARE}, {}, ["python has no venv or no pip", "uv"]),
        ({"python3.12": BARE}, {}, ["apt install python3.12-venv"]),
        ({"python3": WHOLE}, {"PYTHON": "/no/such python"}, ["/no/such python does not run"]),
        ({"python3": TOO_OLD, "uv": "exit 2"}, {}, ["3.11 or later", "python3 is 3.9.2"]),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    folder: Path, programs: dict[str, str], variables: dict[str, str], words: list[str]
) -> None:
    done = set_up(folder, programs, **variables)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("setup: ") and done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words), done.stderr
    assert not (folder / ".venv").exists()


def test_an_index_that_cannot_be_reached_is_said_in_one_line_and_tried_again(folder: Path) -> None:
    done = set_up(folder, {"python3.11": SHIM, "python3.12": BARE, "python3.13": WHOLE})
    assert done.returncode == 1
    assert done.stdout.startswith("setup: Python 3.") and done.stdout.count("\n") == 1
    assert "index cannot be reached" in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (folder / ".venv" / ".ready").exists()
    # The second try goes on with the environment of the first.
    again = set_up(folder, {"uv": '[ "$1" = pip ]'})
    assert again.returncode == 0, again.stderr
    assert (folder / ".venv" / ".ready").read_text(encoding="utf-8").strip() == str(folder.resolve())
    assert (folder / ".venv" / "types" / "paretopress").samefile(folder)
    # Under another path the programs in it would start the old one's interpreter.
    moved = folder.rename(folder.with_name("moved"))
    elsewhere = set_up(moved, dict.fromkeys(("python3.12", "python3.13", "uv"), SHIM))
    assert elsewhere.returncode == 1 and "no Python runs here" in elsewhere.stderr


def test_uv_makes_the_environment_and_installs_where_it_is_there(folder: Path) -> None:
    log = folder.parent / "uv.log"
    uv = f'echo "$@" >>"{log}"; [ "$1" = pip ] || {INTERPRETER} -m venv --without-pip .venv'
    done = set_up(folder, {"python3.12": BARE, "uv": uv})
    assert done.returncode == 0, done.stderr
    made, installed = log.read_text(encoding="utf-8").splitlines()
    assert made.startswith("venv") and "--python python3.12" in made
    assert installed.startswith("pip install") and installed.endswith("-c constraints.txt -e .[dev,dashboard]")
