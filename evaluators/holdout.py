"""Which pictures candidates are compared on, and which no choice has seen."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from scipy.stats import fisher_exact

from ..policies.errors import DataError
from .data import LEAST, DataSet, Pictures, SplitSizes, split

TEST_SHARE = 0.3
"""Share of a test split that candidates are compared on, where they are compared on test pictures: the larger part stays
for the last reading, which decides what is reported."""
MAX_FROM_TEST = 5_000
"""Most pictures so taken: at 5,000 the 95 % interval of 10 % error is 1.7 points wide, and more only cost time."""
CHANCE = 1e-3
"""Probability below which a difference of two errors is called more than chance."""

ValidationFrom = Literal["own", "training", "testing"]


def with_validation_from(data: DataSet, source: ValidationFrom, sizes: SplitSizes, seed: int) -> DataSet:
    """Take the validation pictures from another split; what is as it was asked for is returned as it is.

    Parameters
    ----------
    data
        Validation pictures are a split of its own, or were cut from its training pictures.
    source
        ``own`` leaves them as they are; ``training`` cuts them from the training pictures; ``testing`` takes a share of the
        test pictures, drawn by the seed, and gives those that were cut from the training pictures back to them.
    sizes
        Of the part that is cut from training pictures; of test pictures ``TEST_SHARE`` is taken, ``MAX_FROM_TEST`` at most.

    Raises
    ------
    DataError
        Where a split has too few pictures.
    """
    if source in ("own", data.validation_from):
        return data
    if source == "testing":
        return _from_test(data, seed)
    cut = split(data.name, data.train, data.test, sizes, seed, data.preprocess, data.num_classes)
    return replace(cut, test_from=data.test_from)


def _from_test(data: DataSet, seed: int) -> DataSet:
    """Compare on a share of the test pictures; the rest, in the order it came in, is for the last reading."""
    test, train = data.test, data.train
    assert test is not None, "a search has test pictures"
    if len(test) < 2 * LEAST:
        raise DataError(
            f"data set '{data.name}': {len(test)} test pictures cannot give {LEAST} to compare candidates on and {LEAST} for"
            " the last reading; give more test pictures, or data.validation_from: training"
        )
    count = min(max(LEAST, round(TEST_SHARE * len(test))), MAX_FROM_TEST)
    order = np.random.default_rng([seed, 0x7E57]).permutation(len(test))
    if data.validation_from == "training":
        train = _join(train, data.validation)
    # Training pictures come first as before, so that those that calibrate and the first few of a trial stay the same.
    return replace(
        data,
        train=train,
        validation=test.take(order[:count]),
        test=test.take(np.sort(order[count:])),
        validation_from="testing",
    )


def _join(first: Pictures, second: Pictures) -> Pictures:
    images = np.concatenate([first.images, second.images])
    return Pictures(images, np.concatenate([first.labels, second.labels]))


def whole_test(data: DataSet, validation_error_pct: float, error_pct: float) -> dict[str, float]:
    """Return the error on the source's whole test split, where a part of it was compared on; nothing otherwise.

    Parameters
    ----------
    validation_error_pct, error_pct
        In per cent, of one file on the validation pictures and on the test pictures that no choice has seen.

    Returns
    -------
    dict
        ``whole_test_error_pct``, the number of its pictures, and of those among them on which a choice was made.
    """
    if data.validation_from != "testing":
        return {}
    assert data.test is not None, "a search has test pictures"
    compared, last = len(data.validation), len(data.test)
    return {
        "whole_test_error_pct": (validation_error_pct * compared + error_pct * last) / (compared + last),
        "whole_test_pictures": float(compared + last),
        "whole_test_compared_pictures": float(compared),
    }


def differ_by_more_than_chance(first_pct: float, first_count: int, second_pct: float, second_count: int) -> bool:
    """Tell whether two errors on different pictures differ by more than chance at 99.9 %.

    Fisher's exact test of two proportions (two-sided), which holds for small counts too.

    Parameters
    ----------
    first_pct, second_pct
        Errors in per cent.
    first_count, second_count
        Numbers of pictures on which they were measured.
    """
    wrong = [round(first_pct * first_count / 100), round(second_pct * second_count / 100)]
    right = [first_count - wrong[0], second_count - wrong[1]]
    return float(fisher_exact([wrong, right]).pvalue) < CHANCE
