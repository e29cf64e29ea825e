"""Latencies of 8-bit layers are only compared under one session option, and whoever runs them is told which."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from paretopress.evaluators.exact_integers import ADVICE, WITH_OPTION, WITHOUT_OPTION
from paretopress.policies.errors import RunDirectoryError
from paretopress.policies.policy import Policy, Step
from paretopress.search import api, verifying
from paretopress.search.ledger import EvaluationKey, Ledger
from paretopress.search.rundir import RunDirectory
from paretopress.search.summary import _eight_bit
from paretopress.search.verifying import Check

EIGHT_BIT = Policy({"conv": (Step.of("quantize", bits=8, activations="int8"),)})
SPARSE = Policy({"conv": (Step.of("prune_magnitude", sparsity=0.5),)})


def take_up(run: RunDirectory) -> None:
    with Ledger(run.path) as ledger:
        api._claim_timing(ledger, run)


def measure_something(run: RunDirectory) -> None:
    with Ledger(run.path) as ledger:
        key = EvaluationKey(Policy().digest, "test", "data", 0, "0.1.0")
        ledger.register(key, Policy().to_json(), "dense", {})
        assert ledger.complete(ledger.lease(key, time.time() + 9), {"latency_ratio": 1.0}, {}, {}, "here", {})


@pytest.mark.parametrize(("before", "after"), [(WITH_OPTION, WITHOUT_OPTION), (WITHOUT_OPTION, WITH_OPTION)])
def test_a_run_goes_on_under_its_own_option_alone(
    before: str, after: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path)
    monkeypatch.setattr(api, "options_here", lambda: before)
    take_up(run)
    measure_something(run)
    take_up(run)
    monkeypatch.setattr(api, "options_here", lambda: after)
    with pytest.raises(
        RunDirectoryError, match=f"with {before} in ONNX Runtime.* layers with {after}: .*another directory"
    ):
        take_up(run)


def test_a_run_that_noted_no_option_had_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDirectory(tmp_path)
    measure_something(run)
    monkeypatch.setattr(api, "options_here", lambda: WITHOUT_OPTION)
    with pytest.raises(RunDirectoryError, match=f"measured with {WITH_OPTION}"):
        take_up(run)
    monkeypatch.setattr(api, "options_here", lambda: WITH_OPTION)
    take_up(run)


@pytest.mark.parametrize(
    ("reported", "policy", "agrees"),
    [
        ({"session_options": WITHOUT_OPTION}, EIGHT_BIT, None),
        ({"session_options": WITH_OPTION}, EIGHT_BIT, False),
        ({}, EIGHT_BIT, False),
        ({"session_options": WITHOUT_OPTION}, SPARSE, False),
    ],
    ids=["another option", "the same", "not recorded, so with it", "no 8-bit layers"],
)
def test_a_latency_under_another_option_is_not_held_against_an_8_bit_bundle(
    reported: dict[str, str], policy: Policy, agrees: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "options_here", lambda: WITH_OPTION)
    checks = [Check("latency_ratio", "0.5x", "0.9x on this machine", False), Check("error_pct", "1 %", "2 %", False)]
    latency, error = verifying._comparable(checks, {"environment": reported}, policy)
    assert latency.agrees is agrees and error == checks[1]
    assert (WITHOUT_OPTION in latency.measured) == (agrees is None)


def test_the_report_says_which_option_8_bit_members_need() -> None:
    front = [{"id": policy.id, "policy": policy.as_dict()} for policy in (EIGHT_BIT, SPARSE)]
    (text,) = _eight_bit(front, {"session_options": WITH_OPTION}).values()
    assert text == f"{EIGHT_BIT.id}: {ADVICE} Here they were measured with {WITH_OPTION}."
    assert _eight_bit(front[1:], {"session_options": WITH_OPTION}) == {}
