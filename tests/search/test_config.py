from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import paretopress
import pytest
from jsonschema import ValidationError as SchemaError
from jsonschema import validate
from paretopress.evaluators.training.penalties.l1 import L1
from paretopress.evaluators.training.penalties.l2 import L2
from paretopress.policies.errors import ConfigError
from paretopress.search.config import MAX_CONFIG_BYTES, Config, load_config, make_config, parse_yaml
from pydantic import ValidationError

FOLDER = Path(paretopress.__file__).parent / "configs"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))
MODEL = {"name": "family:digits_cnn", "train": {"epochs": 1}}


def nested(path: str, value: object) -> dict[str, Any]:
    """``a.b`` and 1 as ``{"a": {"b": 1}}``, beside a model; a section in brackets is a list of one."""
    out: Any = value
    for key in reversed(path.split(".")):
        out = {key.strip("[]"): [out] if key.startswith("[") else out}
    merged = {"model": MODEL, **out}
    merged["model"] = {**MODEL, **out.get("model", {})}
    return merged


@pytest.mark.parametrize(
    ("path", "nearest"),
    [
        ("serch", "search"),
        ("model.wieghts", "weights"),
        ("model.train.epoch", "epochs"),
        ("model.train.augment.shfit", "shift"),
        ("data.validaton", "validation"),
        ("space.sparsty", "sparsity"),
        ("search.evaluation", "evaluations"),
        ("recovery.temprature", "temperature"),
        ("recovery.augment.flp", "flip"),
        ("latency.screen_second", "screen_seconds"),
        ("pool.worker", "workers"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(path: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(nested(path, 1), source="mine.yaml")
    assert f"unknown key '{path}'; did you mean '{nearest}'?" in str(caught.value)
    assert str(caught.value).startswith("mine.yaml is not valid")


def test_an_unknown_key_of_a_rule_names_the_nearest_known_one() -> None:
    with pytest.raises(ConfigError, match=r"'space\.rules\.0\.sparsty'; did you mean 'sparsity'\?"):
        make_config(nested("space.[rules]", {"layers": "fc*", "sparsty": [0.0, 0.5]}))


def test_an_unknown_key_that_is_near_to_none_lists_what_is_known() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'zzz'; known: model, data, quality, budgets"):
        make_config(nested("zzz", 1))


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("budgets.latncy", "0.5x", "unknown budget 'latncy'; did you mean 'latency'?"),
        ("budgets.stored", "44 parsecs", "budgets.stored: unknown unit 'parsecs'; expected a size such as 44kB"),
        ("search.objectives", ["eror"], "search.objectives: unknown objective 'eror'; did you mean 'error'?"),
        ("search.evaluations", 0, "search.evaluations: Input should be greater than or equal to 1 (got 0)"),
        (
            "search.sampler",
            "cmaes",
            "search.sampler: Input should be 'bank', 'nsga2', 'tpe', 'gp' or 'random' (got 'cmaes')",
        ),
        ("latency.pairs", 10, "latency.pairs: Input should be greater than or equal to 50 (got 10)"),
        (
            "recovery.penalty",
            {"l1": -1},
            "recovery.penalty: penalty l1: expected a finite strength of at least 0, got -1.0",
        ),
        ("model.train.penalty", {"neuron_in": 1}, "unknown penalty 'neuron_in'; did you mean 'neurons_in'?"),
        ("budgets", {"stored": None}, "\n  budgets.stored: expected a size such as 44kB, or a share of the dense"),
        ("budgets", {1: "1kB"}, "budgets: unknown budget '1'; known: error, stored"),
        ("seed", 2**32, "seed: Input should be less than or equal to 4294967295"),
        ("space.learned.lambdas", [float("inf")], "space.learned.lambdas.0: Input should be a finite number (got inf)"),
        ("recovery.weight_decay", float("inf"), "recovery.weight_decay: Input should be a finite number (got inf)"),
        ("space.precision", [], "space.precision: a menu needs at least one option"),
        ("space.[rules]", {"layers": "f*", "rank": []}, "space.rules.0.rank: a menu needs at least one option"),
        ("space.[rules]", {"layers": "f*", "rank": [0.0]}, "space.rules.0.rank: shares lie in (0, 1]"),
        ("search.objectives", [], "search.objectives: expected one entry or more, got none"),
        ("model.name", "foo", "model.name: a network is timm:NAME, torchvision:NAME, family:NAME or package.module"),
        ("model.name", "family:lenet6", "model.name: family has no network 'lenet6'; did you mean 'lenet5'?"),
        ("data.name", "digitz", "data.name: unknown data set 'digitz'; expected digits,"),
        ("data.test", 1.5, "data.test: expected a share above 0 and below 1, or a whole number of pictures; got 1.5"),
        ("seed", -1, "seed: Input should be greater than or equal to 0 (got -1)"),
    ],
)
def test_a_wrong_value_says_where_what_was_expected_and_what_came(path: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(nested(path, value))
    assert expected in str(caught.value)


def test_a_complaint_of_the_whole_configuration_has_no_empty_key() -> None:
    with pytest.raises(ConfigError, match=r"\n  pool\.train: expected pool\.kind to be ray for tune"):
        make_config({"model": MODEL, "pool": {"kind": "in-process", "train": "tune"}})


def test_wrong_entries_of_a_list_are_not_said_to_make_it_too_short() -> None:
    with pytest.raises(ConfigError) as caught:
        make_config(nested("space.learned.kinds", ["dense"]))
    assert str(caught.value).splitlines()[1:] == [
        "  space.learned.kinds.0: Input should be 'conv', 'fc' or 'conv_fc' (got 'dense')"
    ]


def test_what_is_said_of_layers_beside_a_shape_is_refused() -> None:
    model = {"name": "family:mobilenet_v1", "train": {}}
    with pytest.raises(
        ConfigError, match=r"space: shape is searched in place of .*; leave out precision, skip, or shape"
    ):
        make_config({"model": model, "space": {"shape": {}, "precision": ["w8"], "skip": ["fc"]}})
    shaped = make_config({"model": model, "space": {"shape": {}}})
    assert make_config(parse_yaml(shaped.to_yaml())) == shaped


def test_every_complaint_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        make_config({**nested("search.evaluation", 1), "seed": "x", "budgets": {"size": "1kB"}})
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:]] == [
        "budgets",
        "unknown key 'search.evaluation'; did you mean 'evaluations'?",
        "seed",
    ]


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_a_configuration_that_is_no_mapping_is_refused(data: object) -> None:
    with pytest.raises(ConfigError, match=r"expected a mapping with 'model', 'data', 'budgets', \.\.\.; got "):
        make_config(data)


def test_a_missing_model_is_named() -> None:
    with pytest.raises(ConfigError, match="'model' is missing"):
        make_config({})


def test_a_named_network_needs_weights_or_a_recipe() -> None:
    with pytest.raises(ConfigError, match=r"give model\.weights \(a file\) or model\.train"):
        make_config({"model": {"name": "timm:resnet18"}})
    own = make_config({"model": {"name": "my.module:trained_network"}})
    assert own.model.weights is None, "a function of the user's own may return a trained network"


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "\tx: 1",
        "seed: 2026-13-45",
        "seed: !!timestamp x",
        "[" * 5000,
        "a: \x00",
        "x: &a *b",
        "!!python/name:os.system",
    ],
)
def test_text_that_is_no_yaml_is_refused_in_one_message(text: str) -> None:
    with pytest.raises(ConfigError, match="the configuration is no valid YAML"):
        parse_yaml(text)


