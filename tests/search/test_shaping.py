"""Runs that search the shape of the network."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from paretopress.evaluators.provenance import digest_pictures, read_provenance
from paretopress.policies.architectures.shapes import network_of
from paretopress.policies.policy import Policy
from paretopress.search import api
from paretopress.search.api import open_front, slimmable
from paretopress.search.cli import run
from paretopress.search.config import make_config
from paretopress.search.prepare import dense_network, read_data
from paretopress.search.rundir import RunDirectory, find_run
from paretopress.search.splits import settle_splits
from paretopress.search.verifying import verify_bundle
from paretopress.tests.search.runs import rows, write_config

LARGEST = {"side": 8, "downsampling": 2, "multiple": 4, "width": 0.25, "repeats": 1}
MENUS = {"width": [0.25, 0.125], "resolution": [8, 7], "repeats": [1, 0]}


def shaped(**changes: Any) -> dict[str, Any]:
    shape = {"menus": MENUS, "supernet": {"epochs": 1, "batch_size": 64, "lr": 0.1}, **changes.pop("shape", {})}
    config = {
        "model": {
            "name": "family:mobilenet_v1",
            "arguments": LARGEST,
            "train": {"epochs": 1, "batch_size": 64, "lr": 0.1},
        },
        "data": {"name": "digits", "validation": 0.15, "calibration": 64},
        "space": {"shape": shape},
        "search": {"evaluations": 8, "batch": 4, "finalists": 2, "screen_error": 90.0},
        "recovery": {"epochs": 1, "batch_size": 64, "tryout": 0.0},
        "latency": {"screen_seconds": 0.05},
        "pool": {"kind": "in-process"},
    }
    return {**config, **changes}


def search(config: dict[str, Any], directory: Path) -> tuple[int, str, str]:
    path = write_config(directory / "shapes.yaml", config)
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        code = run(["search", str(path), "--out", str(directory / "run"), "--json"])
    return code, stdout.getvalue(), stderr.getvalue()


@pytest.fixture(scope="module")
def finished(one_core: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests only read it."""
    directory = tmp_path_factory.mktemp("shapes")
    code, _, errors = search(shaped(), directory)
    assert code == 0, errors
    return directory / "run"


def test_every_candidate_that_fits_is_measured(finished: Path) -> None:
    screened = rows(finished, "screen")
    assert len({row.policy_json for row in screened}) == len(screened) == 8
    fitting = [row for row in screened if "resolution: strides" not in (row.error or "")]
    assert {row.state for row in fitting} == {"done"}
    assert all(Policy.from_text(row.policy_json).shape["family"] == "mobilenet_v1" for row in fitting)


def test_a_resolution_that_the_strides_do_not_divide_is_recorded_with_its_reason(finished: Path) -> None:
    failed = [row for row in rows(finished, "screen") if row.state == "failed"]
    assert failed
    assert all("resolution: strides of 2 in all do not divide 7 pixels" in str(row.error) for row in failed)


def test_smaller_shapes_have_smaller_files(finished: Path) -> None:
    done = {row.policy_json: row.values for row in rows(finished, "screen") if row.state == "done"}
    found = [(Policy.from_text(text).shape.get("width"), values["stored_bytes"]) for text, values in done.items()]
    largest = {width: max(size for w, size in found if w == width) for width, _ in found}
    assert sorted(largest, reverse=True) == sorted(largest, key=lambda width: largest[width], reverse=True)


def test_a_member_is_the_network_of_its_shape(finished: Path) -> None:
    member = open_front(finished)[0]
    expected = network_of(member.policy.shape, 10, 1).state_dict()
    found = member.model().state_dict()
    assert {name: tuple(t.shape) for name, t in found.items()} == {name: tuple(t.shape) for name, t in expected.items()}


def test_a_members_plain_weights_are_where_a_search_over_layers_starts(finished: Path, tmp_path: Path) -> None:
    weights = tmp_path / "shape.safetensors"
    assert run(["export", str(finished), "--out", str(weights)]) == 0
    knee = open_front(finished).pick()
    network, *knobs = knee.policy.shape["family"], *knee.policy.shape.items()
    arguments = {name: value for name, value in knobs if name != "family"}
    config = make_config(
        {
            **shaped(),
            "model": {"name": f"family:{network}", "arguments": arguments, "weights": str(weights)},
            "space": {},
        }
    )
    data = read_data(config, lambda _: None)
    dense = dense_network(config, data, RunDirectory(tmp_path / "run"), lambda _: None).eval()
    x = data.preprocess(data.validation.images[:32])
    torch.testing.assert_close(dense(x), knee.model().eval()(x))
    assert settle_splits(config, data).is_known, (
        "a search from these weights compares on the pictures that they left out"
    )


