"""Huffman codes beside ANS: exact, larger, and masks by the shortest way."""

from __future__ import annotations

import zlib
from functools import cache

import numpy as np
import pytest
from paretopress.policies.coding.huffman import HuffmanSource, huffman_code, pack
from paretopress.policies.coding.memory import CodingMemory
from paretopress.policies.coding.positions import write_mask
from paretopress.policies.coding.press import breakdown, decode, encode
from paretopress.policies.coding.stream import Reader, Writer
from paretopress.policies.coding.symbols import write_ints
from paretopress.policies.coding.tensors import CodebookTensor, DenseTensor, SparseTensor, UniformTensor
from paretopress.policies.errors import FormatError, ModelError

RNG = np.random.default_rng(9)


def pruned(rows, columns, sparsity, seed=0):
    weight = np.random.default_rng(seed).laplace(size=(rows, columns)).astype(np.float32)
    mask = np.abs(weight) > np.quantile(np.abs(weight), sparsity)
    return SparseTensor(mask, weight[mask])


def shared(sparse, clusters=16):
    centroids = np.linspace(sparse.values.min(), sparse.values.max(), clusters, dtype=np.float32)
    codes = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, sparse.values).astype(np.int32)
    return CodebookTensor(sparse.mask, codes, centroids, sparse.mask.shape)


@cache
def model():
    return {
        "fc1.weight": shared(pruned(80, 150, 0.9)),
        "fc2.weight": CodebookTensor(None, RNG.binomial(15, 0.3, 1200), np.arange(16, dtype=np.float32), (20, 60)),
        "fc3.weight": UniformTensor(RNG.normal(0, 2, (30, 40)).clip(-7, 7).astype(np.int8), np.ones(30, np.float32), 4),
        "fc4.weight": pruned(30, 40, 0.8),
        "fc1.bias": DenseTensor(RNG.normal(size=80).astype(np.float32)),
        "steps": DenseTensor(np.array(782)),
        "empty": SparseTensor(np.zeros((0, 3), bool), np.zeros(0, np.float32)),
    }


def same(one, other):
    arrays = [(value, getattr(other, name)) for name, value in vars(one).items() if isinstance(value, np.ndarray)]
    return type(one) is type(other) and all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes()) for a, b in arrays
    )


def test_a_model_comes_back_bit_for_bit_and_is_larger_than_with_ans():
    data = encode(model(), {"name": "example"}, coder="huffman")
    again = decode(data)
    assert again.metadata == {"name": "example"}
    assert all(same(tensor, again.tensors[name]) for name, tensor in model().items())
    assert encode(again.tensors, again.metadata, coder="huffman") == data
    ans = encode(model(), {"name": "example"})
    assert len(ans) < len(data) < 1.15 * len(ans)
    assert (ans[2], data[2]) == (1, 129)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8, 0.97])
@pytest.mark.parametrize("clusters", [4, 16, 64])
def test_huffman_never_beats_ans_on_pruned_and_shared_layers(sparsity, clusters):
    tensors = {"w": shared(pruned(100, 120, sparsity), clusters)}
    sizes = {coder: len(encode(tensors, {}, coder=coder)) for coder in ("ans", "huffman")}
    assert sizes["ans"] <= sizes["huffman"]
    assert same(decode(encode(tensors, {}, coder="huffman")).tensors["w"], tensors["w"])


def test_parts_sum_to_the_file():
    for coder in ("ans", "huffman"):
        data = encode(model(), {"name": "example"}, coder=coder)
        parts = breakdown(data)
        assert sum(parts.values()) == len(data)
        assert min(parts.values()) > 0


def test_kept_symbols_of_one_coder_are_not_given_to_the_other():
    memory = CodingMemory()
    for coder in ("ans", "huffman", "ans"):
        assert encode(model(), {}, memory, coder) == encode(model(), {}, coder=coder)


def test_codes_are_prefix_free_and_within_a_bit_of_the_entropy():
    weights = np.array([40, 3, 0, 20, 9, 1, 1])
    code = huffman_code(weights)
    assert sum(2.0**-length for length in code.lengths[weights > 0].tolist()) == 1
    probabilities = weights[weights > 0] / weights.sum()
    entropy = -(probabilities * np.log2(probabilities)).sum()
    mean = (weights * code.lengths).sum() / weights.sum()
    assert entropy <= mean < entropy + 1
    words = [format(int(c), f"0{n}b") for c, n in zip(code.codes, code.lengths) if n]
    assert not any(a != b and b.startswith(a) for a in words for b in words)


def test_long_and_many_symbols_are_read_back():
    fibonacci = [1, 1]
    while len(fibonacci) < 32:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    weights = np.array(fibonacci)
    code = huffman_code(weights)
    assert int(code.lengths.max()) == 31
    values = np.concatenate([RNG.integers(0, 32, 5000), np.full(300_000, 31)])
    source = HuffmanSource(pack([code.bits(values)]))
    assert np.array_equal(source.symbols(len(values), weights), values)
    assert source.is_empty()


MASKS = {
    "bitmask": (RNG.random((60, 80)) < 0.5, 0),
    "column gaps": (np.repeat(RNG.random((1, 80)) < 0.1, 60, axis=0), 1),
    "row gaps": (np.repeat(RNG.random((60, 1)) < 0.1, 80, axis=1), 2),
    "few": (RNG.random((60, 80)) < 0.02, None),
}


@pytest.mark.parametrize(("mask", "way"), MASKS.values(), ids=MASKS)
def test_the_cheapest_of_bitmask_row_and_column_indices_is_taken(mask, way):
    writer = Writer("huffman")
    write_mask(writer, mask)
    sizes = [mask.size]
    for flat in (mask.T.ravel(), mask.ravel()):
        gaps = Writer("huffman")
        places = np.flatnonzero(flat)
        gaps.number(len(places))
        write_ints(gaps, np.diff(places, prepend=-1) - 1)
        sizes.append(gaps.huffman_bits())
    assert writer.huffman_bits() == min(sizes) + 2
    chosen = Reader(writer.bytes(), "huffman").choice(3)
    assert sizes[chosen] == min(sizes)
    assert way is None or chosen == way


@pytest.mark.parametrize("sparsity", [0.3, 0.9, 0.99, 0.999])
def test_with_ans_the_mask_is_never_dearer_than_bitmask_rows_or_columns(sparsity):
    mask = np.random.default_rng(1).random((200, 150)) > sparsity
    tensor = SparseTensor(mask, np.ones(np.count_nonzero(mask), np.float32))
    gap = int(np.ceil(np.log2(np.diff(np.flatnonzero(mask)).max() + 1)))
    column = np.count_nonzero(mask) * int(np.ceil(np.log2(150))) + 201 * int(np.ceil(np.log2(mask.sum())))
    plain_bits = min(mask.size, np.count_nonzero(mask) * gap, column)
    assert 8 * breakdown(encode({"w": tensor}, {}))["indices"] <= plain_bits


def test_an_unknown_coder_is_refused():
    with pytest.raises(ModelError, match="expected the coder ans or huffman, got 'zip'"):
        encode({}, {}, coder="zip")


def test_damage_is_told_or_harmless():
    data = encode(model(), {}, coder="huffman")
    told = 0
    for place in range(7, len(data), 97):
        body = bytearray(data)
        body[place] ^= 0x18
        body[3:7] = zlib.crc32(bytes(body[7:])).to_bytes(4, "little")
        try:
            decode(bytes(body))
        except FormatError:
            told += 1
    assert told
    with pytest.raises(FormatError):
        decode(data[: len(data) // 2])
