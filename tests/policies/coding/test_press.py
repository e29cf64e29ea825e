"""The stored form: what goes in comes out, bit for bit, in few bytes; damage is told, never guessed at."""

from __future__ import annotations

import subprocess
import sys
import zlib
from dataclasses import dataclass
from functools import cache
from math import prod

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from paretopress.policies.coding import kinds
from paretopress.policies.coding.container import frame, write_header
from paretopress.policies.coding.entries import Entry
from paretopress.policies.coding.generated import GENERATORS
from paretopress.policies.coding.memory import CodingMemory
from paretopress.policies.coding.press import breakdown, decode, encode
from paretopress.policies.coding.stream import Writer
from paretopress.policies.coding.symbols import read_ints, write_ints
from paretopress.policies.coding.tensors import (
    CodebookTensor,
    DenseTensor,
    GeneratedTensor,
    SparseTensor,
    StoredTensor,
    UniformTensor,
)
from paretopress.policies.errors import FormatError, ModelError

QUICK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=7)
DTYPES = ("float32", "int64", "uint8", "bool", "int32", "float64", "float16", "uint64")


def floats(count: int) -> st.SearchStrategy[np.ndarray]:
    """Any bit pattern: NaNs with payloads, infinities, denormals, negative zero; and repeated or rounded values."""
    anything = hnp.arrays(np.uint32, count)
    rounded = hnp.arrays(np.uint32, count, elements=st.sampled_from([0, 1 << 31, 0x3F800000, 0x7FC00001, 0x3FA00000]))
    return st.one_of(anything, rounded).map(lambda bits: bits.view(np.float32))


@st.composite
def stored_tensors(draw: st.DrawFn) -> StoredTensor:
    shape = draw(SHAPES)
    form = draw(st.sampled_from(["dense", "sparse", "codebook", "uniform"]))
    if form == "dense":
        dtype = np.dtype(draw(st.sampled_from(DTYPES)))
        if dtype == np.float32:
            return DenseTensor(draw(floats(prod(shape))).reshape(shape))
        return DenseTensor(draw(hnp.arrays(dtype, shape)))
    if form == "uniform":
        scales = draw(floats(draw(st.sampled_from([shape[0] if shape else 1, 1, 0]))))
        bits = draw(st.integers(1, 16))
        return UniformTensor(draw(hnp.arrays(np.int8 if bits <= 8 else np.int16, shape)), scales, bits)
    mask = draw(hnp.arrays(np.bool_, shape)) if form == "sparse" or draw(st.booleans()) else None
    count = prod(shape) if mask is None else int(np.count_nonzero(mask))
    if form == "sparse":
        assert mask is not None
        return SparseTensor(mask, draw(floats(count)))
    size = draw(st.integers(1, 20))
    dtype = draw(st.sampled_from([np.int32, np.uint8, np.int64]))
    codes = draw(hnp.arrays(dtype, count, elements=st.integers(0, size - 1)))
    return CodebookTensor(mask, codes, draw(floats(size)), shape)


