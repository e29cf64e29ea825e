"""Why evaluations failed, in one clause."""

from __future__ import annotations

from paretopress.search.reasons import told


def test_reasons_are_told_with_how_often_they_came_the_most_frequent_first() -> None:
    assert (
        told(["B: rare", "A: common", "A: common", "C: rarer."])
        == "2 with: A: common; 1 with: B: rare; 1 with: C: rarer"
    )
    assert told([]) == ""


def test_beyond_three_reasons_the_rest_is_counted() -> None:
    reasons = [f"E{number}: {number}" for number in range(6) for _ in range(10 - number)]
    assert told(reasons) == ("10 with: E0: 0; 9 with: E1: 1; 8 with: E2: 2; 18 with others, which the report lists")
