"""1x1 convolution with a sparse weight, against the dense product."""

from __future__ import annotations

import numpy as np
import pytest
from paretopress.policies.errors import InputError
from paretopress.policies.kernels import pack_sparse_weight, sparse_pointwise


def sparse(filters: int, channels: int, zeros: float, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    weight = draw.standard_normal((filters, channels, 1, 1), dtype=np.float32)
    return weight * (draw.random(weight.shape) >= zeros)


def dense(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.einsum("fc,nchw->nfhw", weight[:, :, 0, 0].astype(np.float64), x.astype(np.float64))


@pytest.mark.parametrize("zeros", [0.0, 0.9, 0.95])
@pytest.mark.parametrize(
    ("filters", "x"),
    [(32, (1, 16, 14, 14)), (5, (3, 7, 9, 11)), (3, (1, 4, 1, 1)), (4, (1, 8, 3, 5)), (8, (2, 6, 4, 4))],
)
def test_equals_the_dense_product(zeros: float, filters: int, x: tuple[int, ...]) -> None:
    inputs = np.random.default_rng(1).standard_normal(x, dtype=np.float32)
    weight = sparse(filters, x[1], zeros)
    found = sparse_pointwise(inputs, pack_sparse_weight(weight))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, dense(inputs, weight), rtol=1e-5, atol=1e-5)


def test_many_channels_are_worked_on_in_tiles() -> None:
    inputs = np.random.default_rng(1).standard_normal((1, 1500, 13, 13), dtype=np.float32)
    weight = sparse(3, 1500, 0.9)
    np.testing.assert_allclose(
        sparse_pointwise(inputs, pack_sparse_weight(weight)), dense(inputs, weight), rtol=1e-4, atol=1e-4
    )


def test_empty_rows_and_an_empty_weight_give_zeros() -> None:
    weight = sparse(6, 4, 0.0)
    weight[[0, 2, 5]] = 0.0
    x = np.random.default_rng(1).standard_normal((1, 4, 5, 5), dtype=np.float32)
    found = sparse_pointwise(x, pack_sparse_weight(weight))
    assert not found[:, [0, 2, 5]].any()
    assert found[:, [1, 3, 4]].all()
    assert not sparse_pointwise(x, pack_sparse_weight(np.zeros_like(weight))).any()


def test_only_nonzero_weights_are_stored_row_after_row() -> None:
    weight = np.array([[0, 2, 0], [0, 0, 0], [3, 0, 4]], np.float32).reshape(3, 3, 1, 1)
    packed = pack_sparse_weight(weight)
    assert packed.values.tolist() == [2, 3, 4]
    assert packed.columns.tolist() == [1, 0, 2]
    assert packed.row_starts.tolist() == [0, 1, 1, 3]


@pytest.mark.parametrize("size", [2, 6])
def test_writes_to_an_array_that_is_given(size: int) -> None:
    x = np.random.default_rng(1).standard_normal((2, 4, size, size), dtype=np.float32)
    packed, out = pack_sparse_weight(sparse(3, 4, 0.5)), np.full((2, 3, size, size), np.nan, np.float32)
    assert sparse_pointwise(x, packed, out=out) is out
    assert np.array_equal(out, sparse_pointwise(x, packed))
    with pytest.raises(InputError, match=r"expected out as a contiguous, writable float32 array .* got float32 \(3,"):
        sparse_pointwise(x, packed, out=np.empty((3, 3, size, size), np.float32))


WEIGHT = pack_sparse_weight(np.ones((2, 4, 1, 1), np.float32))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones((1, 4, 5, 5)), r"expected x as float32, got float64"),
        (np.ones((4, 25), np.float32), r"expected x \(N, C, H, W\) with no empty axis, got shape \(4, 25\)"),
        (np.ones((1, 3, 5, 5), np.float32), r"expected x with the 4 channels of the weight, got 3"),
    ],
)
def test_refuses_what_does_not_fit(x: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sparse_pointwise(x, WEIGHT)


def test_refuses_kernels_wider_than_one() -> None:
    with pytest.raises(InputError, match=r"expected weight \(F, C, 1, 1\), got shape \(2, 4, 3, 3\)"):
        pack_sparse_weight(np.ones((2, 4, 3, 3), np.float32))
