"""Which candidates go on to the next rung."""

from __future__ import annotations

import numpy as np
import pytest
from paretopress.search.promotion import KEPT_SHARE, KEPT_SHARE_IF_UNSURE, kept_share, promote, rank_correlation


def front(count: int) -> np.ndarray:
    """(count, 2) error and latency, none dominated."""
    latency = np.linspace(0.1, 1.0, count)
    return np.column_stack([1 / latency, latency])


def test_slow_and_fast_regions_both_survive() -> None:
    crowd = np.column_stack([np.full(20, 9.0) + np.arange(20) / 1e3, 0.9 + np.arange(20)[::-1] / 1e3])
    values = np.concatenate([crowd, [[20.0, 0.1]]])
    kept = promote(values, np.zeros(21), 6, 1)
    assert len(kept) == len(set(kept.tolist())) == 6 and 20 in kept
    assert all(any(low <= index < low + 7 for index in kept) for low in (0, 7))


def test_each_third_of_the_latencies_keeps_a_third_of_the_places() -> None:
    kept = promote(front(30), np.zeros(30), 9, 1)
    assert [int(((kept >= low) & (kept < low + 10)).sum()) for low in (0, 10, 20)] == [3, 3, 3]


def test_who_misses_a_limit_comes_after_all_who_keep_them() -> None:
    values = front(30)
    violations = np.where(values[:, 1] > 0.5, 0.2, -0.1)
    keeping = set(np.flatnonzero(violations <= 0).tolist())
    assert set(promote(values, violations, 9, 1).tolist()) <= keeping
    everyone = promote(values, violations, len(keeping) + 3, 1)
    assert keeping <= set(everyone.tolist()) and len(everyone) == len(keeping) + 3


def test_a_dominated_candidate_does_not_take_the_place_of_a_better_one() -> None:
    values = np.concatenate([front(9), front(9) + 0.01])
    kept = promote(values, np.zeros(18), 9, 1)
    assert set(kept.tolist()) == set(range(9))


@pytest.mark.parametrize("latency", [None, 1])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 40])
def test_as_many_are_kept_as_asked_for_or_as_there_are(latency: int | None, count: int) -> None:
    kept = promote(front(12), np.zeros(12), count, latency)
    assert len(kept) == len(set(kept.tolist())) == min(count, 12)


def test_half_goes_on_where_the_lower_rung_ranks_poorly() -> None:
    assert kept_share(None) == kept_share(0.6) == kept_share(1.0) == KEPT_SHARE == 1 / 3
    assert kept_share(0.59) == kept_share(-1.0) == KEPT_SHARE_IF_UNSURE == 1 / 2


def test_correlation_is_of_ranks_and_needs_enough_pairs_with_spread() -> None:
    rising = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    assert rank_correlation(rising, [x**3 for x in rising]) == pytest.approx(1.0)
    assert rank_correlation(rising, rising[::-1]) == pytest.approx(-1.0)
    assert rank_correlation(rising[:7], rising[:7]) is None
    assert rank_correlation(rising[:4], rising[:4], least=4) == pytest.approx(1.0)
    assert rank_correlation(rising, [1.0] * 8) is None
