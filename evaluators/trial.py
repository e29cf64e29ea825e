"""What a training trial leaves behind: a folder with the states of its trainings or, in the end, its answer.

A folder is sealed by a list of its files' digests, so that one that was copied in part is told from a whole one. No pickles:
states are safetensors, an answer is JSON with its bytes in files beside it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..policies.files import write_bytes, write_text
from .pool import Done, Evaluate, Fault, FaultKind, Job, cause_of_death, fault_of, one_line, run_job
from .training.checkpoints import Checkpoints

SEAL = "sealed.json"
ANSWER = "answer.json"
_BYTES = "bytes of file"


def name_of(job: Job) -> str:
    """The same for every attempt at an evaluation, another one where its policy, rung or payload is another."""
    known = json.dumps([job.policy_json, job.fidelity, dict(job.payload)], sort_keys=True, default=repr)
    return hashlib.sha256(known.encode()).hexdigest()[:24]


def seal(folder: Path) -> None:
    """Write down which files a folder holds, and their digests."""
    write_text(folder / SEAL, json.dumps(_digests(folder)))


def is_whole(folder: Path) -> bool:
    """Whether a folder holds what it held when it was sealed."""
    try:
        sealed = json.loads((folder / SEAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(sealed == _digests(folder))


def newest_whole(storage: Path, name: str) -> Path | None:
    """The last whole folder that any experiment under ``storage`` kept of a trial."""
    found = sorted(storage.glob(f"*/{name}/checkpoint_*"), reverse=True)
    return next((folder for folder in found if is_whole(folder)), None)


def take_up(folder: Path, *kept: Path | None) -> None:
    """Copy the first whole one of the folders that were kept."""
    for source in kept:
        if source is not None and is_whole(source):
            shutil.copytree(source, folder, dirs_exist_ok=True)
            return


def go_on(
    folder: Path,
    job: Job,
    build: Callable[[], Evaluate],
    report: Callable[[Mapping[str, Any], bool], None],
    validates: bool,
) -> None:
    """Carry out a job from what lies in the folder, and report each epoch and what it comes to.

    Parameters
    ----------
    folder
        States of its trainings, or its answer.
    build
        Makes the worker's function; one that has a method ``with_checkpoints`` keeps its states in the folder.
    report
        (figures, whether the folder is to be kept with them): ``epoch`` with its figures; in the end ``answered``, or the
        ``fault`` of the job, or that of a worker that is ``unbuilt``.
    validates
        Whether each epoch's network is tried on validation pictures.
    """

    def keep(figures: Mapping[str, Any]) -> None:
        seal(folder)
        report(figures, True)

    def heard(epoch: int, figures: Mapping[str, float]) -> None:
        keep({"epoch": epoch, **figures})

    if read_answer(folder, job) is None:
        try:
            evaluate = build()
        except Exception as error:
            report({"unbuilt": asdict(fault_of(error))}, False)
            return
        with_checkpoints = getattr(evaluate, "with_checkpoints", None)
        if with_checkpoints is not None:
            evaluate = with_checkpoints(Checkpoints(folder, heard, validates))
        done = _kept(run_job(evaluate, job), folder)
        if done.fault is not None:
            report({"fault": asdict(done.fault), "host": done.host, "seconds": done.seconds}, False)
            return
    keep({"answered": True})


def _kept(done: Done, folder: Path) -> Done:
    """The same, written down if it is a result."""
    if done.fault is not None:
        return done
    try:
        write_answer(folder, done)
    except Exception as error:
        return replace(done, ok=False, result=None, fault=fault_of(error))
    return done


def outcome(job: Job, last: Mapping[str, Any], folder: Path | None) -> Done:
    """What became of a trial that ended in peace: by its last report and the folder that it kept."""
    if "fault" in last:
        return Done(job.id, False, None, Fault(**last["fault"]), last["host"], last["seconds"])
    if "answered" not in last:
        why = f"stopped early by the scheduler after {last['epoch']} epochs, its error then {last['error_pct']:.2f} %"
        return Done(
            job.id, False, None, Fault("candidate", "StoppedEarly", why), last["hostname"], last["time_total_s"]
        )
    answer = read_answer(folder, job) if folder is not None and is_whole(folder) else None
    if answer is not None:
        return answer
    fault = Fault("infrastructure", "DamagedAnswer", f"the answer in {folder} is damaged; check that disk")
    return Done(job.id, False, None, fault, last["hostname"], last["time_total_s"])


def lost(job: Job, last: Mapping[str, Any], errors: str, hung: int) -> Done:
    """What became of a trial that died once too often, by the text of its errors, or was not heard of so many times."""
    if hung:
        fault = Fault("timeout", "TimeoutError", f"not heard of within {job.timeout_s:g} s, {hung} times")
    else:
        *_, text = errors.split("Failure #")
        kind: FaultKind = "memory" if "low on memory" in text else "infrastructure"
        # Of a process that is gone Ray writes a paragraph of guesses.
        is_gone = "ActorDiedError" in text or "ActorUnavailableError" in text or kind == "memory"
        why = f"the trial's process is gone: {cause_of_death(text)}" if is_gone else one_line(text.partition("\n")[2])
        fault = Fault(kind, "TrialLost", why)
    return Done(job.id, False, None, fault, str(last.get("hostname", "unknown")), float(last.get("time_total_s", 0.0)))


def write_answer(folder: Path, done: Done) -> None:
    """Put a job's result in the place of all that lies there.

    Raises
    ------
    TypeError
        Where the result holds more than plain data and bytes.
    """
    parts: list[bytes] = []

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        if not isinstance(value, bytes):
            raise TypeError(
                f"a {type(value).__name__} cannot be kept without a pickle; results are plain data and bytes"
            )
        parts.append(value)
        return {_BYTES: len(parts) - 1}

    text = json.dumps({"result": done.result, "host": done.host, "seconds": done.seconds}, default=plain)
    for path in folder.iterdir():
        path.unlink()
    for number, content in enumerate(parts):
        write_bytes(folder / f"{number}.bin", content)
    write_text(folder / ANSWER, text)


def read_answer(folder: Path, job: Job) -> Done | None:
    """The answer that lies in a folder, as one to this attempt; ``None`` where there is none yet."""
    if not (folder / ANSWER).is_file():
        return None

    def revive(value: dict[str, Any]) -> Any:
        return (folder / f"{int(value[_BYTES])}.bin").read_bytes() if set(value) == {_BYTES} else value

    kept = json.loads((folder / ANSWER).read_text(encoding="utf-8"), object_hook=revive)
    return Done(job.id, True, kept["result"], None, kept["host"], kept["seconds"])


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in (SEAL, ".metadata.json"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
