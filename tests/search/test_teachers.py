"""Teachers in a configuration: which networks teach, what results are known by, and what is refused before a search."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import paretopress as pp
import pytest
from paretopress.evaluators.data import DataSet
from paretopress.evaluators.models import build_model, save_weights
from paretopress.evaluators.training.hints import Hint
from paretopress.evaluators.workbench import Settings
from paretopress.policies.errors import ConfigError, ModelError
from paretopress.search import api, prepare
from paretopress.search.config import make_config
from paretopress.search.prepare import dense_network, read_data
from paretopress.search.progress import Silence
from paretopress.search.rundir import RunDirectory
from paretopress.search.teachers import known_by, read_teachers, settled_hint
from paretopress.tests.search.runs import few_variants, rows, small, with_weights
from torch import nn

pytestmark = pytest.mark.usefixtures("one_core")

PLAIN = {"side": 8, "downsampling": 2, "width": 0.1}
SHOWN_BEFORE = (
    "Settings(quality='error', stitch_pictures=128, screen_pictures=1000, screen_seconds=0.6, latency_threads=1,"
    " recovery=Recipe(epochs=0, batch_size=128, optimizer='sgd', lr=0.1, warmup=0.15, weight_decay=0.0005,"
    " label_smoothing=0.0, augment=Augment(shift=0, flip=False, rotate=0.0, scale=0.0), penalties=()), prune_share=0.0,"
    " prune_schedule='gradual', tryout=0.0, temperature=4.0, teacher_weight=0.7, seed=0)"
)


def written(path: Path, name: str, **arguments: Any) -> Path:
    save_weights(build_model(name, num_classes=10, in_channels=1, seed=7, **arguments), path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Another network than the one that is compressed, as an entry of the configuration."""
    path = written(tmp_path_factory.mktemp("plain") / "plain.safetensors", "family:plain", **PLAIN)
    return {"name": "family:plain", "weights": str(path), "arguments": PLAIN}


@pytest.fixture(scope="module")
def data() -> DataSet:
    return read_data(make_config(small()), lambda _: None)


def context(config: dict[str, Any], run: Path) -> str:
    return prepare.prepare(make_config(config), RunDirectory(run), lambda _: None).context_hash


def test_results_of_older_runs_are_known_as_they_were(trained: Path, tmp_path: Path, data: DataSet) -> None:
    assert repr(Settings()) == SHOWN_BEFORE
    found = prepare.prepare(make_config(with_weights(trained)), RunDirectory(tmp_path), lambda _: None)
    model = prepare._weights_digest(found.bench.model)
    assert "teach=" not in repr(found.bench.settings)
    known = hashlib.sha256(f"{data.digest()}{model}{found.bench.settings}".encode()).hexdigest()
    assert found.context_hash == known
    assert found.bench.teachers == ()


def test_results_are_known_by_how_they_were_taught_and_by_whom(
    trained: Path, tmp_path: Path, plain: dict[str, Any]
) -> None:
    ways: list[dict[str, Any]] = [
        {},
        {"teach": "logits"},
        {"teach": "hints"},
        {"teach": "hints", "hint": {"student": "conv1", "guide": "conv2"}},
        {"teach": "hints", "hint": {"share": 0.5}},
        {"teachers": [plain]},
        {"teachers": [str(trained), plain]},
    ]
    known = {context(with_weights(trained, recovery=way), tmp_path / str(n)) for n, way in enumerate(ways)}
    assert len(known) == len(ways)
    assert known_by(Settings(teach="hints", hint=Hint("a", "b")), ["c"]).endswith("c")


def test_teachers_are_the_networks_of_their_weights(trained: Path, data: DataSet, plain: dict[str, Any]) -> None:
    student = build_model("family:digits_cnn", num_classes=10, in_channels=1, seed=3).eval()
    section = make_config(with_weights(trained, recovery={"teachers": [str(trained), plain]})).recovery
    one, other = read_teachers(section, student, data, 0, "recovery")
    saved = prepare._weights_digest
    dense = dense_network(make_config(with_weights(trained)), data, RunDirectory(trained.parent), lambda _: None)
    assert saved(one) == saved(dense) != saved(student)
    assert saved(other) == saved(build_model("family:plain", num_classes=10, in_channels=1, seed=7, **PLAIN))
    assert not one.training and not other.training


