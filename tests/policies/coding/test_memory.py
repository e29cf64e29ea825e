"""Tensors that were written before are written again without being planned anew."""

from __future__ import annotations

import numpy as np
import pytest
from paretopress.policies.coding import memory
from paretopress.policies.coding.memory import CodingMemory
from paretopress.policies.coding.press import decode, encode
from paretopress.policies.coding.tensors import CodebookTensor, DenseTensor, SparseTensor, StoredTensor, UniformTensor


def tensors(seed: int) -> dict[str, StoredTensor]:
    rng = np.random.default_rng(seed)
    mask = rng.random((16, 36)) < 0.3
    codes = np.clip(np.rint(rng.normal(0, 2, (16, 36))), -7, 7).astype(np.int8)
    book, picked = rng.normal(size=8).astype(np.float32), rng.integers(0, 8, 576).astype(np.uint8)
    return {
        "sparse": SparseTensor(mask, rng.normal(size=np.count_nonzero(mask)).astype(np.float32)),
        "uniform": UniformTensor(codes, np.ones(16, np.float32), 4),
        "shared": CodebookTensor(None, picked, book, (16, 36)),
        "pruned and shared": CodebookTensor(mask, picked[mask.ravel()], book, (16, 36)),
        "dense": DenseTensor(rng.normal(size=16).astype(np.float32)),
        "empty": UniformTensor(np.zeros((0, 3), np.int8), np.zeros(0, np.float32), 8),
    }


def test_files_are_the_same_with_and_without_memory():
    kept = CodingMemory()
    for seed in (0, 1, 0, 1):
        data = encode(tensors(seed), {"seed": seed}, kept)
        assert data == encode(tensors(seed), {"seed": seed})
        assert list(decode(data).tensors) == list(tensors(seed))


def test_tensors_that_were_written_are_not_planned_again(monkeypatch: pytest.MonkeyPatch):
    planned: list[str] = []
    real = memory.write_tensor
    monkeypatch.setattr(memory, "write_tensor", lambda w, e, t: (planned.append(e.name), real(w, e, t)))
    kept = CodingMemory()
    first, other = tensors(0), tensors(1)
    for stored in (first, first, other, {**first, "uniform": other["uniform"]}):
        encode(stored, {}, kept)
    assert planned == 2 * ["sparse", "uniform", "shared", "pruned and shared"]


def test_the_same_codes_in_another_shape_are_other_tensors():
    codes = np.arange(-4, 4, dtype=np.int8)
    kept = CodingMemory()
    for shape in ((2, 4), (4, 2), (8,)):
        stored = {"a": UniformTensor(codes.reshape(shape), np.ones(1, np.float32), 4)}
        assert encode(stored, {}, kept) == encode(stored, {})


def test_no_more_is_kept_than_the_capacity():
    kept = CodingMemory(capacity_bytes=20_000)
    for seed in range(20):
        encode(tensors(seed), {}, kept)
        assert sum(writer.size_bytes for writer in kept._written.values()) == kept._held_bytes <= 20_000
    assert kept._written
