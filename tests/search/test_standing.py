"""What is said of a member's budgets, and that each standing is said apart from the others."""

from __future__ import annotations

import itertools
import math

import pytest
from paretopress.search.standing import Standing

ON_TEST = {"error_pct": 0.22}
ON_VALIDATION = {"error_pct": 0.05}


@pytest.mark.parametrize(
    ("standing", "label", "text"),
    [
        (Standing(), "kept", "kept"),
        (
            Standing(bound_excess=0.09),
            "not certain",
            "not certain, the upper bound of error_pct is 9 % above its budget",
        ),
        (
            Standing(ON_TEST),
            "misses a budget on the test split",
            "kept error_pct on validation pictures, misses it by 22 % on the test split",
        ),
        (
            Standing(ON_TEST, {}, 0.09),
            "not certain, misses a budget on the test split",
            "not certain, the upper bound of error_pct is 9 % above its budget;"
            " kept error_pct on validation pictures, misses it by 22 % on the test split",
        ),
        (
            Standing({}, ON_VALIDATION, 0.3),
            "misses a budget",
            "missed error_pct by 5 % on validation pictures already, keeps it on the test split",
        ),
        (
            Standing(ON_TEST, ON_VALIDATION, 0.3),
            "misses a budget",
            "missed error_pct by 5 % on validation pictures already, misses it by 22 % on the test split",
        ),
        (
            Standing({"stored_bytes": 2.0, **ON_TEST}, {"stored_bytes": 2.0}),
            "misses a budget",
            "misses stored_bytes by 200 %; kept error_pct on validation pictures, misses it by 22 % on the test split",
        ),
        (
            Standing({"latency_ratio": 0.0004}, {"latency_ratio": 0.0004}),
            "misses a budget",
            "misses latency_ratio by 0.04 %",
        ),
        (
            Standing({"stored_bytes": math.inf}, {"stored_bytes": math.inf}),
            "misses a budget",
            "misses stored_bytes by an amount that was not measured",
        ),
    ],
)
def test_a_standing_names_budgets_and_splits(standing: Standing, label: str, text: str) -> None:
    assert standing.label == label
    assert standing.text == text


def test_no_two_standings_of_the_error_are_said_alike() -> None:
    standings = [
        Standing(*case)
        for case in itertools.product(({}, ON_TEST), ({}, ON_VALIDATION), (0.0, 0.3))
        if case[2] or not case[1]
    ]
    assert len({standing.text for standing in standings}) == len(standings) == 6


def test_only_what_was_kept_before_the_test_split_was_read_is_certain() -> None:
    assert Standing(ON_TEST).is_certain, "the test split takes no promise back, it says that it was broken"
    assert not Standing(bound_excess=1e-9).is_certain
    assert not Standing({}, {"stored_bytes": 0.1}).is_certain


def test_metrics_may_have_other_words() -> None:
    words = {"error_pct": "disagreement", "stored_bytes": "size"}
    text = Standing({"stored_bytes": 0.1, **ON_TEST}, {"stored_bytes": 0.1}).describe(words.__getitem__)
    assert text.startswith("misses size by 10 %; kept disagreement on validation pictures")
