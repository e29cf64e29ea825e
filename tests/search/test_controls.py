"""Runs that train controls beside the members of their front."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paretopress as pp
import pytest
from paretopress.evaluators.controls import ControlEvaluator
from paretopress.evaluators.models import load_weights
from paretopress.evaluators.provenance import read_provenance
from paretopress.evaluators.training.lottery import CONTROLS
from paretopress.policies.coding.press import decode
from paretopress.policies.errors import CandidateError, ConfigError
from paretopress.policies.policy import Policy
from paretopress.search import api
from paretopress.search.config import make_config
from paretopress.search.front import Member
from paretopress.search.prepare import empty_network, read_data
from paretopress.search.progress import Silence
from paretopress.search.report.controls import conclusion
from paretopress.tests.search.runs import front_of, rows, small, with_weights
from torch import nn

pytestmark = pytest.mark.usefixtures("one_core")

NEW = ("scratch_e", "scratch_b", "random")
"""Controls that need not know what the dense network began with."""
SPACE = {"precision": ["w8a8", "k16"], "sparsity": [0.5], "channels": [0.5], "prune": "magnitude"}
FEW = {"space": SPACE, "budgets": {}, "search": {"sampler": "random", "evaluations": 1, "batch": 1, "finalists": 1}}


def controlled(controls: Any, **changes: Any) -> dict[str, Any]:
    config = {**FEW, "search__objectives": ["error", "stored"], "recovery__tryout": 0.0, **changes}
    return small(controls=controls, **config)


def start(out: Path, config: dict[str, Any]) -> pp.Front:
    return api.run_search(make_config(config), out, Silence())


@pytest.fixture(scope="module")
def finished(one_core: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every control; tests only read it."""
    out = tmp_path_factory.mktemp("controls") / "run"
    start(out, controlled({"which": list(CONTROLS), "rewind_epochs": 1}))
    return out


def test_every_member_has_the_figures_of_every_control(finished: Path) -> None:
    members = front_of(finished)["front"]
    assert members
    for member in members:
        assert set(member["controls"]) == set(CONTROLS)
        for figures in member["controls"].values():
            low, high = figures["error_ci95"]
            assert low <= figures["error_pct"] <= high and 0 <= figures["validation_error_pct"] <= 100


def test_scratch_e_has_the_dense_networks_epochs_and_scratch_b_its_computation(finished: Path) -> None:
    found = front_of(finished)
    for member in found["front"]:
        epochs = {name: figures["epochs"] for name, figures in member["controls"].items()}
        assert epochs["scratch_e"] == epochs["rewind"] == 4 and epochs["supermask"] == 0
        assert epochs["scratch_b"] == round(4 * found["baseline"]["macs"] / member["metrics"]["macs"]) > 4


def test_controls_have_the_members_shapes_and_zeros(finished: Path) -> None:
    for member in front_of(finished)["front"]:
        folder = finished / "artefacts" / member["id"]
        own = decode((folder / "model.press").read_bytes()).tensors
        for control in CONTROLS:
            tensors = decode((folder / f"{control}.press").read_bytes()).tensors
            assert {n: t.decode().shape for n, t in tensors.items()} == {n: t.decode().shape for n, t in own.items()}
            for name, tensor in own.items():
                if tensor.decode().ndim > 1:
                    zero = tensor.decode() == 0
                    assert zero.any() and not np.any(tensors[name].decode()[zero]), f"{control}: {name}"


def test_the_ledger_proves_one_reading_of_the_test_split_for_each_control(finished: Path) -> None:
    count = len(front_of(finished)["front"])
    for control in CONTROLS:
        trained, tested = rows(finished, f"control:{control}"), rows(finished, f"control_test:{control}")
        assert [row.attempt for row in tested] == [1] * count and len(trained) == count
        assert [row.artefacts for row in tested] == [row.artefacts for row in trained]


def test_the_report_shows_controls_beside_the_members(finished: Path) -> None:
    report = (finished / "report.html").read_text()
    section = report.partition('<section id="controls">')[2].partition("</section>")[0]
    assert "Were the weights worth keeping?" in section and "Scratch-B" in section
    for member in front_of(finished)["front"]:
        assert member["id"] in section and conclusion(member) in section


def test_resuming_trains_no_control_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> dict[str, Any]:
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr(ControlEvaluator, "__call__", refuse)
    before, found = rows(finished), front_of(finished)
    pp.resume(finished)
    assert rows(finished) == before and front_of(finished) == found


def test_a_control_whose_file_is_gone_is_trained_and_tested_again(finished: Path) -> None:
    found = front_of(finished)
    member = found["front"][0]
    (finished / "artefacts" / member["id"] / "supermask.onnx").unlink()
    pp.resume(finished)
    assert (finished / "artefacts" / member["id"] / "supermask.onnx").is_file()
    assert front_of(finished) == found