MODELS = st.dictionaries(st.text(max_size=12), stored_tensors(), max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
METADATA = st.dictionaries(st.text(max_size=8), JSON, max_size=3)


def assert_same(tensor: StoredTensor, other: StoredTensor) -> None:
    assert type(tensor) is type(other)
    for name, value in vars(tensor).items():
        again = getattr(other, name)
        if isinstance(value, np.ndarray):
            assert (again.dtype, again.shape) == (value.dtype, value.shape), name
            assert again.tobytes() == value.tobytes(), name
        else:
            assert again == value, name


def assert_round_trip(tensors: dict[str, StoredTensor], compact: bool = False) -> bytes:
    data = encode(tensors, {}, compact=compact)
    again = decode(data).tensors
    assert list(again) == list(tensors)
    for name, tensor in tensors.items():
        assert_same(tensor, again[name])
    return data


def pruned_layer(rows: int, columns: int, sparsity: float, seed: int = 0) -> SparseTensor:
    weight = np.random.default_rng(seed).laplace(size=(rows, columns)).astype(np.float32)
    mask = np.abs(weight) > np.quantile(np.abs(weight), sparsity)
    return SparseTensor(mask, weight[mask])


def shared(sparse: SparseTensor, clusters: int) -> CodebookTensor:
    """Linear initial centroids and a few rounds of Lloyd's algorithm."""
    centroids = np.linspace(sparse.values.min(), sparse.values.max(), clusters, dtype=np.float32)
    for _ in range(10):
        codes = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, sparse.values)
        counts = np.bincount(codes, minlength=clusters)
        sums = np.bincount(codes, sparse.values, minlength=clusters)
        centroids = np.sort(np.where(counts > 0, sums / np.maximum(counts, 1), centroids).astype(np.float32))
    codes = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, sparse.values).astype(np.int32)
    return CodebookTensor(sparse.mask, codes, centroids, sparse.mask.shape)


def entropy_bits(symbols: np.ndarray) -> float:
    counts = np.unique(symbols, return_counts=True)[1]
    return float((counts * np.log2(counts.sum() / counts)).sum())


def example() -> dict[str, StoredTensor]:
    rng = np.random.default_rng(1)
    return {
        "conv1.weight": shared(pruned_layer(8, 25, 0.5), 4),
        "conv1.bias": DenseTensor(rng.normal(size=8).astype(np.float32)),
        "fc1.weight": shared(pruned_layer(30, 40, 0.8), 8),
        "fc2.weight": UniformTensor(rng.integers(-7, 8, (10, 30)).astype(np.int8), np.ones(10, np.float32), 4),
        "fc3.weight": pruned_layer(10, 20, 0.9),
        "steps": DenseTensor(np.array(782)),
    }


@cache
def example_bytes() -> bytes:
    return encode(example(), {"name": "example"})


@cache
def compact_bytes() -> bytes:
    return encode(numbered(example()), {"name": "example"}, compact=True)


def numbered(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    return {str(place): tensor for place, tensor in enumerate(tensors.values())}


def resealed(data: bytes) -> bytes:
    """With the checksum that fits, as one who means harm would send it."""
    return data[:3] + zlib.crc32(data[7:]).to_bytes(4, "little") + data[7:]


@QUICK
@given(MODELS, METADATA)
def test_any_tensors_come_back_bit_for_bit(tensors: dict[str, StoredTensor], metadata: dict[str, object]) -> None:
    data = encode(tensors, metadata)
    again = decode(data)
    assert again.metadata == metadata
    assert list(again.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert_same(tensor, again.tensors[name])
    assert sum(breakdown(data).values()) == len(data)
    assert encode(again.tensors, again.metadata) == data


@pytest.mark.parametrize("values", [0.0, -0.0, np.nan, np.inf, 1e-45])
def test_special_floats_keep_their_bits(values: float) -> None:
    assert_round_trip({"x": DenseTensor(np.array(values, np.float32))})
    assert_round_trip({"x": DenseTensor(np.array([values, 1, -0.0, 0, 2.5], np.float32))})


@pytest.mark.parametrize("dtype", ["int64", "uint64", "int32", "int8", "uint16"])
def test_extreme_integers_come_back(dtype: str) -> None:
    limits = np.iinfo(dtype)
    assert_round_trip({"x": DenseTensor(np.array([limits.min, limits.max, 0, 1], dtype))})


@pytest.mark.parametrize("largest", [1, 2, 255, 256, 4095, 4096, 65535, 65536, 2**30 - 2, 2**30])
@pytest.mark.parametrize("skewed", [False, True])
def test_integers_of_any_size_come_back(largest: int, skewed: bool) -> None:
    draws = np.random.default_rng(0).random(3000) ** (12 if skewed else 1)
    assert_round_trip({"x": DenseTensor((draws * largest).astype(np.int64))})


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8, 11, 16])
def test_uniform_layers_of_every_width_come_back_near_their_entropy(bits: int) -> None:
    limit = 2 ** (bits - 1) - 1
    weight = np.random.default_rng(0).normal(size=(64, 32, 3, 3))
    codes = np.clip(np.rint(weight / np.abs(weight).max() * limit), -limit, limit)
    codes = codes.astype(np.int8 if bits <= 8 else np.int16)
    data = assert_round_trip({"w": UniformTensor(codes, np.linspace(1, 2, 64, dtype=np.float32), bits)})
    # Where there are more codes than weights, what counts is how many values the weights may take.
    each = entropy_bits(codes) / 8 if bits <= 8 else codes.size * bits / 8
    assert len(data) < 1.01 * each + 64 * 4


