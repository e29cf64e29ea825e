"""Splits that the seed fixes, preprocessing, and data that cannot be used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from paretopress.evaluators import data as module
from paretopress.evaluators.data import DataSet, Pictures, Preprocess, SplitSizes, check_measurable, split, standardise
from paretopress.policies.errors import DataError


def pictures(count: int, first: int = 0, dtype: type = np.uint8) -> Pictures:
    """Pictures (count, 1, 2, 2) whose first two pixels tell their number."""
    numbers = np.arange(first, first + count)
    images = np.zeros((count, 1, 2, 2), dtype)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = numbers % 256, numbers // 256
    return Pictures(images, numbers % 10)


def numbers(part: Pictures | None) -> list[int]:
    assert part is not None
    return (part.images[:, 0, 0, 0].astype(int) + 256 * part.images[:, 0, 0, 1].astype(int)).tolist()


def parts(data: DataSet) -> tuple[list[int], list[int], list[int], list[int]]:
    return numbers(data.train), numbers(data.calibration), numbers(data.validation), numbers(data.test)


@given(st.integers(30, 700), st.floats(0.05, 0.4), st.integers(1, 50), st.floats(0.05, 0.4), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_splits_are_disjoint_and_lose_no_picture(count, validation, calibration, test, seed):
    data = split("d", pictures(count), None, SplitSizes(validation, calibration, test), seed)
    train, ranges, held, final = parts(data)
    assert sorted(train + held + final) == list(range(count))
    assert set(ranges) <= set(train)
    assert len(ranges) == min(calibration, len(train))
    assert len(final) == round(test * count)
    assert len(held) == round(validation * (count - len(final)))


def test_the_seed_fixes_the_splits():
    one, again, other = (split("d", pictures(200), None, SplitSizes(), seed) for seed in (4, 4, 5))
    assert parts(one) == parts(again)
    assert one.digest() == again.digest()
    assert parts(one)[2] != parts(other)[2]
    assert one.digest() != other.digest()


@pytest.mark.parametrize("given", [None, 20])
def test_pictures_that_are_nobody_elses_are_put_in_order_where_they_lie(given):
    own, others = pictures(200), pictures(200)
    validation = None if given is None else pictures(given, 300)
    one = split("d", others, None, SplitSizes(), 4, validation=validation)
    other = split("d", own, None, SplitSizes(), 4, validation=validation, owned=True)
    assert one.digest() == other.digest()
    assert numbers(others) == list(range(200)), "the caller's pictures stay in their order"
    assert all(np.shares_memory(part.images, own.images) for part in (other.train, other.test, other.calibration))
    assert not np.shares_memory(one.train.images, others.images)


def test_parts_of_the_same_pictures_are_in_memory_once():
    data = split("d", pictures(200), None, SplitSizes(), 0)
    whole = data.train.images.base
    assert all(part.images.base is whole for part in (data.calibration, data.validation, data.test))


def test_labels_stay_with_their_pictures():
    data = split("d", pictures(300), None, SplitSizes(), 1)
    for part in (data.train, data.calibration, data.validation, data.test):
        assert [number % 10 for number in numbers(part)] == part.labels.tolist()


def test_given_test_and_validation_pictures_are_taken_whole():
    given_test, given_validation = pictures(20, 300), pictures(30, 400)
    data = split("d", pictures(200), given_test, SplitSizes(0.25), 0)
    assert (numbers(data.test), len(data.validation), len(data.train)) == (list(range(300, 320)), 50, 150)
    data = split("d", pictures(200), given_test, SplitSizes(0.25), 0, validation=given_validation)
    assert sorted(numbers(data.validation)) == list(range(400, 430)) != numbers(data.validation)
    assert sorted(numbers(data.train)) == list(range(200))


@pytest.mark.parametrize("part", ["train", "calibration", "validation"])
@pytest.mark.parametrize("given", [False, True])
def test_the_first_pictures_of_data_that_is_sorted_by_its_classes_are_of_all_classes(part, given):
    images, labels = np.zeros((1000, 1, 2, 2), np.uint8), np.repeat(np.arange(10), 100)
    validation = Pictures(images, labels) if given else None
    data = split("sorted", Pictures(images, labels), None, SplitSizes(200, 200), 0, validation=validation)
    assert set(getattr(data, part).labels[:100]) == set(range(10))


def test_sizes_of_one_and_more_are_counts():
    data = split("d", pictures(100), None, SplitSizes(validation=10, calibration=7, test=30), 0)
    assert [len(part) for part in (data.train, data.calibration, data.validation)] == [60, 7, 10]
    assert len(data.test) == 30


def test_classes_are_counted_over_all_splits():
    rare = Pictures(np.zeros((5, 1, 2, 2), np.uint8), np.full(5, 17))
    assert split("d", pictures(100), rare, SplitSizes(), 0).num_classes == 18
    assert split("d", pictures(100), rare, SplitSizes(), 0, num_classes=40).num_classes == 40


@pytest.mark.parametrize(
    ("count", "test", "sizes", "message"),
    [
        (0, None, SplitSizes(), "data set 'd' is empty: expected training pictures"),
        (0, 5, SplitSizes(), "data set 'd' is empty"),
        (50, 0, SplitSizes(), "the test split is empty"),
        (2, None, SplitSizes(), "2 pictures cannot give 0 for test and keep some for training; change data.test"),
        (50, None, SplitSizes(test=50), "50 pictures cannot give 50 for test .* change data.test"),
        (50, None, SplitSizes(test=80), "50 pictures cannot give 80 for test .* change data.test"),
        (400, None, SplitSizes(test=0.999999), "400 pictures cannot give 400 for test .* change data.test"),
        (400, None, SplitSizes(test=0.99), "4 pictures cannot give 0 for validation .* data.validation or data.test"),
        (50, 10, SplitSizes(validation=50), "50 pictures cannot give 50 for validation"),
        (50, 10, SplitSizes(validation=70), "50 pictures cannot give 70 for validation"),
        (4, 10, SplitSizes(validation=0.1), "4 pictures cannot give 0 for validation"),
    ],
)
def test_too_few_pictures_are_refused(count, test, sizes, message):
    with pytest.raises(DataError, match=message):
        split("d", pictures(count), None if test is None else pictures(test), sizes, 0)


def test_empty_validation_pictures_are_refused():
    with pytest.raises(DataError, match="the validation split is empty"):
        split("d", pictures(50), pictures(5), SplitSizes(), 0, validation=pictures(0))


@pytest.mark.parametrize(
    "sizes", [{"test": 1.5}, {"validation": 20.25}, {"validation": 0}, {"test": float("nan")}, {"test": -3}]
)
def test_a_size_is_a_share_or_a_whole_number(sizes):
    with pytest.raises(
        DataError, match=rf"data\.{next(iter(sizes))}: expected a share above 0 and below 1, or a whole"
    ):
        SplitSizes(**sizes)


@pytest.mark.parametrize(
    ("count", "sizes", "limit", "message"),
    [
        (100, SplitSizes(validation=1), None, "the validation split has 1 pictures, .* raise data.validation, or give"),
        (
            100,
            SplitSizes(validation=20, test=9),
            None,
            "the test split has 9 pictures, .* raise data.test, or give more",
        ),
        (
            40,
            SplitSizes(),
            40,
            "the validation split has 3 pictures, .* raise data.validation or data.limit, which is 40",
        ),
    ],
)
def test_splits_on_which_an_error_says_nothing_are_refused(count, sizes, limit, message):
    with pytest.raises(DataError, match=message):
        check_measurable(split("d", pictures(count), None, sizes, 0), limit)
    check_measurable(split("d", pictures(200), None, SplitSizes(), 0))


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((4, 8, 8), np.uint8), np.zeros(4, int), r"shapes \(4, 8, 8\) and \(4,\)"),
        (np.zeros((4, 1, 8, 8), np.uint8), np.zeros(3, int), r"shapes \(4, 1, 8, 8\) and \(3,\)"),
        (np.zeros((4, 1, 8, 8), np.float64), np.zeros(4, int), "uint8 or float32, got float64"),
        (np.zeros((4, 1, 8, 8), np.int64), np.zeros(4, int), "uint8 or float32, got int64"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(images, labels, message):
    with pytest.raises(DataError, match=message):
        Pictures(images, labels)


def test_without_test_drops_only_the_test_split():
    data = split("d", pictures(100), None, SplitSizes(), 0)
    bare = data.without_test()
    assert bare.test is None
    assert bare.train is data.train
    assert data.test is not None
    assert bare.digest() != data.digest()


def test_the_digest_sees_pixels_labels_shapes_and_preprocessing():
    base = pictures(40)
    changed = base.images.copy()
    changed[3, 0, 1, 1] = 1
    relabelled = base.labels.copy()
    relabelled[0] += 1
    others = [Pictures(changed, base.labels), Pictures(base.images, relabelled)]
    others += [Pictures(base.images.reshape(40, 1, 1, 4), base.labels), pictures(40, dtype=np.float32)]
    digests = {part.digest() for part in [base, *others]}
    assert len(digests) == 5
    assert Pictures(base.images.copy(), base.labels.astype(np.int32)).digest() == base.digest()
    data = split("d", base, None, SplitSizes(), 0)
    other = split("d", base, None, SplitSizes(), 0, preprocess=Preprocess((0.5,), (0.5,)))
    assert data.digest() != other.digest()


def test_preprocessing_scales_bytes_and_takes_floats_as_they_are():
    images = np.array([0, 51, 255, 102], np.uint8).reshape(1, 1, 2, 2)
    found = Preprocess((0.2,), (0.4,))(images)
    assert torch.allclose(found.flatten(), torch.tensor([-0.5, 0.0, 2.0, 0.5]))
    floats = images.astype(np.float32)
    assert torch.allclose(Preprocess((1.0,), (2.0,))(floats).flatten(), torch.tensor([-0.5, 25.0, 127.0, 50.5]))
    assert floats.max() == 255, "the pictures themselves are not changed"


def test_preprocessing_takes_pictures_that_are_mapped_from_a_file_read_only():
    images = pictures(3).images
    images.flags.writeable = False
    assert Preprocess()(images).shape == (3, 1, 2, 2)


def test_preprocessing_resizes_each_channel():
    images = np.full((2, 3, 8, 8), 255, np.uint8)
    images[:, 1] = 0
    found = Preprocess((0.0, 0.0, 0.5), (1.0, 1.0, 0.5), (4, 6))(images)
    assert found.shape == (2, 3, 4, 6)
    assert torch.allclose(found.mean((0, 2, 3)), torch.tensor([1.0, 0.0, 1.0]))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_standardised_pictures_have_mean_0_and_spread_1(dtype):
    images = np.random.default_rng(0).integers(0, 200, (50, 2, 6, 6)).astype(dtype)
    images[:, 1] = images[:, 1] // 2 + 50
    x = standardise(Pictures(images, np.zeros(50, int)))(images)
    assert x.mean((0, 2, 3)).abs().max() < 1e-2
    assert (x.std((0, 2, 3)) - 1).abs().max() < 1e-2


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("values", [1, 100, 2**20])
def test_the_statistics_by_chunks_are_those_of_all_pictures_at_once(monkeypatch, dtype, values):
    images = np.random.default_rng(0).normal(120, 30, (77, 3, 5, 4)).clip(0, 255).astype(dtype)
    monkeypatch.setattr(module, "CHUNK_VALUES", values)
    found = standardise(Pictures(images, np.zeros(77, int)))
    scale = 255 if dtype == np.uint8 else 1
    mean, std = images.mean((0, 2, 3), dtype=np.float64) / scale, images.std((0, 2, 3), dtype=np.float64) / scale
    assert found.mean == tuple(np.round(mean, 4).tolist())
    assert found.std == tuple(np.round(std, 4).tolist())
    assert (
        Pictures(images[::-1], np.zeros(77, int)).digest() == Pictures(images[::-1].copy(), np.zeros(77, int)).digest()
    )


def test_constant_pictures_are_no_division_by_zero():
    flat = Pictures(np.full((4, 1, 2, 2), 7, np.uint8), np.zeros(4, int))
    assert standardise(flat)(flat.images).isfinite().all()


def test_batches_come_in_order_and_whole():
    data = split("d", pictures(100), None, SplitSizes(), 0)
    found = list(data.batches(data.train, 7))
    assert [len(labels) for _, labels in found] == [7] * 10 + [2]
    assert torch.cat([labels for _, labels in found]).tolist() == data.train.labels.tolist()
    assert all(x.dtype == torch.float32 and labels.dtype == torch.int64 for x, labels in found)


def test_the_input_shape_is_that_of_the_preprocessed_picture():
    data = split("d", pictures(100), None, SplitSizes(), 0)
    assert data.input_shape == (1, 2, 2)
    data = split("d", pictures(100), None, SplitSizes(), 0, preprocess=Preprocess(size=(5, 6)))
    assert data.input_shape == (1, 5, 6)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_input_does_not_depend_on_how_the_pictures_lie_in_memory(channels):
    straight = np.random.default_rng(0).integers(0, 255, (4, channels, 6, 5), np.uint8)
    last = np.ascontiguousarray(straight.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    one, other = Preprocess()(straight), Preprocess()(last)
    assert torch.equal(one, other)
    assert one.stride() == other.stride() == (channels * 30, 30, 5, 1)