def test_a_key_that_is_given_twice_is_refused_with_both_lines() -> None:
    with pytest.raises(ConfigError, match="'budgets' is given twice, in lines 2 and 4; keep one of them"):
        parse_yaml("seed: 1\nbudgets: {stored: 1kB}\nquality: error\nbudgets: {error: 1}\n")
    merged = parse_yaml("a: {b: &x {<<: {k: 1}, k: 2}}\nc: {<<: *x, k: 3}")
    assert merged == {"a": {"b": {"k": 2}}, "c": {"k": 3}}, "a merged key may be given again"


def test_a_text_without_end_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ConfigError, match=f"at most {MAX_CONFIG_BYTES} bytes"):
        parse_yaml("#" * (MAX_CONFIG_BYTES + 1))


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("search.evaluations=7", "search", "evaluations", 7),
        ("space.sparsity=[0.0, 0.25]", "space", "sparsity", (0.0, 0.25)),
        ("model.train.augment.shift=3", "model", "train", 3),
        ("budgets.error=+1.0", "budgets", "error", "+1.0"),
        ("pool.kind=in-process", "pool", "kind", "in-process"),
    ],
)
def test_an_override_changes_one_value(override: str, section: str, key: str, value: object) -> None:
    plain = {"model": MODEL, "search": {"batch": 2}}
    config = make_config(plain, (override,))
    part = getattr(config, section)
    found = part[key] if isinstance(part, dict) else getattr(part, key)
    assert (found.augment.shift if key == "train" else found) == value
    assert config.search.batch == 2 and config.model.train is not None and config.model.train.epochs == 1
    assert plain == {"model": {"name": "family:digits_cnn", "train": {"epochs": 1}}, "search": {"batch": 2}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.evaluations", r"--set takes a\.b=value, got 'search\.evaluations'"),
        ("=3", r"--set takes a\.b=value"),
        ("seed.x=3", "'seed' is a value, not a section"),
        ("search.evaluatoins=3", "did you mean 'evaluations'"),
        ("search.evaluations=[", "no valid YAML"),
    ],
)
def test_a_wrong_override_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config({"model": MODEL, "seed": 1}, (override,))


def test_the_sign_of_points_above_the_dense_network_is_kept() -> None:
    data = parse_yaml("budgets: {error: +1.0, stored: 1500.0}\nmodel: {name: my:net}\nseed: 3")
    assert data["budgets"] == {"error": "+1.0", "stored": 1500.0} and data["seed"] == 3
    relative, absolute = make_config(data).limits()
    assert (relative.kind, relative.value) == ("plus", 1.0)
    assert (absolute.kind, absolute.value) == ("absolute", 1500.0)
    written = make_config(data).to_yaml()
    assert make_config(parse_yaml(written)).limits()[0].kind == "plus"