@pytest.mark.parametrize("sparsity", [0.3, 0.8, 0.999, 1.0])
@pytest.mark.parametrize("shape", [(400,), (1, 400), (400, 1), (20, 30, 3, 3)])
def test_masks_of_any_density_come_back(sparsity: float, shape: tuple[int, ...]) -> None:
    mask = np.random.default_rng(0).random(shape) >= sparsity
    values = np.arange(np.count_nonzero(mask), dtype=np.float32)
    assert_round_trip({"w": SparseTensor(mask, values)})
    assert_round_trip({"w": CodebookTensor(mask, values.astype(np.int32) % 5, np.ones(5, np.float32), shape)})


def test_an_unpruned_codebook_with_a_common_code_in_few_rows_pays_only_for_the_others() -> None:
    codes = np.zeros((200, 300), np.int32)
    codes[::10] = np.random.default_rng(0).integers(1, 9, (20, 300))
    data = assert_round_trip({"w": CodebookTensor(None, codes.ravel(), np.arange(9, dtype=np.float32), codes.shape)})
    assert len(data) < 20 * 300 * 3 / 8 + 150


def test_large_dense_tensors_lose_nothing_and_shrink_by_their_exponents() -> None:
    values = np.random.default_rng(0).normal(size=(300, 100)).astype(np.float32)
    assert len(assert_round_trip({"w": DenseTensor(values)})) < 0.86 * values.nbytes


def test_values_of_half_precision_cost_two_bytes_at_most() -> None:
    values = np.random.default_rng(0).normal(size=5000).astype(np.float16).astype(np.float32)
    assert len(assert_round_trip({"w": DenseTensor(values)})) < 2 * 5000


def test_a_pruned_shared_layer_reaches_its_entropy_and_beats_csr() -> None:
    tensor = shared(pruned_layer(500, 800, 0.92), 16)
    size = len(assert_round_trip({"fc1.weight": tensor}))
    assert tensor.mask is not None
    bound = (entropy_bits(tensor.mask) + entropy_bits(tensor.codes)) / 8
    assert bound < size < 1.03 * bound
    csr = len(tensor.codes) * (4 + 2) + 501 * 4
    assert size < csr / 4


def test_rows_and_columns_of_different_density_cost_less_than_the_plain_entropy() -> None:
    rng = np.random.default_rng(0)
    density = np.outer(rng.random(300) ** 3, rng.random(400) ** 3)
    mask = rng.random((300, 400)) < density
    expected = -np.log2(np.where(mask, density, 1 - density)).sum() / 8
    size = breakdown(assert_round_trip({"w": SparseTensor(mask, np.ones(mask.sum(), np.float32))}))["indices"]
    assert size < 0.85 * entropy_bits(mask) / 8
    assert size < 1.15 * expected


