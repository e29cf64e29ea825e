"""The run directory: where everything of a run lies, and whether it belongs to the configuration at hand."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Any

import psutil

from ..evaluators.cores import available_cores
from ..evaluators.exact_integers import options_here
from ..policies.errors import RunDirectoryError
from ..policies.files import write_text
from .config import Config, load_config
from .database import locked
from .ledger import LEDGER_FILE, LOCK_FILE, Ledger

_NETWORK = ("model", "data", "quality", "seed")
_TRAINED = {
    "dense": ("training.safetensors", _NETWORK),
    "supernet": ("supernet-training.safetensors", (*_NETWORK, "space")),
    "exits": ("exits-training.safetensors", (*_NETWORK, "exits")),
}
"""Weights that a run trains -> where an unfinished training is kept, and the sections that it follows from."""

VERSIONED = (
    "paretopress",
    "torch",
    "torchvision",
    "timm",
    "torch-pruning",
    "onnx",
    "onnxruntime",
    "optuna",
    "ray",
    "constriction",
    "numpy",
)


@dataclass(frozen=True)
class RunDirectory:
    """Paths of a run.

    Parameters
    ----------
    path
        The directory itself.
    """

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def front(self) -> Path:
        return self.path / "front.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def sensitivity(self) -> Path:
        """The page of sensitivity curves."""
        return self.path / "sensitivity.html"

    def bank(self, name: str) -> Path:
        """A layer of the bank, named by its digest."""
        return self.path / "bank" / name

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def weights(self) -> Path:
        """The dense network's weights, where the run trained them."""
        return self.path / "dense.safetensors"

    @property
    def supernet(self) -> Path:
        """The weights that searched shapes are cut out of, where the run trained them."""
        return self.path / "supernet.safetensors"

    @property
    def trials(self) -> Path:
        """What trainings keep while they run as trials, a folder for each stage."""
        return self.path / "trials"

    def drop_trials(self, stage: str) -> None:
        """Remove what a stage's trials kept, whose results are recorded; the others' stays."""
        shutil.rmtree(self.trials / stage, ignore_errors=True)
        with suppress(OSError):
            self.trials.rmdir()

    @property
    def early(self) -> Path:
        """The dense network's weights after the epochs that controls rewind to."""
        return self.path / "early.safetensors"

    @property
    def reference(self) -> Path:
        """The dense network as ONNX."""
        return self.path / "reference.onnx"

    @property
    def journal(self) -> Path:
        """The study for ``optuna-dashboard``."""
        return self.path / "optuna-journal.log"

    def policy(self, identity: str) -> Path:
        return self.path / "policies" / f"{identity}.yaml"

    def artefact(self, identity: str, name: str) -> Path:
        return self.path / "artefacts" / identity / name

    def holds(self, identity: str, artefacts: Mapping[str, str]) -> bool:
        """Whether a policy's files are there, by name and SHA-256."""
        files = [(self.artefact(identity, name), digest) for name, digest in artefacts.items()]
        return all(path.is_file() and sha256(path.read_bytes()) == digest for path, digest in files)