def test_a_number_without_a_sign_is_absolute() -> None:
    (budget,) = make_config(parse_yaml("{model: {name: my:net}, budgets: {error: 1.0}}")).limits()
    assert budget.kind == "absolute"


def test_there_are_configurations_to_load() -> None:
    assert {path.stem for path in CONFIGS} >= {"quickstart", "mnist_lenet5"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_loads_and_comes_back_from_its_resolved_form(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(resolved) == config
    name = path.relative_to(FOLDER).as_posix()
    text = path.read_text(encoding="utf-8")
    assert any(f"paretopress {command} configs/{name}" in text for command in ("search", "exits")), (
        "it says how it is run"
    )


def test_the_resolved_form_holds_every_default() -> None:
    plain = parse_yaml(make_config({"model": MODEL}).to_yaml())
    assert list(plain) == list(Config.model_fields)
    assert plain["search"]["sampler"] == "bank" and plain["recovery"]["augment"]["shift"] == 0


def test_a_configuration_cannot_be_changed_once_made() -> None:
    config = make_config({"model": MODEL})
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 3  # type: ignore[misc]


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match=f"cannot read the configuration {path}"):
            load_config(path)


def test_penalties_reach_the_recipes_of_the_dense_network_and_of_recovery() -> None:
    config = make_config(
        {"model": {"name": "family:digits_cnn", "train": {"penalty": {"l2": 1}}}, "recovery": {"penalty": {"l1": 1e-5}}}
    )
    assert config.recovery.recipe().penalties == (L1(1e-5),)
    assert config.model.train is not None and config.model.train.recipe().penalties == (L2(1.0),)


RAY_TUNE = {"pool": {"kind": "ray", "train": "tune"}}
BY_ERROR = {"search": {"objectives": ["error"]}, "recovery": {"scheduler": "asha"}}


def test_trainings_on_ray_tune_and_their_scheduler_are_asked_for() -> None:
    config = make_config({"model": MODEL, **RAY_TUNE, **BY_ERROR})
    assert (config.pool.train, config.recovery.scheduler) == ("tune", "asha")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"pool": {"kind": "in-process", "train": "tune"}}, "pool.train: expected pool.kind to be ray for tune"),
        (BY_ERROR, "recovery.scheduler: expected pool.train to be tune; got 'pool'"),
        (
            {**RAY_TUNE, "recovery": {"scheduler": "asha"}},
            "expected search.objectives to be [error], got [error, stored, latency]",
        ),
    ],
)
def test_trainings_that_cannot_be_carried_out_as_asked_are_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_config({"model": MODEL, **sections})
    assert message in str(caught.value)


def test_the_schema_refuses_unknown_keys_and_describes_the_known_ones() -> None:
    schema = Config.model_json_schema()
    assert schema["additionalProperties"] is False and set(schema["properties"]) == set(Config.model_fields)
    sections = [part.get("anyOf", [part])[0] for part in schema["$defs"].values()]
    assert all(section["additionalProperties"] is False for section in sections)
    assert schema["$defs"]["SearchConfig"]["properties"]["evaluations"]["description"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_configuration_keeps_to_the_schema(path: Path) -> None:
    validate(parse_yaml(path.read_text()), Config.model_json_schema())


@pytest.mark.parametrize(
    ("controls", "right"), [(["rewind", "signs"], True), ({"which": ["rewind"]}, True), (["rewound"], False)]
)
def test_the_schema_knows_that_controls_may_be_a_list(controls: Any, right: bool) -> None:
    given = {"model": {"name": "my:net", "train": {}}, "controls": controls}
    with nullcontext() if right else pytest.raises(SchemaError):
        validate(given, Config.model_json_schema())


def test_what_does_not_learn_is_given_no_penalty() -> None:
    config = {"model": {"name": "my:net"}, "exits": {"penalty": {"l2": 1e-4}}}
    with pytest.raises(ConfigError, match="do not learn here; leave it out, or set tuned: true"):
        make_config(config)
    make_config({**config, "exits": {"penalty": {"l2": 1e-4}, "tuned": True}})


@pytest.mark.parametrize(("teacher", "right"), [("a.safetensors", True), ({"weights": "a.pt"}, True), (3, False)])
def test_the_schema_knows_that_a_teacher_may_be_a_file(teacher: Any, right: bool) -> None:
    given = {"model": {"name": "my:net"}, "recovery": {"teachers": [teacher]}}
    with nullcontext() if right else pytest.raises(SchemaError):
        validate(given, Config.model_json_schema())


def test_what_teaches_itself_is_given_no_teacher() -> None:
    config = {"model": {"name": "my:net"}, "exits": {"teachers": ["other.safetensors"]}}
    with pytest.raises(
        ConfigError, match="exits: this training has no teacher but the network itself; leave out teachers"
    ):
        make_config(config)
