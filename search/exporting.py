"""From a front's member to a file or bundle that ships, and from a policy to a network of the same shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import onnx
import yaml
from safetensors import SafetensorError
from safetensors.numpy import load
from torch import nn

from ..evaluators.candidate import Candidate
from ..evaluators.exact_integers import ADVICE, has_8_bit_layers
from ..evaluators.models import save_weights
from ..policies.coding.container import MAGIC
from ..policies.coding.press import breakdown
from ..policies.errors import InputError, WorkError
from ..policies.files import write_bytes, write_text
from ..policies.version import VERSION
from .bundle_readme import bundle_readme
from .config import load_config
from .front import FrontData, Member
from .ledger import LEDGER_FILE, Ledger
from .rundir import RunDirectory, read_json, sha256
from .splits import describe_recipe, read_splits, recorded_choice, trained_further

TARGETS = ("onnx", "press", "bundle", "safetensors")
CARD = "card.json"
T = TypeVar("T")
_BY_ENDING = {".onnx": "onnx", ".press": "press", ".safetensors": "safetensors", "": "bundle"}


def target_of(path: Path, to: str | None) -> str:
    """One of ``TARGETS``: what was asked for, or what the path's ending says.

    Raises
    ------
    InputError
        Where the target is unknown, or something else lies there.
    """
    target = to or _BY_ENDING.get(path.suffix, "")
    if target not in TARGETS:
        raise InputError(f"expected --to {', '.join(TARGETS)}; got '{to or path.suffix}'")
    check_target(path, target)
    return target


def export_member(run: RunDirectory, found: FrontData, member: Member, path: Path, target: str) -> Path:
    """Write a member's file, or a bundle of both with policy, configuration and report card.

    Parameters
    ----------
    target
        ``onnx``, ``press`` or ``bundle``.

    Raises
    ------
    WorkError
        Where the run's file is missing or is not the one that was measured.
    """
    if target == "bundle":
        return _write_bundle(run, found, member, path)
    write_bytes(path, measured_file(run, member, f"model.{target}"))
    return path


def export_weights(run: RunDirectory, member: Member, network: Callable[[], nn.Module], path: Path) -> Path:
    """Write the plain weights of a member whose policy sets the network's shape alone, as safetensors.

    Parameters
    ----------
    network
        Gives the member with its weights.

    Raises
    ------
    InputError
        Where its layers were changed: such weights are of no network that ``model.name`` builds.
    WorkError
        Where the run's file is missing or is not the one that was measured.
    """
    if member.policy.layers:
        raise InputError(
            f"--to safetensors: expected a member whose policy sets the network's shape alone; {member.id} changes"
            f" {len(member.policy.layers)} layers, and no network that is built by name has such weights. Choose onnx,"
            " press or bundle"
        )
    measured_file(run, member, "model.press")
    config, splits = load_config(run.config), _read_run(run, read_splits)
    described = describe_recipe(
        config, member=member.policy.as_dict(), recovery=config.recovery.model_dump(mode="json")
    )
    metadata = trained_further(splits, config, described).metadata() if splits else None
    save_weights(network(), path, metadata)
    return path


def write_candidate(candidate: Candidate, path: Path) -> Path:
    """Write a candidate's ONNX or stored form, by the path's ending."""
    check_ending(path)
    write_bytes(path, candidate.onnx if path.suffix == ".onnx" else candidate.press)
    return path


def check_ending(path: Path) -> None:
    """Raise ``InputError`` where nothing can be written to a path by its ending, ``.onnx`` or ``.press``."""
    if path.suffix not in (".onnx", ".press"):
        raise InputError(f"--out: expected a path that ends in .onnx or .press, got '{path.name}'")
    check_target(path, _BY_ENDING[path.suffix])


def check_target(path: Path, target: str) -> None:
    """Refuse to write over anything but an earlier export of the same kind.

    Raises
    ------
    InputError
        Where the path exists and is something else or part of a run, or its ending is another target's.
    """
    if path.suffix and _BY_ENDING.get(path.suffix, target) != target:
        raise InputError(f"--out: {path.name} ends as {_BY_ENDING[path.suffix]} files do; leave out --to {target}")
    if not path.exists():
        return
    if target == "bundle":
        if not path.is_dir() or any(path.iterdir()):
            raise InputError(f"--out: {path} exists; a bundle is a directory of its own, choose another")
    elif any((folder / name).is_file() for folder in path.resolve().parents for name in (LEDGER_FILE, CARD)):
        raise InputError(f"--out: {path} is part of a run or a bundle, which needs it; choose another")
    elif not path.is_file() or not _IS[target](path.read_bytes()):
        raise InputError(f"--out: {path} exists and is no {target} file; choose another or remove it")


def _is_onnx(content: bytes) -> bool:
    try:
        return bool(onnx.load_model_from_string(content).graph.node)
    except Exception:  # of junk the parser may raise anything
        return False


def _is_press(content: bytes) -> bool:
    return content.startswith(MAGIC)


def _is_safetensors(content: bytes) -> bool:
    try:
        return bool(load(content))
    except SafetensorError:
        return False


_IS = {"onnx": _is_onnx, "press": _is_press, "safetensors": _is_safetensors}


def _write_bundle(run: RunDirectory, found: FrontData, member: Member, path: Path) -> Path:
    if not run.reference.is_file():
        raise WorkError(f"{run.reference} is missing; 'paretopress resume {run.path}' makes it again")
    files = {name: measured_file(run, member, name) for name in ("model.onnx", "model.press")}
    files["reference.onnx"] = run.reference.read_bytes()
    for name, content in files.items():
        write_bytes(path / name, content)
    write_text(path / "policy.yaml", member.policy.to_yaml())
    write_text(path / "config.yaml", _portable_config(run))
    card = report_card(run, found, member, files)
    write_text(path / CARD, json.dumps(card, indent=2) + "\n")
    write_text(path / "README.md", bundle_readme(card))
    return path


def report_card(run: RunDirectory, found: FrontData, member: Member, files: dict[str, bytes]) -> dict[str, Any]:
    """What a bundle says of itself; ``verify`` measures it again."""
    return {
        "format": 1,
        "paretopress": VERSION,
        "id": member.id,
        "metrics": dict(member.metrics),
        "baseline": dict(found.baseline),
        "budgets": dict(found.budgets),
        "feasible": member.feasible,
        **member.standing.as_dict(),
        "stored_parts_bytes": breakdown(files["model.press"]),
        "sha256": {name: sha256(content) for name, content in files.items()},
        "splits": _read_run(run, read_splits),
        "environment": read_json(run.environment),
        **({"session_options": ADVICE} if has_8_bit_layers(files["model.onnx"]) else {}),
    }


def _read_run(run: RunDirectory, read: Callable[[Ledger], T]) -> T:
    with Ledger.read(run.path) as ledger:
        return read(ledger)


def _portable_config(run: RunDirectory) -> str:
    """The configuration as the run resolved it; where its validation pictures came from depends on weights that stay behind."""
    plain = load_config(run.config).model_dump(mode="json")
    if _read_run(run, recorded_choice) == "testing":
        plain["data"]["validation_from"] = "testing"
    return yaml.safe_dump(plain, sort_keys=False, width=120)


def measured_file(run: RunDirectory, member: Member, name: str) -> bytes:
    """A file of the run's as it was measured.

    Raises
    ------
    WorkError
        Where it is missing or is another one.
    """
    path = run.artefact(member.id, name)
    if not path.is_file():
        raise WorkError(f"{path} is missing; 'paretopress resume {run.path}' makes it again")
    content = path.read_bytes()
    with Ledger.read(run.path) as ledger:
        measured = {
            row.artefacts.get(name)
            for row in ledger.rows("test", "done")
            if row.key.policy_hash == member.policy.digest
        }
    if sha256(content) not in measured:
        raise WorkError(
            f"{path} is damaged: it is not the file that was measured; 'paretopress resume {run.path}' makes it again"
        )
    return content