def test_filters_on_pictures_cost_less_by_their_neighbours() -> None:
    smooth = np.random.default_rng(0).normal(size=(200, 28, 28))
    for axis in (1, 2):
        smooth = smooth + np.roll(smooth, 1, axis) + np.roll(smooth, -1, axis)
    mask = np.abs(smooth) > np.quantile(np.abs(smooth), 0.9)
    left, above = np.zeros((2, *mask.shape), int)
    left[:, :, 1:], above[:, 1:] = mask[:, :, :-1], mask[:, :-1]
    given_neighbours = sum(entropy_bits(mask[left + above == count]) for count in range(3)) / 8
    data = assert_round_trip({"w": SparseTensor(mask.reshape(200, 784), np.ones(mask.sum(), np.float32))})
    assert given_neighbours < 0.85 * entropy_bits(mask) / 8
    assert breakdown(data)["indices"] < 1.01 * given_neighbours + 20


def test_runs_cost_less_by_their_gaps() -> None:
    mask = np.zeros((1, 20_000), bool)
    for start in np.random.default_rng(0).choice(19_000, 40, replace=False):
        mask[0, start : start + 50] = True
    data = assert_round_trip({"w": SparseTensor(mask, np.ones(mask.sum(), np.float32))})
    assert breakdown(data)["indices"] < 0.15 * entropy_bits(mask) / 8


