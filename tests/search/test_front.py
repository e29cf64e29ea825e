from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from paretopress.policies.errors import InputError, RunDirectoryError
from paretopress.policies.policy import Policy, Step
from paretopress.search.budgets import Limit
from paretopress.search.front import FrontData, Member, scaled_values, violations

OBJECTIVES = ("error_pct", "stored_bytes", "latency_ratio")
BASELINE = {
    "error_pct": 1.0,
    "error_ci95": [0.8, 1.2],
    "stored_bytes": 400_000,
    "onnx_bytes": 500_000,
    "latency_ratio": 1.0,
}


def member(error: float, stored: int, ratio: float, misses: dict[str, float] | None = None) -> Member:
    policy = Policy({"fc1": (Step.of("prune_magnitude", sparsity=round(1 - stored / 400_000, 6)),)})
    metrics: dict[str, Any] = {
        "error_pct": error,
        "error_ci95": [error - 0.2, error + 0.2],
        "stored_bytes": stored,
        "onnx_bytes": 2 * stored,
        "latency_ratio": ratio,
    }
    return Member(policy.id, policy, not misses, metrics, misses or {})


MILD = member(1.1, 200_000, 0.9)
MIDDLE = member(1.2, 60_000, 0.5)
HARSH = member(2.5, 50_000, 0.45)
HARSHEST = member(6.0, 20_000, 0.4, {"error_pct": 2.0})


@pytest.fixture
def found() -> FrontData:
    return FrontData(BASELINE, {"error_pct": 3.0}, OBJECTIVES, (MILD, MIDDLE, HARSH, HARSHEST))


def test_the_knee_is_the_best_compromise_of_those_that_keep_the_budgets(found: FrontData) -> None:
    assert found.pick("knee") == found.knee == MIDDLE
    assert len(found) == 4 and list(found) == [MILD, MIDDLE, HARSH, HARSHEST]


def test_where_nothing_keeps_the_budgets_the_knee_is_the_best_of_all() -> None:
    missing = tuple(Member(m.id, m.policy, False, m.metrics, {"stored_bytes": 1.0}) for m in (MILD, MIDDLE, HARSH))
    assert FrontData(BASELINE, {}, OBJECTIVES, missing).knee == missing[1]


def test_a_member_is_picked_by_its_id_or_by_the_start_of_it(found: FrontData) -> None:
    assert found.pick(HARSH.id) == HARSH
    assert found.pick(HARSH.id[:8]) == HARSH


@pytest.mark.parametrize(
    ("condition", "picked"),
    [
        ("stored_bytes<=60000", MIDDLE),
        ("stored_bytes<60000", HARSH),
        (" stored_bytes <= 5.5e4 ", HARSH),
        ("latency_ratio>=0.6", MILD),
        ("latency_ratio>0.9", None),
        ("error_pct<=2", MIDDLE),
        ("error_pct<=1.15", MILD),
        # Only this one fits; it is the nearest although it misses a budget.
        ("stored_bytes<=30000", HARSHEST),
    ],
)
def test_a_condition_picks_the_least_error_or_where_it_is_on_error_the_least_size(
    found: FrontData, condition: str, picked: Member | None
) -> None:
    if picked is None:
        with pytest.raises(InputError, match=r"no member has latency_ratio>0.9; the front reaches from 0.4 to 0.9"):
            found.pick(condition)
    else:
        assert found.pick(condition) == picked


