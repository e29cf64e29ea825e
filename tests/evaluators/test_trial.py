"""What a training trial leaves behind is whole, or it is not used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paretopress.evaluators.pool import Done, Job
from paretopress.evaluators.training.checkpoints import Checkpoints
from paretopress.evaluators.trial import (
    go_on,
    is_whole,
    lost,
    name_of,
    newest_whole,
    outcome,
    read_answer,
    seal,
    take_up,
    write_answer,
)

JOB = Job("abc.recover.1", "{}", "recover", 60.0, {"seed": 3})
RESULT = {"metrics": {"error_pct": np.float32(1.5), "count": np.int64(3)}, "artefacts": {"a": b"\x00\xff", "b": b""}}
Report = tuple[dict[str, Any], bool]


def kept(folder: Path, content: bytes = b"state") -> Path:
    folder.mkdir(parents=True)
    (folder / "training-0.safetensors").write_bytes(content)
    seal(folder)
    return folder


def test_a_folder_that_was_copied_in_part_or_damaged_is_not_whole(tmp_path: Path) -> None:
    whole = kept(tmp_path / "whole")
    assert is_whole(whole)
    damaged, short, unsealed = (kept(tmp_path / name) for name in ("damaged", "short", "unsealed"))
    (damaged / "training-0.safetensors").write_bytes(b"stat")
    (short / "training-0.safetensors").unlink()
    (unsealed / "sealed.json").unlink()
    assert not any(is_whole(folder) for folder in (damaged, short, unsealed, tmp_path / "none"))


def test_the_newest_whole_state_of_any_experiment_is_found(tmp_path: Path) -> None:
    assert newest_whole(tmp_path, "trial") is None
    kept(tmp_path / "000001" / "trial" / "checkpoint_000007")
    wanted = kept(tmp_path / "000002" / "trial" / "checkpoint_000001")
    cut = kept(tmp_path / "000002" / "trial" / "checkpoint_000002")
    (cut / "training-0.safetensors").write_bytes(b"")
    kept(tmp_path / "000003" / "other" / "checkpoint_000000")
    assert newest_whole(tmp_path, "trial") == wanted


def test_the_first_whole_folder_is_taken_up(tmp_path: Path) -> None:
    first, second = kept(tmp_path / "first", b"first"), kept(tmp_path / "second", b"second")
    (first / "sealed.json").unlink()
    target = tmp_path / "target"
    target.mkdir()
    take_up(target, None, first, second)
    assert (target / "training-0.safetensors").read_bytes() == b"second"
    assert is_whole(target)


def test_an_answer_comes_back_with_its_bytes_as_one_to_the_attempt_that_asks(tmp_path: Path) -> None:
    kept(tmp_path / "folder")
    write_answer(tmp_path / "folder", Done(JOB.id, True, RESULT, None, "host", 2.5))
    assert not (tmp_path / "folder" / "training-0.safetensors").exists(), "states are of no use any more"
    answer = read_answer(tmp_path / "folder", replace(JOB, id="abc.recover.2"))
    assert answer == Done("abc.recover.2", True, RESULT, None, "host", 2.5)


def test_what_would_need_a_pickle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a set cannot be kept without a pickle"):
        write_answer(tmp_path, Done(JOB.id, True, {"a": {1}}, None, "host", 1.0))


def test_a_name_is_that_of_the_evaluation_and_not_of_the_attempt() -> None:
    assert name_of(JOB) == name_of(replace(JOB, id="abc.recover.2", timeout_s=9.0))
    others = [replace(JOB, policy_json='{"a":1}'), replace(JOB, fidelity="tune"), replace(JOB, payload={"seed": 4})]
    assert len({name_of(job) for job in (JOB, *others)}) == 4


class Trainer:
    """Trains for three epochs, where it is given a place for its states."""

    def __init__(self, checkpoints: Checkpoints | None = None) -> None:
        self.checkpoints = checkpoints

    def with_checkpoints(self, checkpoints: Checkpoints) -> Trainer:
        return Trainer(checkpoints)

    def __call__(self, job: Job) -> dict[str, Any]:
        assert self.checkpoints is not None
        path = self.checkpoints.of(0)
        assert path is not None
        for epoch in range(int(path.read_text()) if path.exists() else 0, 3):
            path.write_text(str(epoch + 1))
            self.checkpoints.heard(epoch + 1, {"loss": 1.0})
        return {"trained": job.policy_json}


def carried_out(folder: Path, build: Any, job: Job = JOB) -> list[Report]:
    reports: list[Report] = []
    go_on(folder, job, build, lambda figures, keeps: reports.append((dict(figures), keeps)), False)
    return reports


def test_a_trial_reports_its_epochs_and_its_answer_and_keeps_both(tmp_path: Path) -> None:
    epochs = [({"epoch": number, "loss": 1.0}, True) for number in (1, 2, 3)]
    assert carried_out(tmp_path, Trainer) == [*epochs, ({"answered": True}, True)]
    assert outcome(JOB, {"answered": True}, tmp_path).result == {"trained": "{}"}


def test_a_trial_goes_on_from_what_lies_there(tmp_path: Path) -> None:
    (tmp_path / "training-0.safetensors").write_text("2")
    assert carried_out(tmp_path, Trainer) == [({"epoch": 3, "loss": 1.0}, True), ({"answered": True}, True)]
    assert carried_out(tmp_path, Trainer) == [({"answered": True}, True)], "an answer is not made twice"


@pytest.mark.parametrize(
    ("result", "error_class", "message"),
    [({"a": {1}}, "TypeError", "without a pickle"), (ValueError("no rank 9"), "ValueError", "no rank 9")],
)
def test_a_job_that_fails_is_a_fault_of_the_candidate(
    tmp_path: Path, result: Any, error_class: str, message: str
) -> None:
    def evaluate(_: Job) -> Any:
        if isinstance(result, Exception):
            raise result
        return result

    ((figures, keeps),) = carried_out(tmp_path, lambda: evaluate)
    done = outcome(JOB, figures, None)
    assert not keeps and done.fault is not None and message in done.fault.message
    assert (done.ok, done.fault.kind, done.fault.error_class) == (False, "candidate", error_class)


def test_an_answer_that_was_damaged_on_its_way_may_be_made_again(tmp_path: Path) -> None:
    carried_out(tmp_path, Trainer)
    (tmp_path / "answer.json").write_text("{}")
    fault = outcome(JOB, {"answered": True, "hostname": "h", "time_total_s": 1.0}, tmp_path).fault
    assert fault is not None and fault.kind == "infrastructure"


def test_a_lost_trial_says_how_it_was_lost() -> None:
    text = "Failure # 1 (occurred at noon)\nfirst\nFailure # 2 (occurred at one)\nThe actor\ndied\n"
    died = lost(JOB, {}, text, 0).fault
    assert died is not None and (died.kind, died.message) == ("infrastructure", "The actor died")
    full = lost(JOB, {}, text.replace("died", "was killed due to the node running low on memory"), 0).fault
    gone = lost(JOB, {}, f"{text}ray.exceptions.ActorDiedError: Worker exits with an exit code 4.\n", 0).fault
    assert gone is not None and gone.message == "the trial's process is gone: it left with exit code 4"
    hung = lost(JOB, {}, text, 3).fault
    assert full is not None and full.kind == "memory" and "the memory of its node was used up" in full.message
    assert hung is not None and (hung.kind, hung.message) == ("timeout", "not heard of within 60 s, 3 times")
