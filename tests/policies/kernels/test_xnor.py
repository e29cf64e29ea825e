"""Convolution by XNOR and bit count, against the convolution of the signs in floats."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from paretopress.policies.errors import InputError
from paretopress.policies.kernels import pack_binary_weight, xnor_conv2d


def reference(x: np.ndarray, weight: np.ndarray, stride: tuple[int, int], padding: tuple[int, int]) -> np.ndarray:
    """1603.05279, eq. 11, in float64; padding is 0."""
    inputs, filters = torch.from_numpy(x).double(), torch.from_numpy(weight).double()
    signs = torch.where(inputs < 0, -1.0, 1.0).double()
    products = functional.conv2d(signs, torch.where(filters < 0, -1.0, 1.0).double(), stride=stride, padding=padding)
    box = torch.full((1, 1, *weight.shape[2:]), 1.0 / (weight.shape[2] * weight.shape[3]), dtype=torch.float64)
    scales = functional.conv2d(inputs.abs().mean(1, keepdim=True), box, stride=stride, padding=padding)
    return (products * scales * filters.abs().mean((1, 2, 3))[None, :, None, None]).numpy()


def pictures(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("x", "filters", "kernel", "stride", "padding"),
    [
        ((1, 64, 8, 8), 8, (3, 3), (1, 1), (1, 1)),
        ((2, 3, 5, 7), 4, (3, 3), (1, 1), (1, 1)),
        ((1, 70, 9, 9), 5, (3, 3), (2, 2), (1, 1)),
        ((1, 128, 14, 14), 6, (3, 3), (1, 1), (0, 0)),
        ((1, 130, 6, 6), 7, (1, 1), (1, 1), (0, 0)),
        ((2, 33, 10, 6), 3, (5, 3), (2, 1), (2, 0)),
        ((1, 5, 3, 3), 2, (5, 5), (1, 1), (2, 2)),
        ((1, 1, 1, 1), 1, (3, 3), (1, 1), (1, 1)),
        ((1, 7, 4, 4), 2, (2, 2), (3, 3), (2, 2)),
        ((1, 64, 40, 40), 3, (3, 3), (1, 1), (1, 1)),
        ((1, 300, 12, 12), 3, (5, 5), (1, 1), (2, 2)),
    ],
)
def test_equals_the_convolution_of_signs_times_both_scales(
    x: tuple[int, ...], filters: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    inputs, weight = pictures(*x), pictures(filters, x[1], *kernel, seed=1)
    found = xnor_conv2d(inputs, pack_binary_weight(weight), stride=stride, padding=padding)
    expected = reference(inputs, weight, stride, padding)
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


def test_sums_of_signs_are_exact_where_the_scales_are_powers_of_two() -> None:
    signs = np.where(pictures(1, 128, 9, 9) < 0, np.float32(-1), np.float32(1))
    weight = np.where(pictures(4, 128, 2, 2, seed=1) < 0, np.float32(-0.5), np.float32(0.5))
    found = xnor_conv2d(signs, pack_binary_weight(weight))
    assert np.array_equal(found, reference(signs, weight, (1, 1), (0, 0)))


def test_zero_and_minus_zero_count_as_positive() -> None:
    x = np.array([0.0, -0.0, 1.0, -1.0], np.float32).reshape(1, 4, 1, 1)
    weight = np.array([1.0, 1.0, 0.0, -0.0], np.float32).reshape(1, 4, 1, 1)
    found = xnor_conv2d(x, pack_binary_weight(weight))
    assert found.item() == (1 + 1 + 1 - 1) * 0.5 * 0.5


def test_padding_adds_nothing() -> None:
    x = np.ones((1, 65, 1, 1), np.float32)
    found = xnor_conv2d(x, pack_binary_weight(np.ones((1, 65, 3, 3), np.float32)), padding=1)
    assert found.item() == pytest.approx(65 / 9)


def test_alpha_is_the_mean_magnitude_of_each_filter() -> None:
    weight = pictures(5, 3, 3, 3)
    np.testing.assert_allclose(pack_binary_weight(weight).alpha, np.abs(weight).mean((1, 2, 3)), rtol=1e-6)


def test_takes_inputs_that_are_not_contiguous_and_empty_batches() -> None:
    x, weight = pictures(1, 6, 7, 20).transpose(0, 3, 1, 2), pictures(2, 20, 3, 3, seed=1)
    np.testing.assert_allclose(
        xnor_conv2d(x, pack_binary_weight(weight)), reference(x.copy(), weight, (1, 1), (0, 0)), rtol=2e-5, atol=1e-6
    )
    assert xnor_conv2d(x[:0], pack_binary_weight(weight)).shape == (0, 2, 4, 5)


def test_writes_to_an_array_that_is_given() -> None:
    x, weight = pictures(2, 6, 5, 5), pack_binary_weight(pictures(3, 6, 3, 3, seed=1))
    out = np.full((2, 3, 3, 3), np.nan, np.float32)
    assert xnor_conv2d(x, weight, out=out) is out
    assert np.array_equal(out, xnor_conv2d(x, weight))


WEIGHT = pack_binary_weight(np.ones((2, 4, 3, 3), np.float32))


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.ones((1, 4, 5, 5)), {}, r"expected x as float32, got float64; convert it with astype"),
        (np.ones((4, 5, 5), np.float32), {}, r"expected x \(N, C, H, W\) with no empty axis, got shape \(4, 5, 5\)"),
        (torch.ones(1, 4, 5, 5), {}, r"expected x \(N, C, H, W\) as a numpy array, got Tensor"),
        (np.ones((1, 3, 5, 5), np.float32), {}, r"expected x with the 4 channels of the weight, got 3"),
        (np.ones((1, 4, 2, 5), np.float32), {}, r"no smaller than the kernel \(3, 3\), got \(2, 5\).*pad more"),
        (
            np.ones((1, 4, 5, 5), np.float32),
            {"out": np.ones((1, 2, 3, 3))},
            r"expected out .* got float64 \(1, 2, 3, 3\)",
        ),
        (np.ones((1, 4, 5, 5), np.float32), {"stride": 0}, r"expected stride as a whole number of at least 1 .* got 0"),
        (np.ones((1, 4, 5, 5), np.float32), {"padding": (1, -1)}, r"expected padding .* at least 0 .* got \(1, -1\)"),
    ],
)
def test_refuses_what_does_not_fit(x: np.ndarray, options: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        xnor_conv2d(x, WEIGHT, **options)


def test_refuses_a_weight_that_is_none_of_a_convolution() -> None:
    with pytest.raises(InputError, match=r"expected weight \(F, C, kh, kw\) with no empty axis, got shape \(2, 4\)"):
        pack_binary_weight(np.ones((2, 4), np.float32))


WITHOUT_NUMBA = """
import sys
import paretopress
import paretopress.policies.kernels as kernels
import numpy as np
assert "numba" not in sys.modules, "importing the package imports numba"
sys.modules["numba"] = None
x = np.ones((1, 4, 3, 3), np.float32)
for call in (
    lambda: kernels.xnor_conv2d(x, kernels.pack_binary_weight(x)),
    lambda: kernels.sparse_pointwise(x, kernels.pack_sparse_weight(x[:, :, :1, :1])),
):
    try:
        call()
    except paretopress.policies.errors.InputError as error:
        assert "pip install 'paretopress[kernels]'" in str(error), error
    else:
        raise AssertionError("no refusal")
"""


def test_numba_is_imported_only_by_a_call_which_says_what_to_install() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_NUMBA], check=True, timeout=120)