@pytest.mark.parametrize(
    ("recovery", "expected"),
    [
        ({"teach": "songs"}, "recovery.teach: Input should be 'logits', 'soft' or 'hints' (got 'songs')"),
        ({"hint": {"student": "conv1"}}, "recovery: a hint is for teach: hints; got teach: soft"),
        ({"teach": "hints", "hint": {"share": 1.0}}, "recovery.hint.share: Input should be less than 1 (got 1.0)"),
        ({"teach": "hints", "hint": {"layer": "conv1"}}, "unknown key 'recovery.hint.layer'"),
        ({"teachers": [{"name": "family:lenet5"}]}, "'recovery.teachers.0.weights' is missing"),
        ({"teachers": [{"wieghts": "a"}]}, "unknown key 'recovery.teachers.0.wieghts'; did you mean 'weights'?"),
        ({"teachers": [{"weights": "a", "arguments": {"side": 8}}]}, "of a network with a name of its own; give name"),
    ],
)
def test_a_wrong_section_is_refused_as_it_is_read(recovery: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(small(recovery=recovery))
    assert expected in str(caught.value)


def test_agreement_with_the_dense_network_has_no_other_teacher() -> None:
    with pytest.raises(ConfigError, match=r"recovery\.teachers: quality: agreement asks to match the dense network"):
        make_config({**small(recovery={"teachers": ["a.safetensors"]}), "quality": "agreement"})


def test_the_network_that_is_trained_first_needs_a_teacher_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"model\.train\.teach: hints needs model\.train\.teachers"):
        make_config(small(model={"name": "family:digits_cnn", "train": {"epochs": 2, "teach": "hints"}}))


def test_a_layer_that_is_not_there_stops_the_run_before_it_begins(trained: Path, tmp_path: Path) -> None:
    config = with_weights(trained, recovery={"teach": "hints", "hint": {"student": "conv9"}})
    with pytest.raises(ConfigError, match=r"recovery\.hint\.student: the network has no layer 'conv9'"):
        api.run_search(make_config(config), tmp_path / "run", Silence())
    assert not (tmp_path / "run").exists()


def test_weights_and_outputs_that_do_not_fit_are_refused_by_number(
    trained: Path, tmp_path: Path, data: DataSet, plain: dict[str, Any]
) -> None:
    student = build_model("family:digits_cnn", num_classes=10, in_channels=1, seed=3).eval()

    def read(*entries: Any) -> tuple[nn.Module, ...]:
        section = make_config(small(recovery={"teachers": list(entries)})).recovery
        return read_teachers(section, student, data, 0, "recovery")

    with pytest.raises(ModelError, match=r"recovery\.teachers\.1: no weights at .*nowhere"):
        read(str(trained), str(tmp_path / "nowhere.safetensors"))
    with pytest.raises(ModelError, match=r"recovery\.teachers\.0: weights .* do not fit the network"):
        read(plain["weights"])
    with pytest.raises(ConfigError, match=r"recovery\.teachers\.0\.name: family has no network 'plan'"):
        read({**plain, "name": "family:plan"})
    few = tmp_path / "few.safetensors"
    save_weights(build_model("family:plain", num_classes=4, in_channels=1, **PLAIN), few)
    with pytest.raises(ModelError, match=r"teachers\.0: expected logits \(1, 10\) like .* came \(1, 4\)"):
        read({**plain, "weights": str(few), "num_classes": 4})
    big = written(tmp_path / "lenet5.safetensors", "family:lenet5")
    with pytest.raises(ModelError, match=r"teachers\.0: the network fails on pictures of shape \(1, 1, 8, 8\)"):
        read({"name": "family:lenet5", "weights": str(big)})


def test_the_hint_between_the_middle_layers_is_settled_before_the_search(
    trained: Path, data: DataSet, plain: dict[str, Any]
) -> None:
    student = build_model("family:digits_cnn", num_classes=10, in_channels=1, seed=3).eval()
    section = make_config(with_weights(trained, recovery={"teach": "hints", "teachers": [plain]})).recovery
    teachers = read_teachers(section, student, data, 0, "recovery")
    x = data.preprocess(data.calibration.images[:1])
    assert settled_hint(section, student, teachers, x, "recovery") == Hint("conv2", "layers.2.full.conv", 0.3)


def test_a_network_is_trained_from_nothing_by_a_teacher_in_each_way(
    trained: Path, tmp_path: Path, data: DataSet
) -> None:
    train = {"epochs": 3, "batch_size": 64, "optimizer": "adamw", "lr": 0.01}
    ways: list[dict[str, Any]] = [{"teach": teach, "teachers": [str(trained)]} for teach in ("logits", "soft", "hints")]
    x, labels = next(data.batches(data.validation, 200))
    found = []
    for number, way in enumerate([{}, *ways]):
        run = RunDirectory(tmp_path / str(number))
        config = make_config(small(model={"name": "family:digits_cnn", "train": {**train, **way}}))
        model = dense_network(config, data, run, lambda _: None)
        assert [file.name for file in run.path.iterdir()] == ["dense.safetensors"]
        assert float((model(x).argmax(1) == labels).float().mean()) > 0.6
        found.append(prepare._weights_digest(model))
    assert len(set(found)) == len(found)


def test_a_search_recovers_its_finalists_with_hints_from_an_ensemble(
    trained: Path, tmp_path: Path, plain: dict[str, Any]
) -> None:
    recovery = {"epochs": 2, "batch_size": 64, "teach": "hints", "teachers": [str(trained), plain], "tryout": 0.2}
    config = few_variants(trained, recovery=recovery, search={"evaluations": 4, "batch": 4, "finalists": 1})
    front = api.run_search(make_config(config), tmp_path / "run", Silence())
    assert len(front) >= 1
    assert all("train" in row.seconds for row in rows(tmp_path / "run", "recover"))
    assert pp.resume(tmp_path / "run")[0].metrics == front[0].metrics