def test_a_member_that_keeps_the_budgets_goes_before_one_that_does_not(found: FrontData) -> None:
    assert found.pick("error_pct<=100") == HARSH, "the smallest misses a budget"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            "nonsense",
            f"expected knee, an id or a condition such as 'stored_bytes<=50000'; got 'nonsense'. Ids: {MILD.id}",
        ),
        ("", "got ''"),
        ("size<=3", "unknown metric 'size'; known: error_pct, stored_bytes, onnx_bytes, latency_ratio"),
        ("error_ci95<=3", "unknown metric 'error_ci95'"),
        ("stored_bytes<=e", "'e' is no number"),
        ("stored_bytes==3", "got 'stored_bytes==3'"),
        ("stored_bytes<=100", "no member has stored_bytes<=100; the front reaches from 20000 to 200000"),
    ],
)
def test_a_choice_that_fits_nothing_says_what_there_is(found: FrontData, choice: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        found.pick(choice)
    assert message in str(caught.value)


def test_of_an_empty_front_nothing_can_be_picked() -> None:
    empty = FrontData(BASELINE, {}, OBJECTIVES, ())
    assert empty.knee is None
    with pytest.raises(InputError, match="the front is empty"):
        empty.pick("knee")


def test_what_is_written_is_read_back(found: FrontData, tmp_path: Path) -> None:
    found.write(tmp_path / "front.json")
    again = FrontData.read(tmp_path / "front.json")
    assert again == FrontData(BASELINE, {"error_pct": 3.0}, OBJECTIVES, found.members)
    content = json.loads((tmp_path / "front.json").read_text())
    assert list(content) == ["baseline", "budgets", "objectives", "knee", "front"]
    assert content["knee"] == MIDDLE.id
    assert content["front"][0] == {
        "id": MILD.id,
        "policy": MILD.policy.as_dict(),
        "feasible": True,
        "rung": "final",
        "misses": {},
        "validation_misses": {},
        "bound_excess": 0.0,
        "certain": True,
        "standing": "kept",
        "metrics": MILD.metrics,
    }


def test_a_member_that_is_certain_goes_before_one_that_is_not() -> None:
    doubtful = replace(MIDDLE, bound_excess=0.1)
    found = FrontData(BASELINE, {"error_pct": 3.0}, OBJECTIVES, (MILD, doubtful, HARSH))
    assert found.knee in (MILD, HARSH)
    assert found.pick("error_pct<=1.3") == MILD, "the smaller one is not certain"
    assert found.pick("stored_bytes<=60000") == HARSH
    assert found.pick(doubtful.id) == doubtful
    alone = FrontData(BASELINE, {"error_pct": 3.0}, OBJECTIVES, (doubtful, HARSHEST))
    assert alone.knee == doubtful


def test_what_was_known_before_the_test_split_was_read_is_written_and_read_back(tmp_path: Path) -> None:
    doubtful = replace(MIDDLE, bound_excess=0.1, validation_misses={"error_pct": 0.2})
    FrontData(BASELINE, {}, OBJECTIVES, (MILD, doubtful)).write(tmp_path / "front.json")
    content = json.loads((tmp_path / "front.json").read_text())
    assert [entry["certain"] for entry in content["front"]] == [True, False]
    assert FrontData.read(tmp_path / "front.json").members == (MILD, doubtful)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"front": [{}]}', '{"baseline": {}, "budgets": {}, "front": [3]}'])
def test_a_damaged_front_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "front.json").write_text(text)
    with pytest.raises(RunDirectoryError, match="resume"):
        FrontData.read(tmp_path / "front.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["front"][0].update(metrics={}), "expected a number as error_pct, got None"),
        (lambda content: content["front"][1]["metrics"].update(latency_ratio="fast"), "as latency_ratio, got 'fast'"),
        (lambda content: content["front"][0].update(metrics=[1]), "metrics: expected names with values, got a list"),
        (lambda content: content["front"].insert(0, None), "a member: expected names with values, got a NoneType"),
        (lambda content: content["front"][0].update(policy={"layers": 3}), "resume the run"),
        (lambda content: content["baseline"].pop("stored_bytes"), "baseline: expected a number as stored_bytes"),
        (lambda content: content.update(objectives=["macs"]), "expected a number as macs, got None"),
        (lambda content: content.pop("budgets"), "'budgets' is missing"),
        (lambda content: content["front"][0].pop("bound_excess"), "'bound_excess' is missing; resume the run"),
    ],
)
def test_a_front_that_was_changed_says_what_is_wrong_in_it(
    found: FrontData, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    found.write(tmp_path / "front.json")
    content = json.loads((tmp_path / "front.json").read_text())
    change(content)
    (tmp_path / "front.json").write_text(json.dumps(content))
    with pytest.raises(RunDirectoryError) as caught:
        FrontData.read(tmp_path / "front.json")
    assert message in str(caught.value)


def test_a_front_that_is_a_list_is_told_as_one(tmp_path: Path) -> None:
    (tmp_path / "front.json").write_text("[1]")
    with pytest.raises(RunDirectoryError, match="its content: expected names with values, got a list; resume the run"):
        FrontData.read(tmp_path / "front.json")


def test_a_missing_front_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"front\.json.*'paretopress resume' writes it again"):
        FrontData.read(tmp_path / "front.json")


def test_halving_a_size_counts_the_same_everywhere() -> None:
    values = scaled_values(
        [{"error_pct": e, "stored_bytes": s} for e, s in [(1, 400), (1, 200), (2, 100)]], OBJECTIVES[:2]
    )
    steps = values[:-1, 1] - values[1:, 1]
    assert steps[0] == pytest.approx(steps[1])
    assert values[:, 0].tolist() == [1, 1, 2], "an error is taken as it is"


def test_only_passed_limits_are_violations() -> None:
    limits = [Limit("stored_bytes", 50_000), Limit("error_pct", 6.0), Limit("latency_ratio", 0.2)]
    assert violations(HARSHEST.metrics, limits) == {"latency_ratio": pytest.approx(1.0)}
