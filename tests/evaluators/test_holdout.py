from __future__ import annotations

import numpy as np
import pytest
from paretopress.evaluators.data import DataSet, Pictures, SplitSizes
from paretopress.evaluators.holdout import differ_by_more_than_chance, whole_test, with_validation_from
from paretopress.evaluators.provenance import digest_pictures
from paretopress.evaluators.sources import as_dataset
from paretopress.policies.errors import DataError
from scipy.stats import binom

SIZES = SplitSizes(validation=20, calibration=16, test=0.2)


def numbered(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures that hold their own number."""
    images = np.tile(np.arange(start, stop, dtype=np.float32)[:, None, None, None], (1, 1, 2, 2))
    return images, np.arange(start, stop) % 3


def loaded(test: int = 100, **splits: tuple[np.ndarray, np.ndarray]) -> DataSet:
    data = {"train": numbered(0, 200), "test": numbered(1000, 1000 + test), **splits}
    return as_dataset(data, sizes=SIZES, seed=0)


def numbers(pictures: Pictures | None) -> set[int]:
    assert pictures is not None
    return set(pictures.images[:, 0, 0, 0].astype(int).tolist())


def test_a_share_of_the_test_pictures_is_compared_on_and_the_rest_is_left_for_the_last_reading() -> None:
    before = loaded()
    data = with_validation_from(before, "testing", SIZES, 0)
    assert len(data.validation) == 30 and len(data.test or ()) == 70
    assert not numbers(data.validation) & numbers(data.test)
    assert numbers(data.validation) | numbers(data.test) == set(range(1000, 1100))
    assert numbers(data.train) == set(range(200)), "all training pictures are for training"
    assert np.array_equal(data.calibration.images, before.calibration.images)
    assert np.array_equal(data.train.images[:180], before.train.images)
    assert data.preprocess == before.preprocess
    assert (data.validation_from, data.test_from) == ("testing", "own")


def test_the_share_follows_from_the_seed_and_has_an_end() -> None:
    digests = [digest_pictures(with_validation_from(loaded(), "testing", SIZES, seed).validation) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    large = with_validation_from(loaded(20_000), "testing", SIZES, 0)
    assert (len(large.validation), len(large.test or ())) == (5_000, 15_000)


def test_small_test_splits_give_enough_to_both_readings_or_are_refused() -> None:
    small = with_validation_from(loaded(20), "testing", SIZES, 0)
    assert (len(small.validation), len(small.test or ())) == (10, 10)
    with pytest.raises(DataError, match=r"19 test pictures cannot give 10 .* data\.validation_from: training"):
        with_validation_from(loaded(19), "testing", SIZES, 0)


def test_the_datas_own_validation_split_is_used_unless_another_is_asked_for() -> None:
    own = loaded(validation=numbered(500, 540))
    assert own.validation_from == "own"
    assert with_validation_from(own, "own", SIZES, 0) is own
    cut = with_validation_from(own, "training", SIZES, 0)
    assert (cut.validation_from, cut.test_from, len(cut.validation), len(cut.train)) == ("training", "own", 20, 180)
    assert numbers(cut.validation) | numbers(cut.train) == set(range(200))
    assert numbers(cut.calibration) <= numbers(cut.train)
    assert numbers(cut.test) == set(range(1000, 1100))
    tested = with_validation_from(own, "testing", SIZES, 0)
    assert numbers(tested.train) == set(range(200)) and len(tested.validation) == 30


def test_what_was_cut_from_training_pictures_is_known() -> None:
    assert (loaded().validation_from, loaded().test_from) == ("training", "own")
    alone = as_dataset(numbered(0, 200), sizes=SIZES)
    assert (alone.validation_from, alone.test_from) == ("training", "training")
    assert with_validation_from(alone, "training", SIZES, 0) is alone


def test_the_error_on_the_whole_test_split_is_that_of_all_its_pictures() -> None:
    data = with_validation_from(loaded(), "testing", SIZES, 0)
    assert data.test is not None
    wrong = {*range(1000, 1013)}
    errors = [100 * len(numbers(part) & wrong) / len(part) for part in (data.validation, data.test)]
    found = whole_test(data, *errors)
    assert found["whole_test_error_pct"] == pytest.approx(13.0)
    assert (found["whole_test_pictures"], found["whole_test_compared_pictures"]) == (100, 30)
    assert whole_test(loaded(), *errors) == {}


def test_errors_that_differ_by_more_than_chance_are_told_apart() -> None:
    assert differ_by_more_than_chance(7.9, 5_000, 11.8, 10_000)
    assert differ_by_more_than_chance(11.8, 10_000, 7.9, 5_000)
    assert not differ_by_more_than_chance(10.02, 5_000, 11.40, 10_000)
    assert not differ_by_more_than_chance(0.0, 5_000, 0.0, 10)
    assert not differ_by_more_than_chance(1.0, 5_000, 20.0, 10), "two of ten are more than chance once in 250"


@pytest.mark.parametrize(("first", "second", "share"), [(200, 400, 0.1), (5_000, 7_000, 0.1), (1_000, 20, 0.02)])
def test_equal_networks_are_hardly_ever_told_apart(first: int, second: int, share: float) -> None:
    """The level holds: over pairs of counts that the same share brings about, those told apart sum to 0.1 % at most."""
    counts = [np.arange(count + 1) for count in (first, second)]
    likely = [binom.pmf(k, count, share) for k, count in zip(counts, (first, second))]
    kept = [[k for k in range(len(p)) if p[k] > 1e-4][:: max(1, int((p > 1e-4).sum()) // 12)] for p in likely]
    chance = [likely[part][kept[part]] / likely[part][kept[part]].sum() for part in (0, 1)]
    told = sum(
        a * b
        for i, a in zip(kept[0], chance[0])
        for j, b in zip(kept[1], chance[1])
        if differ_by_more_than_chance(100 * i / first, first, 100 * j / second, second)
    )
    assert told <= 2e-3