def test_what_a_run_trains_says_which_pictures_it_left_out(finished: Path) -> None:
    data = read_data(find_run(finished)[1], lambda _: None)
    assert data.test is not None
    for name in ("dense", "supernet"):
        provenance = read_provenance(finished / f"{name}.safetensors")
        assert provenance is not None and provenance.seen == (digest_pictures(data.train),)
        assert provenance.left_out(data.validation) and provenance.left_out(data.test)


def test_a_members_bundle_agrees_with_its_card(finished: Path, tmp_path: Path) -> None:
    member = open_front(finished)[0]
    member.export(tmp_path / "bundle", to="bundle")
    wrong = [check for check in verify_bundle(tmp_path / "bundle") if check.agrees is False]
    assert not [check for check in wrong if check.name != "latency_ratio"], wrong


def test_the_front_is_one_slimmable_network(finished: Path) -> None:
    front, network = open_front(finished), slimmable(finished)
    assert [dict(member.policy.shape) for member in front] == list(network.shapes)
    assert network.use(len(front) - 1)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_resuming_trains_nothing_again(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((finished / "front.json").read_text())
    supernet = (finished / "supernet.safetensors").read_bytes()
    assert run(["resume", str(finished)]) == 0
    assert "training" not in capsys.readouterr().err
    assert (finished / "supernet.safetensors").read_bytes() == supernet
    assert json.loads((finished / "front.json").read_text()) == before


def test_the_familys_own_menus_lose_what_the_network_does_not_hold(tmp_path: Path, one_core: None) -> None:
    config = shaped(shape={"menus": {}, "supernet": {"epochs": 1, "batch_size": 64, "lr": 0.1}})
    config["search"] = {**config["search"], "evaluations": 3, "batch": 3, "finalists": 1}
    code, _, errors = search(config, tmp_path)
    assert code == 0, errors
    assert "width 1.0, 0.75, 0.5, 0.375 is not contained in the dense network and left out" in errors
    assert {row.state for row in rows(tmp_path / "run", "screen")} == {"done"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": {"name": "family:lenet5", "train": {"epochs": 1}}}, "expected model.name to be family: and one of"),
        ({"shape": {"menus": {"width": [0.25]}}}, "every menu has one option"),
        ({"shape": {"menus": {"width": []}}}, "width: expected one option or more"),
        ({"shape": {"menus": {"widht": [0.25, 0.125]}}}, "unknown knob 'widht'; did you mean 'width'"),
        ({"shape": {"menus": {"width": [2.0, 1.0]}}}, "no shape of the menus is contained in the dense network"),
    ],
)
def test_wrong_shapes_are_refused_with_what_to_do(
    tmp_path: Path, one_core: None, changes: dict[str, Any], expected: str
) -> None:
    code, _, errors = search(shaped(**changes), tmp_path)
    assert code == 2
    assert expected in " ".join(errors.split())


def test_sensitivity_curves_of_shapes_are_refused(tmp_path: Path, one_core: None) -> None:
    path = write_config(tmp_path / "shapes.yaml", shaped())
    with contextlib.redirect_stderr(io.StringIO()) as stderr, contextlib.redirect_stdout(io.StringIO()):
        code = run(["profile", str(path), "--out", str(tmp_path / "run")])
    assert code == 2
    assert "sensitivity curves are of one network's layers" in " ".join(stderr.getvalue().split())


def test_early_exits_train_no_supernet_and_leave_the_search_its_run(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = Path(shutil.copytree(finished, tmp_path / "run"))
    (directory / "supernet.safetensors").rename(tmp_path / "supernet.safetensors")
    monkeypatch.setattr(api, "find_exits", lambda session: session.prepared.bench.supernet)
    assert api.early_exits(find_run(directory)[1], directory) is None
    assert not (directory / "supernet.safetensors").exists()
    (tmp_path / "supernet.safetensors").rename(directory / "supernet.safetensors")
    before = rows(directory)
    assert run(["resume", str(directory)]) == 0 and rows(directory) == before


def test_shapes_are_left_to_tpe_where_no_sampler_is_named() -> None:
    assert make_config(shaped()).sampler == "tpe"
    assert make_config(shaped(search={"sampler": "nsga2"})).sampler == "nsga2"


torch.set_num_threads(1)