@QUICK
@given(MODELS, METADATA, st.booleans())
def test_any_tensors_come_back_from_a_compact_file(
    tensors: dict[str, StoredTensor], metadata: dict[str, object], without_names: bool
) -> None:
    tensors = numbered(tensors) if without_names else tensors
    again = decode(encode(tensors, metadata, compact=True))
    assert again.metadata == metadata
    assert list(again.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert_same(tensor, again.tensors[name])


def pocket_layers() -> dict[str, StoredTensor]:
    """Many small layers of 3 bit, each with one scale, a factor and a shift of few bits."""
    rng, tensors = np.random.default_rng(0), {}
    for layer, shape in enumerate([(12, 1, 5, 5), *[(16, 16, 1, 1)] * 8, (10, 16)]):
        codes = np.clip(np.rint(rng.normal(size=shape) * 1.3), -3, 3).astype(np.int8)
        tensors[f"layer{layer}.conv.weight"] = UniformTensor(codes, np.ones(1, np.float32), 3)
        for name, mean in (("weight", 2.0), ("bias", 0.0)):
            halves = np.rint(8 * (mean + 0.3 * rng.normal(size=shape[0]))) / 8
            tensors[f"layer{layer}.norm.{name}"] = DenseTensor(halves.astype(np.float32))
    return tensors


def test_a_compact_file_of_many_small_layers_is_near_its_entropy() -> None:
    tensors = pocket_layers()
    plain, size = len(assert_round_trip(tensors)), len(assert_round_trip(numbered(tensors), compact=True))
    codes = np.concatenate([t.codes.ravel() for t in tensors.values() if isinstance(t, UniformTensor)])
    vectors = [t.values for t in tensors.values() if isinstance(t, DenseTensor)]
    kinds_of_vector = [np.concatenate(vectors[0::2]), np.concatenate(vectors[1::2])]
    entropy = (entropy_bits(codes) + sum(map(entropy_bits, kinds_of_vector))) / 8
    assert entropy < size < entropy + 130
    assert plain > size + 100


def test_layers_of_unlike_codes_keep_tables_of_their_own() -> None:
    rng = np.random.default_rng(0)
    fine, coarse = rng.integers(-7, 8, (4, 16, 32)).astype(np.int8), rng.integers(-1, 2, (4, 16, 32)).astype(np.int8)
    layers = [UniformTensor(codes, np.ones(1, np.float32), 4) for codes in (*fine, *coarse)]
    size = len(assert_round_trip({str(place): layer for place, layer in enumerate(layers)}, compact=True))
    assert size < (entropy_bits(fine) + entropy_bits(coarse)) / 8 + 60


def test_numbers_are_names_only_where_they_are_all_and_in_order() -> None:
    tensor = DenseTensor(np.ones(2, np.float32))
    for names in (("1", "0"), ("0", "2"), ("0", "01"), ("w",), ()):
        assert list(decode(encode(dict.fromkeys(names, tensor), {}, compact=True)).tensors) == list(names)


def test_a_tiny_network_has_a_tiny_header() -> None:
    tensors: dict[str, StoredTensor] = {}
    for seed, (name, shape) in enumerate(
        {"conv1": (20, 25), "conv2": (50, 500), "fc1": (500, 800), "fc2": (10, 500)}.items()
    ):
        tensors[f"{name}.weight"] = shared(pruned_layer(*shape, 1 - 250 / prod(shape), seed), 2)
        tensors[f"{name}.bias"] = CodebookTensor(None, np.zeros(shape[0], np.int32), np.zeros(1, np.float32), shape[:1])
    size = len(assert_round_trip(tensors))
    bound = sum(entropy_bits(t.mask) + entropy_bits(t.codes) for t in tensors.values() if t.mask is not None) / 8
    assert size < bound + 135


def test_many_small_dense_tensors_share_their_tables() -> None:
    rng = np.random.default_rng(0)
    tensors = {f"bn{i}.bias": DenseTensor(rng.normal(size=16).astype(np.float32)) for i in range(60)}
    size = len(assert_round_trip(tensors))
    assert size < 60 * 16 * 3.5 + 250


def test_parts_go_to_what_they_are_spent_on() -> None:
    tensor = shared(pruned_layer(500, 800, 0.92), 16)
    parts = breakdown(encode({"fc1.weight": tensor}, {}))
    assert tensor.mask is not None
    assert parts["weights"] == pytest.approx(entropy_bits(tensor.codes) / 8, rel=0.02)
    assert parts["indices"] == pytest.approx(entropy_bits(tensor.mask) / 8, rel=0.02)
    assert 16 * 3 <= parts["codebooks"] <= 16 * 4 + 4
    assert parts["header"] < 40


def test_noncontiguous_arrays_are_read_in_c_order() -> None:
    values = np.arange(60, dtype=np.float32).reshape(6, 10)[::2, ::3]
    assert_same(DenseTensor(np.ascontiguousarray(values)), decode(encode({"x": DenseTensor(values)}, {})).tensors["x"])


def test_decoded_arrays_can_be_written_to() -> None:
    for tensor in decode(example_bytes()).tensors.values():
        for value in vars(tensor).values():
            assert not isinstance(value, np.ndarray) or (value.flags.writeable and value.flags.c_contiguous)


@pytest.mark.parametrize("compact", [False, True])
def test_decoding_needs_numpy_and_constriction_only(compact: bool, tmp_path: object) -> None:
    data = compact_bytes() if compact else example_bytes()
    script = """
import sys
for name in ("torch", "torchvision", "onnx", "onnxruntime", "scipy", "sklearn", "optuna", "ray", "pydantic", "yaml", "timm"):
    sys.modules[name] = None
from paretopress.policies.coding.memory import CodingMemory
from paretopress.policies.coding.press import decode
file = decode(sys.stdin.buffer.read())
print(file.metadata["name"], *(tensor.decode().size for tensor in file.tensors.values()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], input=data, capture_output=True, cwd=str(tmp_path), check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    sizes = " ".join(str(tensor.decode().size) for tensor in example().values())
    assert done.stdout.decode().strip() == f"example {sizes}"


def test_a_written_file_stays_readable() -> None:
    """The bytes of version 1, so that a change of the format is noticed."""
    tensors = {
        "w": CodebookTensor(np.array([[True, False, True]]), np.array([1, 0], np.int32), np.float32([1, 2]), (1, 3))
    }
    again = decode(bytes.fromhex("5050010e9a57cf13da807b39910f1d1e4d5d4ae76b2c227722223a317ddbda13091b2402"))
    assert again.metadata == {"a": 1}
    assert_same(tensors["w"], again.tensors["w"])


def test_a_written_compact_file_stays_readable() -> None:
    """The bytes of version 3."""
    tensors = {
        "0": UniformTensor(np.int8([[1, 0, -1], [3, 2, -3]]), np.float32([0.5]), 3),
        "1": DenseTensor(np.float32([1.5, -2])),
    }
    data = bytes.fromhex("505003423e9f27acdd73a3e55a7955211f1604d3f3549c4bc75d440044317d2c322261223a1ba6f6da05")
    again = decode(data)
    assert again.metadata == {"a": 1}
    assert list(again.tensors) == ["0", "1"]
    for name, tensor in tensors.items():
        assert_same(tensor, again.tensors[name])


@pytest.mark.parametrize("data", [example_bytes(), compact_bytes()])
def test_every_truncation_is_told(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(FormatError):
            decode(data[:length])


@QUICK
@given(st.data())
def test_flipped_bits_are_told(data: st.DataObject) -> None:
    whole = bytearray(example_bytes())
    for place in data.draw(st.lists(st.integers(0, 8 * len(whole) - 1), min_size=1, max_size=4, unique=True)):
        whole[place // 8] ^= 1 << place % 8
    with pytest.raises(FormatError):
        decode(bytes(whole))


@settings(QUICK, max_examples=150)
@given(st.data(), st.booleans())
def test_damage_under_a_right_checksum_is_told_or_gives_a_sound_file(data: st.DataObject, compact: bool) -> None:
    whole = bytearray(compact_bytes() if compact else example_bytes())
    end = min(len(whole), data.draw(st.sampled_from([60, 120, len(whole)])))
    for place in data.draw(st.lists(st.integers(7, end - 1), min_size=1, max_size=3)):
        whole[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(whole)), st.integers(7, len(whole))))
    try:
        again = decode(resealed(bytes(whole[:cut])))
    except FormatError:
        return
    assert decode(encode(again.tensors, again.metadata)).tensors.keys() == again.tensors.keys()


@settings(QUICK, max_examples=250)
@given(st.binary(max_size=80))
def test_any_bytes_are_refused_or_read(body: bytes) -> None:
    for data in (body, *(resealed(b"PP" + bytes([version]) + bytes(4) + body) for version in (1, 3))):
        try:
            decode(data)
        except FormatError as error:
            assert str(error)


@pytest.mark.parametrize("shape", [(1 << 15, 1 << 15), (0, 1 << 30, 1 << 30), (2**31 - 1,) * 9])
@pytest.mark.parametrize("form", range(5))
def test_a_few_bytes_cannot_ask_for_much_memory(shape: tuple[int, ...], form: int) -> None:
    writer = Writer()
    write_header(writer, [Entry("w", form, shape, np.dtype("int32"), 8, 1)], {})
    with pytest.raises(FormatError, match="more than they may hold"):
        decode(frame(writer.bytes()))


def test_a_file_that_could_not_be_read_again_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paretopress.policies.coding.press.element_limit", lambda size_bytes: 999)
    with pytest.raises(ModelError, match="1000 elements"):
        encode({"w": DenseTensor(np.zeros(1000, np.float32))}, {})


def test_a_kind_is_added_by_a_row_and_files_without_it_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Halves:
        """Multiples of a half."""

        doubled: np.ndarray

        def decode(self) -> np.ndarray:
            return (self.doubled / 2).astype(np.float32)

    halves = kinds.Kind(
        takes=lambda x: isinstance(x, Halves),
        describe=lambda name, form, x: Entry(name, form, x.doubled.shape),
        is_valid=lambda x: x.doubled.dtype == np.int64,
        write=lambda writer, entry, x: write_ints(writer, x.doubled.ravel()),
        read=lambda reader, entry, _: Halves(read_ints(reader, entry.count).reshape(entry.shape)),
        arrays=lambda x: [x.doubled],
    )
    before = example_bytes()
    monkeypatch.setattr(kinds, "KINDS", (*kinds.KINDS, halves))
    assert example_bytes() == before
    tensors = {**example(), "halves": Halves(np.arange(6).reshape(2, 3)), "none": Halves(np.zeros((0, 3), np.int64))}
    data, memory = encode(tensors, {}), CodingMemory()
    assert [encode(tensors, {}, memory) for _ in range(2)] == [data, data]
    again = decode(data).tensors
    assert list(again) == list(tensors)
    assert all(np.array_equal(again[name].decode(), tensors[name].decode(), equal_nan=True) for name in tensors)
    monkeypatch.undo()
    with pytest.raises(FormatError, match=rf"a tensor has form {len(kinds.KINDS)}, not known here"):
        decode(data)


def test_a_later_version_and_foreign_files_are_named() -> None:
    data = encode({}, {})
    with pytest.raises(FormatError, match="version 4, expected 1 to 3"):
        decode(data[:2] + b"\x04" + data[3:])
    with pytest.raises(FormatError, match="not a paretopress file"):
        decode(b"PK\x03\x04" + bytes(20))
    with pytest.raises(FormatError, match="checksum"):
        decode(data + b"x")


@pytest.mark.parametrize(
    "tensor",
    [
        DenseTensor(np.zeros(2, np.complex64)),
        DenseTensor(np.zeros(2, ">f4")),
        SparseTensor(np.ones(3, bool), np.zeros(2, np.float32)),
        SparseTensor(np.ones(3, bool), np.zeros(3)),
        CodebookTensor(None, np.array([0, 2]), np.zeros(2, np.float32), (2,)),
        CodebookTensor(None, np.array([0, -1]), np.zeros(2, np.float32), (2,)),
        CodebookTensor(None, np.array([0, 1]), np.zeros(2, np.float32), (3,)),
        UniformTensor(np.zeros((2, 2), np.int16), np.zeros(2, np.float32), 8),
        UniformTensor(np.zeros((2, 2), np.int8), np.zeros(2, np.float32), 9),
        UniformTensor(np.zeros((2, 2), np.int16), np.zeros(2, np.float32), 17),
    ],
)
def test_tensors_that_break_their_form_are_refused_by_name(tensor: StoredTensor) -> None:
    with pytest.raises(ModelError, match=r"'fc\.weight'"):
        encode({"fc.weight": tensor}, {})


def test_metadata_that_is_no_json_is_refused() -> None:
    with pytest.raises(ModelError, match="JSON"):
        encode({}, {"x": object()})


@QUICK
@given(
    st.sampled_from(["circulant", "toeplitz", "fastfood"]),
    st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple),
    st.integers(1, 12),
    st.integers(0, 2**31 - 1),
)
def test_generated_weights_come_back_bit_for_bit(kind: str, shape: tuple[int, ...], block: int, seed: int) -> None:
    values = np.random.default_rng(0).normal(size=GENERATORS[kind].count(shape, block)).astype(np.float32)
    tensor = GeneratedTensor(kind, values, shape, block, seed)
    data = assert_round_trip({"w": tensor, "b": DenseTensor(np.ones(3, np.float32))})
    assert data[2] == 2, "older readers are told"
    assert tensor.decode().shape == shape


@pytest.mark.parametrize(
    "tensor",
    [
        GeneratedTensor("hankel", np.zeros(4, np.float32), (4, 4), 4, 0),
        GeneratedTensor("circulant", np.zeros(5, np.float32), (4, 4), 4, 0),
        GeneratedTensor("circulant", np.zeros(4), (4, 4), 4, 0),
        GeneratedTensor("circulant", np.zeros(0, np.float32), (4, 0), 4, 0),
        GeneratedTensor("circulant", np.zeros(4, np.float32), (4, 4), 0, 0),
        GeneratedTensor("circulant", np.zeros(4, np.float32), (4, 4), 4, -1),
    ],
)
def test_generated_weights_that_do_not_keep_their_promise_are_refused(tensor: GeneratedTensor) -> None:
    with pytest.raises(ModelError, match="not those of a GeneratedTensor"):
        encode({"w": tensor}, {})