def open_run(path: Path, config: Config, say: Callable[[str], None] = lambda _: None) -> RunDirectory:
    """Make the directory, or take up the run that lies there.

    A run that measured nothing yet goes on with whatever configuration is given; any run does so with another ``pool``,
    which says where its work is done.

    Raises
    ------
    RunDirectoryError
        Where it belongs to another configuration, holds something else, or cannot be made.
    """
    run = RunDirectory(path)
    if run.config.is_file():
        _reconfigure(run, config, say)
        return run
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunDirectoryError(
            f"{path} exists and holds no run; expected a new or empty directory. Choose another --out"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(f"cannot make {path}: {error.strerror}; choose another --out") from error
    write_text(run.config, config.to_yaml())
    return run


def _reconfigure(run: RunDirectory, config: Config, say: Callable[[str], None]) -> None:
    """Put the configuration in place of the run's own, where what is recorded holds for it as well."""
    differing = _differing(config.model_dump(mode="json"), load_config(run.config).model_dump(mode="json"))
    if not differing:
        return
    with locked(run.path, LOCK_FILE):
        elsewhere = [path for path in differing if path.partition(".")[0] != "pool"]
        if elsewhere and _has_measured(run):
            raise RunDirectoryError(
                f"{run.path} holds a run of another configuration; differing: {', '.join(elsewhere[:8])}."
                " Choose another --out, or go on with it as it was by 'paretopress resume'"
            )
        if elsewhere:
            say(f"{run.path} holds a run that measured nothing; it goes on with another {', '.join(elsewhere[:8])}")
            _clear(run, {path.partition(".")[0] for path in elsewhere}, say)
        write_text(run.config, config.to_yaml())


def _has_measured(run: RunDirectory) -> bool:
    """Whether anything but the dense network was measured; what a run without a ledger did is not known."""
    if not (run.path / LEDGER_FILE).is_file():
        return any(path.exists() for path in (run.front, run.path / "exits.json", run.path / "artefacts"))
    with Ledger.read(run.path) as ledger:
        return any(row.origin != "dense" for row in ledger.rows(state="done"))


def _clear(run: RunDirectory, changed: set[str], say: Callable[[str], None]) -> None:
    """Remove what a run without measurements recorded; weights that it trained stay, aside where they no longer serve."""
    for path in run.path.glob(f"{LEDGER_FILE}*"):
        path.unlink()
    trials = {path.name: path for path in run.trials.glob("*")}
    for weights, (unfinished, sections) in _TRAINED.items():
        if changed.isdisjoint(sections):
            trials.pop(weights, None)
            continue
        (run.path / unfinished).unlink(missing_ok=True)
        finished = run.path / f"{weights}.safetensors"
        if finished.is_file():
            aside = next(p for n in count(1) if not (p := run.path / f"{weights}-{n}.safetensors").exists())
            say(f"{finished} is of another recipe; it is kept as {aside.name}")
            finished.rename(aside)
    for path in trials.values():
        shutil.rmtree(path, ignore_errors=True)


def discard_unused(run: RunDirectory, made: Sequence[Path] = ()) -> None:
    """Remove a run that could not begin, so that its directory is free for a mended configuration.

    One that holds anything beyond its configuration and an empty ledger is left as it is.

    Parameters
    ----------
    made
        Directories that were made for it, the innermost first; they go too where nothing else lies in them.
    """
    if {file.name for file in run.path.iterdir()} <= {run.config.name, "ledger.sqlite", "ledger.lock"}:
        for file in run.path.iterdir():
            file.unlink()
        run.path.rmdir()
        with suppress(OSError):
            for place in made:
                place.rmdir()


def find_run(path: Path) -> tuple[RunDirectory, Config]:
    """The run that lies in a directory, with its configuration.

    Raises
    ------
    RunDirectoryError
        Where there is none.
    """
    run = RunDirectory(path)
    if not run.config.is_file():
        raise RunDirectoryError(
            f"{path} is no run directory: expected {run.config.name} in it; give what 'search --out' made"
        )
    return run, load_config(run.config)


def write_environment(run: RunDirectory, threads: int, workers: int, seed: int) -> dict[str, Any]:
    """Record versions, machine, threads and seeds in ``environment.json``."""
    environment = {
        "versions": {name: _version(name) for name in VERSIONED},
        "python": platform.python_version(),
        "cpu": processor_name(),
        "cores": available_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.machine()}",
        "workers": workers,
        "threads_per_worker": threads,
        "seed": seed,
        "session_options": options_here(),
    }
    write_text(run.environment, json.dumps(environment, indent=2) + "\n")
    return environment


def read_json(path: Path) -> Any:
    """JSON of one of our files.

    Raises
    ------
    RunDirectoryError
        Where the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunDirectoryError(f"cannot read {path}: {error}; 'paretopress resume' writes it again") from error


def sha256(data: bytes) -> str:
    """Hex digest."""
    return hashlib.sha256(data).hexdigest()


def _differing(new: Any, old: Any, path: str = "") -> list[str]:
    if isinstance(new, dict) and isinstance(old, dict):
        keys = sorted(set(new) | set(old))
        return [
            line for key in keys for line in _differing(new.get(key), old.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if new == old else [path]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def processor_name() -> str:
    """Name this machine's processor as its system does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
