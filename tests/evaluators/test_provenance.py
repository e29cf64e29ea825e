from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from paretopress.evaluators.data import Pictures
from paretopress.evaluators.models import build_model, load_weights, save_weights
from paretopress.evaluators.provenance import KEY, Provenance, digest_pictures, read_provenance
from paretopress.search.config import load_config
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]


def pictures(count: int, seed: int = 0) -> Pictures:
    rng = np.random.default_rng(seed)
    return Pictures(rng.integers(0, 256, (count, 1, 4, 4), dtype=np.uint8), rng.integers(0, 3, count))


def test_a_digest_is_of_the_pictures_whatever_their_order_and_labels() -> None:
    some = pictures(20)
    order = np.random.default_rng(1).permutation(20)
    assert digest_pictures(some.take(order)) == digest_pictures(some)
    assert digest_pictures(Pictures(some.images, some.labels[::-1])) == digest_pictures(some)
    assert digest_pictures(Pictures(some.images[:, :, ::-1], some.labels)) != digest_pictures(some)


def test_a_digest_changes_with_each_picture_its_number_and_its_type() -> None:
    some = pictures(20)
    changed = some.images.copy()
    changed[7, 0, 0, 0] ^= 1
    twice = some.take(np.r_[0:20, 3])
    others = [Pictures(changed, some.labels), some.take(slice(0, 19)), twice]
    others += [
        Pictures(some.images.astype(np.float32), some.labels),
        Pictures(some.images.reshape(20, 4, 4, 1), some.labels),
    ]
    assert len({digest_pictures(part) for part in (some, *others)}) == 6


def test_what_a_training_says_of_itself_is_read_from_its_file(tmp_path: Path) -> None:
    model, path = build_model("family:digits_cnn", num_classes=10, in_channels=1), tmp_path / "w.safetensors"
    unseen, seen = pictures(12), pictures(12, seed=1)
    written = Provenance({"seed": 3}, (digest_pictures(seen),), (digest_pictures(unseen),))
    save_weights(model, path, written.metadata())
    assert read_provenance(path) == written
    assert written.left_out(unseen) and not written.left_out(seen) and not Provenance().left_out(unseen)
    again = build_model("family:digits_cnn", num_classes=10, in_channels=1, seed=9)
    load_weights(again, path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        "3",
        '{"format": 2, "recipe": {}, "seen": [], "unseen": []}',
        '{"format": 1, "recipe": [], "seen": [], "unseen": []}',
        '{"format": 1, "recipe": {}, "seen": "abc", "unseen": []}',
        '{"format": 1, "recipe": {}, "seen": [], "unseen": [1]}',
        '{"format": 1, "recipe": {}}',
        "[" * 100_000,
    ],
)
def test_what_is_not_understood_says_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.zeros(1)}, path, {KEY: text})
    assert read_provenance(path) is None


def test_files_of_others_say_nothing(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "plain.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"\xff" * 64)
    torch.save({"w": torch.zeros(1)}, tmp_path / "w.pt")
    for name in ("plain.safetensors", "junk.safetensors", "w.pt", "missing.safetensors"):
        assert read_provenance(tmp_path / name) is None


SHIPPED = {
    "cifar10_resnet20": ("cifar10_resnet20", "cifar10_exits"),
    "mnist_lenet5": ("papers/deep_compression_lenet5",),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_say_that_their_configurations_pictures_were_left_out(name: str) -> None:
    """The digests themselves hang on data that may not be at hand; network, data, split and seed do not."""
    provenance = read_provenance(ROOT / "configs" / "weights" / f"{name}.safetensors")
    assert provenance is not None
    assert len(provenance.seen) == 1 and len(provenance.unseen) == 2
    assert {len(digest) for digest in (*provenance.seen, *provenance.unseen)} == {64}
    assert provenance.seen[0] not in provenance.unseen
    recipe = provenance.recipe
    for config in (load_config(ROOT / "configs" / f"{path}.yaml") for path in SHIPPED[name]):
        assert recipe["model"] == {"name": config.model.name, "arguments": config.model.arguments}
        assert recipe["data"]["name"] == config.data.name and recipe["data"]["validation"] == config.data.validation
        assert recipe["data"]["limit"] == config.data.limit and recipe["seed"] == config.seed
        if config.model.train is not None:
            assert recipe["train"] == json.loads(config.model.train.model_dump_json())


def test_weights_whose_training_could_not_be_confirmed_say_nothing_and_their_configuration_says_it() -> None:
    assert read_provenance(ROOT / "configs" / "weights" / "cifar10_mobilenet_supernet.safetensors") is None
    assert load_config(ROOT / "configs" / "cifar10_mobilenet_shapes.yaml").data.validation_from == "training"
