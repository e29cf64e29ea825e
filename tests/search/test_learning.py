"""Learned architectures in a run: beside the other policies, recorded where they fail, taken up again where it stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
from paretopress.policies.errors import ConfigError
from paretopress.policies.policy import Policy, Step
from paretopress.search import api
from paretopress.search.config import Config, make_config
from paretopress.search.learning import LearningStage
from paretopress.search.progress import Silence
from paretopress.tests.search.runs import rows, with_weights

LEARNED = {"lambdas": [0.0005, 100.0], "kinds": ["fc"], "epochs": 1, "batch_size": 64, "compare": True}


def configured(weights: Path) -> Config:
    changes = {
        "space": {"precision": ["float32", "w8a8"], "learned": LEARNED},
        "search": {"sampler": "random", "evaluations": 2, "batch": 2, "finalists": 4, "screen_error": 95.0},
        "budgets": {},
        "recovery__tryout": 0.0,
    }
    return make_config(with_weights(weights, **changes))


@pytest.fixture(scope="module")
def learned(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Config]:
    config, out = configured(trained), tmp_path_factory.mktemp("learned") / "run"
    api.run_search(config, out, Silence())
    return out, config


def test_a_learned_width_is_tried_recovered_and_tested_like_any_policy(learned):
    run, _ = learned
    (found,) = [row for row in rows(run, "learn") if row.state == "done"]
    (screened,) = [row for row in rows(run, "screen") if row.origin == "learned"]
    left = found.values["neurons_left/fc1"]
    policy = Policy.from_text(screened.policy_json)
    assert 0 < left < 64
    assert [step.technique for step in policy.layers["fc1"]] == ["keep_channels"]
    assert found.values["params"] == screened.values["params"] == 85162 - (64 - left) * (1024 + 1 + 10)
    tested = {row.key.policy_hash: row for row in rows(run, "test")}
    assert tested[screened.key.policy_hash].state == "done"
    assert screened.trial["lambda"] == LEARNED["lambdas"][0] and screened.trial["kind"] == "fc"


def test_the_network_beside_it_has_as_many_parameters(learned):
    run, _ = learned
    by_origin = {row.origin: row for row in rows(run, "screen")}
    assert by_origin["magnitude"].values["params"] == pytest.approx(by_origin["learned"].values["params"], rel=1e-3)
    steps = Policy.from_text(by_origin["magnitude"].policy_json).layers.values()
    assert {step.technique for some in steps for step in some} == {"prune_magnitude"}


def test_a_lambda_that_removes_every_neuron_is_recorded_and_the_search_goes_on(learned):
    run, _ = learned
    (failed,) = [row for row in rows(run, "learn") if row.state == "failed"]
    assert failed.error == "lambda 100 (fc) leaves no neuron of 'fc1': no network is left; give smaller lambdas"
    assert (run / "front.json").is_file()


def test_prices_that_come_to_the_same_network_are_tried_as_one(trained, tmp_path, monkeypatch):
    config = configured(trained)
    learned = config.space.learned.model_copy(update={"lambdas": (1e-9, 2e-9), "compare": True})
    config = config.model_copy(update={"space": config.space.model_copy(update={"learned": learned})})
    policy = Policy({"fc1": (Step.of("keep_channels", kept="0-47"),)})
    monkeypatch.setattr(LearningStage, "_policy", lambda *_: policy)
    api.run_search(config, tmp_path / "run", Silence())
    assert [row.state for row in rows(tmp_path / "run", "screen") if row.origin == "learned"] == ["done"]


def test_the_report_shows_each_training_beside_the_others(learned):
    run, _ = learned
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<h2>Learned architectures</h2>" in page
    assert "lambda 100 (fc) leaves no neuron" in page
    left = int(next(row for row in rows(run, "learn") if row.state == "done").values["neurons_left/fc1"])
    assert f"fc1 {left} of 64" in page


def test_a_finished_run_learns_nothing_again_and_a_lost_file_is_made_anew(learned):
    run, config = learned
    before = {row.key: row.attempt for row in rows(run, "learn")}
    (stored,) = run.glob("artefacts/*/learned.json")
    content = stored.read_bytes()
    api.run_search(config, run, Silence())
    assert {row.key: row.attempt for row in rows(run, "learn")} == before
    stored.unlink()
    api.run_search(config, run, Silence())
    assert stored.read_bytes() == content
    assert sorted(row.attempt - before[row.key] for row in rows(run, "learn")) == [0, 1]


def test_without_lambdas_nothing_is_learned(trained):
    assert with_weights(trained).get("space", {}).get("learned") is None
    assert make_config(with_weights(trained)).space.learned.learnings() == ()


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"kinds": ["al"]}, "space.learned.kinds.0"),
        ({"lambdas": [0]}, "space.learned.lambdas.0"),
        ({"lambda": [1]}, "unknown key 'space.learned.lambda'; did you mean 'lambdas'"),
        ({"optimizer": "sgd"}, "space.learned.optimizer"),
    ],
)
def test_a_section_that_means_nothing_is_refused(trained, section, reason):
    with pytest.raises(ConfigError, match=reason):
        make_config(with_weights(trained, space={"precision": ["float32", "w8a8"], "learned": section}))
