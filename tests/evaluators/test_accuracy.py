"""The error of predictions and its interval."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from paretopress.evaluators import accuracy
from paretopress.evaluators.accuracy import error_interval, error_pct
from paretopress.evaluators.sources import as_dataset
from scipy.stats import binomtest


def test_the_error_is_the_share_of_wrong_labels_in_per_cent():
    logits = np.array([[2.0, 1, 0], [0, 3, 1], [0, 1, 5], [9, 0, 0]])
    assert error_pct(logits, np.array([0, 1, 2, 0])) == 0
    assert error_pct(logits, np.array([0, 1, 1, 1])) == 50
    assert error_pct(-logits, np.array([1, 1, 1, 0])) == 100


@pytest.mark.parametrize(
    ("wrong", "count", "low", "high"),
    [
        # The first four: Newcombe 1998, Statistics in Medicine 17, method 3 (Wilson's score).
        (81, 263, 25.53, 36.62),
        (15, 148, 6.24, 16.05),
        (0, 20, 0.0, 16.11),
        (1, 29, 0.61, 17.18),
        (29, 29, 88.30, 100.0),
    ],
)
def test_the_interval_is_wilsons(wrong, count, low, high):
    assert error_interval(100 * wrong / count, count) == pytest.approx((low, high), abs=0.006)


@given(st.integers(1, 20_000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_it_agrees_with_scipy_and_holds_the_error(case):
    wrong, count = case
    low, high = error_interval(100 * wrong / count, count)
    known = binomtest(wrong, count).proportion_ci(0.95, "wilson")
    assert (low, high) == pytest.approx((100 * known.low, 100 * known.high), abs=1e-4)
    assert 0 <= low <= 100 * wrong / count + 1e-9
    assert 100 * wrong / count - 1e-9 <= high <= 100


@pytest.mark.parametrize(("values", "largest"), [(2**20, 100), (4 * 12, 4), (1, 1)])
def test_fewer_pictures_are_run_at_once_where_they_are_large(monkeypatch, values, largest):
    images = np.random.default_rng(0).normal(size=(230, 3, 2, 2)).astype(np.float32)
    data = as_dataset((images, np.arange(230) % 3))
    sizes = []

    class Counting(torch.nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return x.sum((2, 3))

    monkeypatch.setattr(accuracy, "MAX_BATCH_VALUES", values)
    found = accuracy.model_error(Counting(), data, data.train)
    assert max(sizes) == largest and sum(sizes) == len(data.train)
    assert found == error_pct(data.train.images.sum((2, 3)), data.train.labels)
