"""Upper bounds of errors: they hold as often as they say, by enumeration of every outcome, and behave as bounds do."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from paretopress.search.budgets import Budget
from paretopress.search.certainty import (
    PairedErrors,
    difference_bound,
    error_bound_pct,
    excess,
    pictures_needed,
    ratio_bound,
    share_bound,
)
from scipy.special import gammaln, xlogy
from scipy.stats import beta, binom

LEVELS = (0.8, 0.9, 0.95)
SHARES = (0.0, 0.001, 0.005, 0.01, 0.03, 0.1, 0.3)
DIFFERENCES = (-0.05, -0.01, 0.0, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


def quantile(level: float) -> float:
    return NormalDist().inv_cdf(level)


def probabilities(counts: np.ndarray, shares: tuple[float, ...]) -> np.ndarray:
    """(k, cells) counts of a multinomial with a last cell for the rest -> (k,) their probabilities."""
    pictures = counts[0].sum()
    weights = gammaln(pictures + 1) - gammaln(counts + 1).sum(1)
    return np.asarray(np.exp(weights + xlogy(counts, np.array(shares)).sum(1)))


def outcomes(pictures: int, cells: int) -> np.ndarray:
    """Every way to share pictures out to so many cells."""
    ways = itertools.product(range(pictures + 1), repeat=cells - 1)
    return np.array([(*way, pictures - sum(way)) for way in ways if sum(way) <= pictures])


@pytest.mark.parametrize(("level", "least"), [(0.8, 0.786), (0.9, 0.9), (0.95, 0.95)])
@pytest.mark.parametrize("pictures", [10, 60, 400, 5000])
def test_the_bound_of_a_share_holds_as_often_as_it_says(level: float, least: float, pictures: int) -> None:
    wrong = np.arange(pictures)
    bounds = np.array([share_bound(float(k), pictures, quantile(level)) for k in wrong])
    # It holds least often just above a bound: there, it fails for all counts up to that bound's.
    up_to_half = bounds <= 0.5
    assert up_to_half.any()
    assert binom.sf(wrong[up_to_half], pictures, bounds[up_to_half]).min() >= least


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("pictures", [12, 40, 90])
def test_the_bound_of_a_paired_difference_holds_as_often_as_it_says(level: float, pictures: int) -> None:
    counts = outcomes(pictures, 3)
    paired = [PairedErrors(pictures, b, c, b) for b, c, _ in counts.tolist()]
    bounds = np.array([difference_bound(one, quantile(level)) for one in paired])
    for share, difference in itertools.product(SHARES, DIFFERENCES):
        if share + difference >= 0:
            chances = probabilities(counts, (share + difference, share, 1 - 2 * share - difference))
            assert chances.sum() == pytest.approx(1)
            assert chances[bounds >= difference - 1e-12].sum() >= level - 1e-9


@pytest.mark.parametrize("level", LEVELS)
def test_the_bound_of_a_paired_ratio_holds_as_often_as_it_says(level: float) -> None:
    pictures = 16
    counts = outcomes(pictures, 4)
    paired = [PairedErrors(pictures, both + b, both + c, b) for both, b, c, _ in counts.tolist()]
    bounds = np.array([ratio_bound(one, quantile(level)) for one in paired])
    for both, share, ratio in itertools.product((0.005, 0.05, 0.2), (0.0, 0.01, 0.1), (0.5, 0.9, 1.0, 1.2, 2.0, 3.0)):
        newly_wrong = ratio * (both + share) - both
        if newly_wrong >= 0 and newly_wrong + both + share < 1:
            chances = probabilities(counts, (both, newly_wrong, share, 1 - both - newly_wrong - share))
            assert chances[bounds >= ratio - 1e-12].sum() >= level - 1e-9


def test_the_bounds_are_near_the_exact_ones_of_clopper_and_pearson() -> None:
    for wrong, pictures in ((0, 200), (3, 200), (40, 5000), (500, 5000)):
        exact = beta.ppf(0.9, wrong + 1, pictures - wrong)
        assert share_bound(wrong, pictures, quantile(0.9)) == pytest.approx(exact, rel=0.12)


def test_a_published_interval_is_found_where_no_half_picture_is_added() -> None:
    """Airway reactivity of 21 children before and after stem cell transplantation (Bentur et al. 2009): 1, 1, 7, 12.

    Tango's 95 % interval of the difference is -0.517 to -0.026 (Fagerland, Lydersen and Laake 2014). Half a picture
    more that the candidate alone gets wrong and half a picture fewer that the dense network does leave the difference's bound
    with the same surplus: both together take the correction of half a picture back.
    """
    counts = PairedErrors(21, 1 + 1 - 0.25, 1 + 7 + 0.25, 1 - 0.25)
    assert difference_bound(counts, quantile(0.975)) == pytest.approx(-0.026, abs=0.002)


def test_without_a_changed_answer_the_bound_has_a_width_still() -> None:
    for pictures, wrong, kind in itertools.product((10, 200, 5000), (0, 7), ("plus", "ratio", "absolute")):
        counts = PairedErrors.without_loss(pictures, 100 * wrong / pictures)
        budget = Budget("error", kind, 1.0)
        assert error_bound_pct(budget, counts, 0.9) > counts.dense_error_pct + 100 / pictures / 2


@pytest.mark.parametrize("kind", ["plus", "ratio", "absolute"])
def test_bounds_rise_with_mistakes_and_confidence_and_fall_with_pictures(kind: str) -> None:
    budget = Budget("error", kind, 1.0)

    def bound(newly_wrong: int, newly_right: int, pictures: int, level: float = 0.9) -> float:
        counts = PairedErrors(pictures, 20 - newly_right + newly_wrong, 20, newly_wrong)
        return error_bound_pct(budget, counts, level) - counts.dense_error_pct

    worse = [bound(b, 4, 500) for b in range(30)]
    better = [bound(9, c, 500) for c in range(20)]
    assert worse == sorted(worse) and len(set(worse)) == 30
    assert better == sorted(better, reverse=True) and len(set(better)) == 20
    surer = [bound(3, 2, 500, level) for level in (0.5, 0.8, 0.9, 0.99)]
    assert surer == sorted(surer)
    assert bound(3, 3, 2000) < bound(3, 3, 1000) < bound(3, 3, 500)


@pytest.mark.parametrize("dense_error_pct", [0.0, 0.84, 7.9, 35.0])
@pytest.mark.parametrize("text", ["+1.0", "+0.05", "+20", 1.94, 60, "1.2x", "3x"])
@pytest.mark.parametrize("level", [0.8, 0.9, 0.99])
def test_the_number_of_pictures_that_would_do_suffices_and_one_less_does_not(
    text: object, dense_error_pct: float, level: float
) -> None:
    budget = Budget.parse("error", text)
    needed = pictures_needed(budget, dense_error_pct, level)
    if needed is None:
        bound = budget.resolve({"error_pct": dense_error_pct}).bound
        assert bound <= dense_error_pct, "no number would do only where nothing may be lost"
        return
    assert excess(budget, PairedErrors.without_loss(needed, dense_error_pct), level) <= 0
    assert needed == 1 or excess(budget, PairedErrors.without_loss(needed - 1, dense_error_pct), level) > 0


@pytest.mark.parametrize("text", ["+0", "1x", "0.9x", 0.5])
def test_where_nothing_may_be_lost_no_number_of_pictures_would_do(text: object) -> None:
    assert pictures_needed(Budget.parse("error", text), 0.84, 0.9) is None


def test_a_budget_that_is_kept_by_far_is_certain_and_one_that_is_kept_narrowly_is_not() -> None:
    budget = Budget.parse("error", "+1.0")
    assert excess(budget, PairedErrors(5000, 60, 50, 20), 0.9) <= 0
    assert excess(budget, PairedErrors(5000, 98, 50, 60), 0.9) > 0
    # The more answers change, the less certain is the same difference.
    assert excess(budget, PairedErrors(5000, 80, 50, 31), 0.9) < excess(budget, PairedErrors(5000, 80, 50, 80), 0.9)


def test_a_multiple_of_no_error_is_no_error() -> None:
    counts = PairedErrors(500, 2, 0, 2)
    assert error_bound_pct(Budget.parse("error", "2x"), counts, 0.9) == 100 * share_bound(2, 500, quantile(0.9))
    assert excess(Budget.parse("error", "2x"), counts, 0.9) > 0
    assert ratio_bound(counts, quantile(0.9)) == math.inf


def test_networks_that_get_everything_wrong_have_a_bound() -> None:
    assert share_bound(20, 20, quantile(0.9)) == 1.0
    assert difference_bound(PairedErrors(20, 20, 0, 20), quantile(0.9)) == 1.0
    assert difference_bound(PairedErrors(20, 0, 20, 0), quantile(0.9)) < 0


def test_an_evaluation_without_counts_has_none() -> None:
    assert PairedErrors.from_values({"error_pct": 1.0, "validation_pictures": 100.0}) is None
    values = {f"validation_{n}": v for n, v in zip(("pictures", "wrong", "dense_wrong", "newly_wrong"), (100, 5, 4, 3))}
    counts = PairedErrors.from_values(values)
    assert counts == PairedErrors(100, 5, 4, 3) and counts.newly_right == 2 and counts.dense_error_pct == 4