def test_the_weights_rewound_to_are_those_of_the_first_epochs(finished: Path) -> None:
    config = make_config(controlled(["rewind"]))
    data = read_data(config, lambda _: None)
    initial, early, dense = (empty_network(config, data) for _ in range(3))
    load_weights(early, finished / "early.safetensors")
    load_weights(dense, finished / "dense.safetensors")
    assert 0 < distance(initial, early) < distance(initial, dense)
    for name in ("early", "dense"):
        provenance = read_provenance(finished / f"{name}.safetensors")
        assert provenance is not None and provenance.left_out(data.validation)


def distance(a: nn.Module, b: nn.Module) -> float:
    pairs = zip(a.parameters(), b.parameters())
    return float(sum((x - y).detach().square().sum() for x, y in pairs))


def test_a_failed_control_is_recorded_and_ends_nothing(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ControlEvaluator.__call__

    def failing(self: ControlEvaluator, control: str, *given: Any, **named: Any) -> dict[str, Any]:
        if control == "random":
            raise CandidateError("it diverged")
        return whole(self, control, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(ControlEvaluator, "__call__", failing)
    recipe = {"epochs": 2, "batch_size": 64, "lr": 0.05}
    model = {"name": "family:digits_cnn", "weights": str(trained)}
    # Compact files leave out the names by which masks are told.
    config = controlled({"which": list(NEW), "train": recipe}, model=model, storage={"compact": True})
    start(tmp_path / "run", config)
    (member,) = front_of(tmp_path / "run")["front"]
    assert member["controls"]["random"] == {"failed": "CandidateError: it diverged"}
    assert set(member["controls"]) == set(NEW)
    assert member["controls"]["scratch_e"]["epochs"] == 2, (
        "the recipe given is that of networks whose weights are given"
    )
    assert "CandidateError: it diverged" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"controls": ["scratch_e"]}, "expected the recipe in controls.train"),
        (
            {"controls": {"which": ["rewind"], "train": {}}},
            "rewind begin with the weights that the dense network began",
        ),
        ({"controls": ["scratch_f"]}, "controls.which.0: Input should be 'scratch_e'"),
        ({"controls": ["scratch_e"], "quality": "agreement"}, "expected quality: error"),
        (
            {"controls": {"which": ["scratch_e"], "train": {"teachers": ["t.safetensors"]}}},
            "expected a recipe without teachers in controls.train",
        ),
    ],
)
def test_controls_that_cannot_be_trained_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        make_config(with_weights(Path("some.safetensors"), **changes))


def test_one_cannot_rewind_beyond_the_dense_networks_training() -> None:
    with pytest.raises(ConfigError, match="expected fewer than the 4 epochs of the dense network's recipe; got 4"):
        make_config(small(controls={"which": ["rewind"], "rewind_epochs": 4}))


def test_fronts_without_controls_are_written_as_before() -> None:
    member = Member("0", Policy(), True, {"error_pct": 1.0})
    assert "controls" not in member.as_dict()
    assert replace(member, controls={"random": {"failed": "why"}}).as_dict()["controls"] == {
        "random": {"failed": "why"}
    }


def concluded(**controls: tuple[float, float, float] | None) -> str:
    """What follows where a member errs on 2 % (1.7 to 2.3); each control: error and its interval, None: failed."""
    figures = {
        name: {"failed": "why"} if found is None else {"error_pct": found[0], "error_ci95": found[1:]}
        for name, found in controls.items()
    }
    return conclusion({"metrics": {"error_pct": 2.0, "error_ci95": [1.7, 2.3]}, "controls": figures})


ALIKE, WORSE, BETTER = (2.2, 1.9, 2.5), (5.0, 4.6, 5.4), (1.0, 0.8, 1.2)


@pytest.mark.parametrize(
    ("controls", "expected"),
    [
        ({"scratch_e": WORSE, "scratch_b": ALIKE}, "The architecture was worth keeping, not the weights"),
        ({"scratch_e": WORSE, "scratch_b": BETTER}, "from new random ones it errs 1.00 points less"),
        ({"scratch_e": WORSE, "scratch_b": WORSE}, "The weights were worth keeping: .* errs 3.00 points more"),
        (
            {"rewind": ALIKE, "random": WORSE},
            "The mask is a winning ticket: .* on new random weights it errs 3.00 points",
        ),
        (
            {"rewind": WORSE},
            "The trained weights were worth keeping: set back to their start they err 3.00 points more",
        ),
        ({"random": ALIKE}, "The pattern of connections was worth keeping, not its weights"),
        ({"signs": BETTER}, "Of the start only the signs count"),
        ({"signs": WORSE}, "Of the start more than its signs counts"),
        ({"supermask": (60.0, 59.0, 61.0)}, "Untrained, the mask errs on 60.00 %"),
        ({"scratch_e": None}, "No control came to an end"),
    ],
)
def test_what_follows_is_said_in_words(controls: dict[str, Any], expected: str) -> None:
    assert re.search(expected, concluded(**controls))
