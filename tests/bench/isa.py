"""Pass the test suite under seven settings of instruction sets and threads; a test that changes its verdict hangs on last bits.

Run by ``make test-isa``. Each setting is environment variables, which every process of a test inherits. What came out is kept by
setting in ``runs/isa.json``; a setting that these sources and this machine have finished is not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import paretopress
from paretopress.policies.files import write_text

ROOT = Path(paretopress.__file__).resolve().parent
NO_SOURCES = {"__pycache__", "build", "dist", "runs"}
PACKAGES = ("numpy", "onnxruntime", "scipy", "scikit-learn", "torch")
LEVELS = ("DEFAULT", "AVX2", "AVX512")


@dataclass(frozen=True)
class Setting:
    """A name, the variables that make it, and the least instruction set (of ``LEVELS``) that it needs."""

    name: str
    variables: dict[str, str]
    level: str = "DEFAULT"


def by_onednn(isa: str, mkl: str) -> dict[str, str]:
    """Variables that hold convolutions to one instruction set, and linear layers, which MKL multiplies."""
    return {"ONEDNN_MAX_CPU_ISA": isa, "MKL_ENABLE_INSTRUCTIONS": mkl}


SETTINGS = (
    Setting("aten default", {"ATEN_CPU_CAPABILITY": "default"}),
    Setting("aten avx2", {"ATEN_CPU_CAPABILITY": "avx2"}, "AVX2"),
    Setting("aten avx512", {"ATEN_CPU_CAPABILITY": "avx512"}, "AVX512"),
    Setting("onednn sse41", by_onednn("SSE41", "AVX2"), "AVX2"),
    Setting("onednn avx2", by_onednn("AVX2", "AVX2"), "AVX2"),
    Setting("onednn avx512", by_onednn("AVX512_CORE", "AVX512"), "AVX512"),
    Setting("one thread", {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}),
)
SET_BY_US = {name for setting in SETTINGS for name in setting.variables}


@dataclass(frozen=True)
class Outcome:
    """What a run of the suite came to; ``failures`` names the tests that failed or broke."""

    passed: int
    failed: int
    skipped: int
    seconds: float
    failures: list[str]


def digest_sources(root: Path) -> str:
    """Hash every file of the repository by path and content, but for what is made from them."""
    total = hashlib.sha256()
    for folder, inner, files in os.walk(root):
        inner[:] = sorted(
            name
            for name in inner
            if name not in NO_SOURCES and not name.startswith(".") and not name.endswith(".egg-info")
        )
        for name in sorted(files):
            path = Path(folder, name)
            total.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
            total.update(path.read_bytes())
    return total.hexdigest()


def describe_machine(level: str) -> dict[str, str]:
    """Say what a verdict may depend on: the processor's level, Python and the libraries that calculate."""
    return {name: version(name) for name in PACKAGES} | {"python": platform.python_version(), "level": level}


def read_level() -> str:
    """Ask torch in a process of its own, which none of the variables reaches, for the processor's instruction set."""
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    environment = environment_of(Setting("as it is", {}))
    done = subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip() if done.stdout.strip() in LEVELS else "DEFAULT"


def environment_of(setting: Setting) -> dict[str, str]:
    """Make the environment of a setting: none of another setting's variables is inherited."""
    return {name: value for name, value in os.environ.items() if name not in SET_BY_US} | setting.variables


def read_outcome(junit: Path, seconds: float) -> Outcome:
    """Count verdicts in a JUnit file of pytest's."""
    (suite,) = ElementTree.parse(junit).getroot().iter("testsuite")
    total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    broken = (case for case in suite.iter("testcase") if {"failure", "error"} & {part.tag for part in case})
    names = sorted({f"{case.get('classname')}::{case.get('name')}" for case in broken})
    return Outcome(total - failed - skipped, failed, skipped, round(seconds, 1), names)


def run_suite(setting: Setting, folder: Path, arguments: Sequence[str]) -> Outcome:
    """Run pytest under a setting; its output and its JUnit file stay in ``folder``.

    Raises
    ------
    RuntimeError
        Where pytest came to no verdict (a wrong argument, an interruption, nothing collected).
    """
    folder.mkdir(parents=True, exist_ok=True)
    junit, log = (folder / f"{setting.name.replace(' ', '-')}.{ending}" for ending in ("xml", "log"))
    command = [sys.executable, "-m", "pytest", *arguments, f"--junitxml={junit}"]
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            command, cwd=ROOT, env=environment_of(setting), stdout=output, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"pytest came to no verdict under '{setting.name}' (exit code {done.returncode}); see {log}")
    return read_outcome(junit, time.monotonic() - start)


def run_settings(
    file: Path,
    level: str,
    tree: dict[str, object],
    run: Callable[[Setting], Outcome],
    say: Callable[[str], object] = print,
) -> bool:
    """Run what ``file`` does not hold for this tree, keep each outcome at once, and say a line each; whether all passed."""
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if kept.get("tree") != tree:
        kept = {"tree": tree, "settings": {}}
    outcomes = kept["settings"]
    for setting in SETTINGS:
        if LEVELS.index(setting.level) > LEVELS.index(level):
            say(f"{setting.name:14} skipped: this processor has no {setting.level}")
            continue
        if setting.name not in outcomes:
            outcomes[setting.name] = asdict(run(setting)) | {"variables": setting.variables}
            write_text(file, json.dumps(kept, indent=2) + "\n")
        say(describe_outcome(setting.name, outcomes[setting.name]))
    return not any(outcome["failed"] for outcome in outcomes.values())


def describe_outcome(name: str, outcome: dict[str, object]) -> str:
    """Say a setting's outcome in one line, and each failure in one below it."""
    counts = ", ".join(f"{outcome[word]} {word}" for word in ("passed", "failed", "skipped"))
    failures = outcome["failures"]
    assert isinstance(failures, list)
    return "\n    ".join([f"{name:14} {counts}, {outcome['seconds']} s", *failures])


def main() -> int:
    """Run the settings that are missing; 1 where a test failed under one of them."""
    parser = argparse.ArgumentParser(prog="paretopress.tests.bench.isa", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, default=Path("runs/isa.json"), help="settings it holds are not run again")
    parser.add_argument("--fresh", action="store_true", help="run every setting again")
    parser.add_argument("tests", nargs="*", help="files or folders of tests; all of them by default")
    chosen = parser.parse_args()
    if chosen.fresh:
        chosen.json.unlink(missing_ok=True)
    level = read_level()
    tree = {"sources": digest_sources(ROOT), "machine": describe_machine(level), "tests": chosen.tests}
    arguments = ["-n", "auto", "--dist", "loadfile", *chosen.tests]
    all_passed = run_settings(
        chosen.json, level, tree, lambda setting: run_suite(setting, chosen.json.with_suffix(""), arguments)
    )
    return 0 if all_passed else 1


if __name__ == "__main__":
    sys.exit(main())
