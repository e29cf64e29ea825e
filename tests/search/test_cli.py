from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paretopress as pp
import pytest
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.models import build_model, save_weights
from paretopress.policies.techniques import TECHNIQUES
from paretopress.search import api
from paretopress.search.cli import run
from paretopress.search.config import make_config, parse_yaml
from paretopress.tests.search.runs import front_of, rows, small, with_weights, write_config

pytestmark = pytest.mark.usefixtures("one_core")

COMMANDS = ("init", "search", "profile", "resume", "report", "export", "apply", "verify", "data fetch", "schema")
Finished = tuple[Path, dict[str, Any]]
Refuse = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Run a command that must end with an exit code; what it says, which is a message and no traceback."""

    def refused(*arguments: object, code: int = 2) -> str:
        capsys.readouterr()
        assert run([str(argument) for argument in arguments]) == code
        said = capsys.readouterr()
        assert "Traceback" not in said.err and not said.out
        return said.err

    return refused


@pytest.fixture
def done(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run a command with --json; the object in the last line of its output."""

    def done(*arguments: object) -> dict[str, Any]:
        capsys.readouterr()
        assert run([*map(str, arguments), "--json"]) == 0
        content = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert isinstance(content, dict)
        return content

    return done


def search_refused(refused: Refuse, tmp_path: Path, config: dict[str, Any], *more: str) -> str:
    """What a search with this configuration says; it must leave its directory free for a mended one."""
    out = tmp_path / "run"
    said = refused("search", write_config(tmp_path / "mine.yaml", config), "--out", out, *more)
    assert not out.exists()
    return said


# Help, versions, wrong options


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Example: paretopress {command}" in " ".join(out.split())
    assert "--json" in out


def test_help_and_the_version_are_no_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f" {command.split()[0]} " in said for command in COMMANDS)
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"{pp.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serch"], "No such command 'serch'"),
        (["search"], "Missing argument 'CONFIG'"),
        (["search", "x.yaml", "--evaluations", "3"], "No such option: --evaluations"),
        (["export", "run"], "Missing option '--out'"),
        (["apply", "p.yaml", "--model", "family:lenet5", "--out", "a.onnx"], "Missing option '--weights'"),
        (["data"], "fetch"),
        (
            ["apply", "p", "--model", "m", "--weights", "w", "--out", "o.onnx", "--image-size", "big"],
            "Invalid value for '--image-size'",
        ),
        (
            ["apply", "p", "--model", "m", "--weights", "w", "--out", "o.onnx", "--image-size", "0"],
            "Invalid value for '--image-size'",
        ),
        (
            ["apply", "p", "--model", "m", "--weights", "w", "--out", "o.onnx", "--num-classes", "-2"],
            "Invalid value for '--num-classes'",
        ),
    ],
)
def test_wrong_options_are_wrong_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err + said.out and "Traceback" not in said.err


# Good input


@pytest.mark.parametrize(
    ("network", "data"),
    [
        ("family:digits_cnn", "digits"),
        ("family:lenet5", "mnist"),
        ("timm:resnet18", "imagefolder:pictures of mine"),
        ("torchvision:squeezenet1_1", "npz:data.npz"),
        ("my.package:network", "my.package:pictures"),
    ],
)
def test_init_writes_a_configuration_that_loads(
    network: str, data: str, done: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["init", "--network", network, "--data", data]) == 0
    text = capsys.readouterr().out
    config = make_config(parse_yaml(text))
    assert (config.model.name, config.data.name) == (network, data)
    assert config.limits() and text.count("#") > 10, "it is commented"
    assert done("init", "--network", network, "--data", data) == {"configuration": text, "path": None}


def test_init_refuses_a_network_that_cannot_be(refused: Refuse) -> None:
    assert "model.name: a network is timm:NAME" in refused("init", "--network", "foo")
    assert "model.name: family has no network 'lenet6'" in refused("init", "--network", "family:lenet6")
    assert "did you mean resnet18" in refused("init", "--network", "timm:resnett18")
    assert "torchvision has no network 'resnet0'" in refused("init", "--network", "torchvision:resnet0")


def test_init_writes_to_a_file_but_never_over_one(tmp_path: Path, refused: Refuse) -> None:
    assert run(["init", "--out", str(tmp_path / "mine.yaml")]) == 0
    before = (tmp_path / "mine.yaml").read_text()
    assert "exists; choose another or remove it" in refused("init", "--out", tmp_path / "mine.yaml")
    assert (tmp_path / "mine.yaml").read_text() == before


def test_the_schema_is_json(done: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == done("schema")
    assert set(done("schema")["properties"]) >= {"model", "data", "budgets", "space", "search"}


def test_the_list_of_techniques_names_each_with_all_that_is_told_of_it(
    done: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = done("techniques")["techniques"]
    assert {row["name"] for row in rows} == set(TECHNIQUES)
    assert all(row[key] for row in rows for key in ("rows", "phase", "title", "layers", "reduces", "exports", "paper"))
    assert run(["techniques"]) == 0
    printed = capsys.readouterr().out
    assert all(f" {name} " in printed for name in TECHNIQUES)


def test_the_summary_of_a_search_is_one_json_object(finished: Finished) -> None:
    directory, summary = finished
    found = front_of(directory)
    assert summary["run"] == str(directory) and summary["front"] == len(found["front"])
    assert summary["feasible"] == sum(member["feasible"] for member in found["front"])
    assert summary["knee"]["id"] == found["knee"] and Path(summary["report"]).is_file()


def test_resume_and_report_work_on_a_finished_run(
    finished: Finished, tmp_path: Path, done: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    copied = Path(shutil.copytree(finished[0], tmp_path / "run"))
    assert done("resume", copied)["knee"] == finished[1]["knee"]
    (copied / "report.html").unlink()
    assert done("report", copied) == {"report": str(copied / "report.html")}
    assert (copied / "report.html").stat().st_size > 100_000
    assert run(["resume", str(copied)]) == 0
    said = capsys.readouterr()
    assert finished[1]["knee"]["id"] in said.out, "the table names the members whole"
    assert "dense:" in said.err


def test_export_verify_and_apply_go_together(
    finished: Finished, weights: Path, tmp_path: Path, done: Callable[..., dict[str, Any]], refused: Refuse
) -> None:
    directory, summary = finished
    bundle = tmp_path / "bundle"
    exported = done("export", directory, "--out", bundle, "--to", "bundle")
    assert exported == {"path": str(bundle), **summary["knee"]}
    stored = done("export", directory, "--pick", "stored_bytes<=1000000", "--out", tmp_path / "small.press")
    assert (tmp_path / "small.press").stat().st_size == stored["metrics"]["stored_bytes"]
    verified = done("verify", bundle)
    assert verified["agrees"] is True and all(check["agrees"] for check in verified["checks"])

    applied = done(
        *("apply", bundle / "policy.yaml", "--model", "family:digits_cnn"),
        *("--weights", weights, "--out", tmp_path / "again.onnx"),
    )
    assert (tmp_path / "again.onnx").stat().st_size == applied["metrics"]["onnx_bytes"]
    assert applied["metrics"]["macs"] == summary["knee"]["metrics"]["macs"], "the same shape"

    card = json.loads((bundle / "card.json").read_text())
    card["metrics"]["error_pct"] += 3
    (bundle / "card.json").write_text(json.dumps(card))
    assert run(["verify", str(bundle), "--json"]) == 1


def test_a_verification_that_fails_names_the_figure(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pp.open_front(finished[0]).pick().export(tmp_path / "bundle")
    content = (tmp_path / "bundle" / "model.press").read_bytes()
    (tmp_path / "bundle" / "model.press").write_bytes(content + b"x")
    assert run(["verify", str(tmp_path / "bundle")]) == 1
    said = capsys.readouterr()
    assert "NO" in said.out and "disagree with the reported ones: sha256 model.press, stored_bytes" in said.err
    assert "Traceback" not in said.err


def test_ctrl_c_leaves_a_run_that_can_be_resumed(
    tmp_path: Path, weights: Path, refused: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path / "mine.yaml", with_weights(weights, search__evaluations=6, recovery__epochs=0))
    whole, count = CandidateEvaluator.screen, iter(range(100))

    def screen(self: CandidateEvaluator, policy: pp.Policy) -> dict[str, Any]:
        if next(count) == 3:
            raise KeyboardInterrupt
        return whole(self, policy)

    with monkeypatch.context() as patch:
        patch.setattr(CandidateEvaluator, "screen", screen)
        said = refused("search", config, "--out", tmp_path / "run", code=1)
    assert f"nothing recorded is lost. Go on by: paretopress resume {tmp_path / 'run'}" in said
    before = [row for row in rows(tmp_path / "run", "screen") if row.state == "done"]
    assert len(before) == 3 and (tmp_path / "run" / "report.html").is_file()
    assert run(["resume", str(tmp_path / "run")]) == 0
    assert [row for row in rows(tmp_path / "run", "screen") if row in before] == before
    assert front_of(tmp_path / "run")["front"]


# Bad input: configurations


def test_a_missing_configuration_is_named(tmp_path: Path, refused: Refuse) -> None:
    assert "cannot read the configuration" in refused("search", tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"serch": {}}, "unknown key 'serch'; did you mean 'search'?"),
        ({"budgets": {"stored": "44 parsecs"}}, "unknown unit 'parsecs'; expected a size such as 44kB"),
        (
            {"space": {"precision": ["int8"]}},
            "fastfood; got 'int8'",
        ),
        ({"space": {"precision": ["w8a8"]}}, "give sparsity, precision, rank, rewrite, channels or blocks two or more"),
        ({"space__skip": ["layer9*"]}, "space.skip: 'layer9*' matches no layer; the network has conv1, conv2"),
        ({"model": {"name": "family:lenet6", "train": {}}}, "family has no network 'lenet6'; did you mean 'lenet5'"),
        (
            {"model": {"name": "nonsense"}},
            "a network is timm:NAME, torchvision:NAME, family:NAME or package.module:fun",
        ),
        (
            {"model": {"name": "family:digits_cnn", "weights": "none.safetensors"}},
            "no weights at none.safetensors; give",
        ),
        ({"data": {"name": "digitz"}}, "unknown data set 'digitz'; expected digits,"),
        ({"data__validation": 100000}, "change data.validation"),
        ({"data__validation": 1}, "the validation split has 1 pictures, on which an error says nothing"),
        (
            {"data": {"name": "digits", "limit": 3}},
            "change data.validation or data.test, or raise data.limit, which is 3",
        ),
        ({"data__mean": [0.5, 0.5, 0.5]}, "mean: expected 1 finite values"),
    ],
)
def test_a_wrong_configuration_is_refused(
    change: dict[str, Any], message: str, tmp_path: Path, weights: Path, refused: Refuse
) -> None:
    assert message in search_refused(refused, tmp_path, with_weights(weights, **change))


def test_a_wrong_override_is_refused(tmp_path: Path, refused: Refuse) -> None:
    said = search_refused(refused, tmp_path, small(), "--set", "search.evaluatoins=3")
    assert "unknown key 'search.evaluatoins'; did you mean 'evaluations'?" in said
    assert "--set takes a.b=value, got 'search'" in search_refused(refused, tmp_path, small(), "--set", "search")


# Bad input: networks and weights


def test_weights_of_the_wrong_shape_are_refused(tmp_path: Path, refused: Refuse) -> None:
    save_weights(build_model("family:digits_cnn", num_classes=7, in_channels=1), tmp_path / "seven.safetensors")
    said = search_refused(refused, tmp_path, with_weights(tmp_path / "seven.safetensors"))
    assert "do not fit the network" in said and "fc2.weight: expected (10, 64), came (7, 64)" in said


def test_a_file_that_would_run_code_is_refused_unread(tmp_path: Path, refused: Refuse) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "canary",)

    (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb(), protocol=2))
    assert "is refused: it holds more than tensors" in search_refused(
        refused, tmp_path, with_weights(tmp_path / "bomb.pt")
    )
    assert not (tmp_path / "canary").exists()


NETWORKS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, act):
        super().__init__()
        self.act, self.conv, self.fc = act, nn.Conv2d(1, 8, 3), nn.Linear(288, 10)

    def forward(self, x):
        return self.fc(self.act(self.conv(x)).flatten(1))

def fails(x):
    raise RuntimeError("expected scalar type Half")

def unexportable(): return Net(lambda x: torch.fft.fft2(x).real)
def failing(): return Net(fails)
def maps(): return nn.Conv2d(1, 8, 3)
def several(): return Pair()
def empty(): return nn.Flatten()
def number(): return 3
def few(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))

class Pair(nn.Module):
    def forward(self, x):
        return x, x
"""


@pytest.fixture
def own_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_networks_of_test_cli.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own_networks")
@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("unexportable", "Net cannot be exported to ONNX with an input of shape (1, 1, 8, 8)"),
        (
            "failing",
            "the network fails on pictures of shape (1, 1, 8, 8): expected scalar type Half; check data.image_size",
        ),
        ("maps", "expected a classifier that gives logits (N, classes); the network gives (1, 8, 6, 6)"),
        ("several", "expected a classifier that gives logits (N, classes); the network gives tuple"),
        (
            "empty",
            "the network has no nn.Conv2d and no nn.Linear that its forward pass calls as such; nothing to compress",
        ),
        ("few", "the network has 5 outputs but the data has the label 9; set model.num_classes"),
        ("number", "expected a torch.nn.Module, got a int"),
        ("missing", "has no function 'missing'"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused(function: str, message: str, tmp_path: Path, refused: Refuse) -> None:
    config = small(model={"name": f"own_networks_of_test_cli:{function}"})
    assert message in search_refused(refused, tmp_path, config)


# Bad input: data


def npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return f"npz:{path}"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: f"npz:{path / 'none.npz'}", "cannot be read as .npz"),
        (lambda path: (path / "cut.npz").write_bytes(b"PK\3\4 no more") and f"npz:{path / 'cut.npz'}", "cannot be read as .npz"),
        (lambda path: npz(path / "a.npz", z=np.zeros(3)), "holds the arrays z; expected x_train, y_train"),
        (lambda path: npz(path / "e.npz", x=np.zeros((0, 8, 8), np.uint8), y=np.zeros(0, int)), "is empty: expected training"),
        (lambda path: npz(path / "n.npz", x=np.full((9, 1, 8, 8), np.nan, np.float32), y=np.zeros(9, int)), "NaN or infinity"),
        (lambda path: npz(path / "l.npz", x=np.zeros((9, 8, 8), np.uint8), y=np.zeros(9)), "expected labels (N,) of integers"),
        (lambda path: f"imagefolder:{path}", "no class folders in"),
        (lambda path: (path / "pics" / "cat").mkdir(parents=True) or f"imagefolder:{path / 'pics'}", "no pictures in"),
    ],
)  # fmt: skip
def test_empty_and_corrupt_data_is_refused(
    make: Callable[[Path], str], message: str, tmp_path: Path, weights: Path, refused: Refuse
) -> None:
    (tmp_path / "data").mkdir()
    config = with_weights(weights, data__name=make(tmp_path / "data"), data__image_size=8)
    assert message in search_refused(refused, tmp_path, config)


def test_a_corrupt_picture_is_named(tmp_path: Path, weights: Path, refused: Refuse) -> None:
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    (tmp_path / "pictures" / "cat" / "1.png").write_bytes(b"\x89PNG but no more")
    config = with_weights(weights, data__name=f"imagefolder:{tmp_path / 'pictures'}", data__image_size=8)
    assert "1.png cannot be read as a picture" in search_refused(refused, tmp_path, config)


def test_an_unknown_data_set_is_not_fetched(tmp_path: Path, refused: Refuse) -> None:
    assert "expected one of mnist, fashion_mnist, cifar10" in refused("data", "fetch", "mnits", "--dir", tmp_path)
    assert not list(tmp_path.iterdir())


# Bad input: policies


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 1\nlayers: {conv9: [{share: {clusters: 16}}]}", "conv9"),
        ("version: 1\nlayers: {conv1: [{squeeze: {}}]}", "squeeze"),
        ("version: 1\nlayers: {conv1: [{share: {clusters: 100000}}]}", "clusters"),
        ("version: 7\nlayers: {}", "this release reads policies of version 1; this one says 7"),
        ("layers: [", "a policy is YAML or JSON; this text cannot be read"),
        ("[]", "a policy is a mapping with 'version' and 'layers'"),
        (None, "cannot read the policy"),
    ],
)
def test_a_wrong_policy_is_refused(
    text: str | None, message: str, tmp_path: Path, weights: Path, refused: Refuse
) -> None:
    policy = tmp_path / "policy.yaml"
    if text is not None:
        policy.write_text(text)
    out = tmp_path / "model.onnx"
    said = refused("apply", policy, "--model", "family:digits_cnn", "--weights", weights, "--out", out)
    assert message in said and not out.exists()


def test_an_unknown_layer_names_the_nearest_known_one(tmp_path: Path, weights: Path, refused: Refuse) -> None:
    (tmp_path / "p.yaml").write_text("layers: {covn1: [{share: {clusters: 16}}]}")
    arguments = ("apply", tmp_path / "p.yaml", "--model", "family:digits_cnn", "--weights", weights)
    assert "did you mean 'conv1'" in refused(*arguments, "--out", tmp_path / "model.onnx")
    assert "--out: expected a path that ends in .onnx or .press" in refused(*arguments, "--out", tmp_path / "model.pt")


def test_apply_takes_a_network_of_another_number_of_classes(
    tmp_path: Path, done: Callable[..., dict[str, Any]]
) -> None:
    (tmp_path / "p.yaml").write_text("layers: {fc1: [{share: {clusters: 16}}]}")
    save_weights(build_model("family:digits_cnn", num_classes=12), tmp_path / "twelve.safetensors")
    made = done(
        *("apply", tmp_path / "p.yaml", "--model", "family:digits_cnn", "--num-classes", 12),
        *("--weights", tmp_path / "twelve.safetensors", "--out", tmp_path / "model.press"),
    )
    assert (tmp_path / "model.press").stat().st_size == made["metrics"]["stored_bytes"]


def test_apply_builds_the_network_with_arguments(tmp_path: Path, done: Callable[..., dict[str, Any]]) -> None:
    shape = {"side": 8, "downsampling": 2, "width": 0.25, "repeats": 0}
    network = build_model("family:mobilenet_v1", num_classes=10, in_channels=1, **shape)
    (tmp_path / "p.yaml").write_text("layers: {stem.conv: [{share: {clusters: 16}}]}")
    save_weights(network, tmp_path / "narrow.safetensors")
    made = done(
        *("apply", tmp_path / "p.yaml", "--model", "family:mobilenet_v1", "--num-classes", 10),
        *(part for knob, value in shape.items() for part in ("--argument", f"{knob}={value}")),
        *("--weights", tmp_path / "narrow.safetensors", "--out", tmp_path / "model.press"),
    )
    assert (tmp_path / "model.press").stat().st_size == made["metrics"]["stored_bytes"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("width", "--argument takes name=value, got 'width'"),
        ("=3", "--argument takes name=value, got '=3'"),
        ("width=[1]", "--argument width=[1]: expected a number, a text, true or false; got [1]"),
        ("width=", "expected a number, a text, true or false; got None"),
        ("num_classes=3", "num_classes is no argument of the constructor's own; leave it out"),
        ("widht=0.5", "unknown knob 'widht'; did you mean 'width'"),
    ],
)
def test_apply_refuses_wrong_arguments(argument: str, message: str, tmp_path: Path, refused: Refuse) -> None:
    (tmp_path / "p.yaml").write_text("layers: {}")
    arguments = ("apply", tmp_path / "p.yaml", "--model", "family:mobilenet_v1", "--argument", argument)
    assert message in refused(*arguments, "--weights", "none.safetensors", "--out", tmp_path / "model.onnx")


def test_apply_refuses_weights_of_the_wrong_shape(tmp_path: Path, refused: Refuse) -> None:
    (tmp_path / "p.yaml").write_text("layers: {}")
    save_weights(build_model("family:lenet5"), tmp_path / "lenet5.safetensors")
    said = refused(
        *("apply", tmp_path / "p.yaml", "--model", "family:digits_cnn"),
        *("--weights", tmp_path / "lenet5.safetensors", "--out", tmp_path / "model.onnx"),
    )
    assert "do not fit the network" in said and "expected" in said and "came" in said


# Bad input: run directories


@pytest.mark.parametrize("command", [("resume",), ("report",), ("export", "--out", "x.onnx")])
def test_a_directory_without_a_run_is_refused(command: tuple[str, ...], tmp_path: Path, refused: Refuse) -> None:
    said = refused(command[0], tmp_path, *command[1:])
    assert "is no run directory: expected config.yaml in it; give what 'search --out' made" in said


def test_a_run_directory_of_another_configuration_is_refused(
    finished: Finished, tmp_path: Path, refused: Refuse
) -> None:
    copied = Path(shutil.copytree(finished[0], tmp_path / "run"))
    config = write_config(tmp_path / "mine.yaml", small(seed=7))
    said = refused("search", config, "--out", copied)
    assert "holds a run of another configuration; differing: seed. Choose another --out" in said
    assert rows(copied) == rows(finished[0]) and front_of(copied) == front_of(finished[0])


def test_a_directory_of_something_else_is_refused(tmp_path: Path, refused: Refuse) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    said = refused("search", write_config(tmp_path / "mine.yaml", small()), "--out", tmp_path / "thesis")
    assert "exists and holds no run; expected a new or empty directory" in said
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]


def test_weights_that_were_exchanged_under_a_run_are_noticed(
    finished: Finished, weights: Path, tmp_path: Path, refused: Refuse
) -> None:
    copied = Path(shutil.copytree(finished[0], tmp_path / "run"))
    save_weights(build_model("family:digits_cnn", num_classes=10, in_channels=1), copied / "dense.safetensors")
    said = refused("resume", copied)
    assert "a run on another network or other data" in said and rows(copied) == rows(finished[0])


def test_a_ledger_that_is_none_is_refused(finished: Finished, tmp_path: Path, refused: Refuse) -> None:
    copied = Path(shutil.copytree(finished[0], tmp_path / "run", ignore=shutil.ignore_patterns("*-wal", "*-shm")))
    (copied / "ledger.sqlite").write_bytes(b"no database at all" * 100)
    for command in ("resume", "report"):
        assert "expected a ledger in" in refused(command, copied)


def test_an_unfinished_run_has_nothing_to_export(finished: Finished, tmp_path: Path, refused: Refuse) -> None:
    copied = Path(shutil.copytree(finished[0], tmp_path / "run"))
    (copied / "front.json").unlink()
    assert "'paretopress resume' writes it again" in refused("export", copied, "--out", tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pick", "stored_bytes<=3", "--out", "m.onnx"), "no member has stored_bytes<=3; the front reaches from"),
        (("--pick", "size<=3", "--out", "m.onnx"), "unknown metric 'size'; known: error_pct"),
        (
            ("--pick", "zzz", "--out", "m.onnx"),
            "expected knee, an id or a condition such as 'stored_bytes<=50000'; got 'zzz'",
        ),
        (("--to", "tflite", "--out", "m.tflite"), "expected --to onnx, press, bundle, safetensors; got 'tflite'"),
        (("--out", "m.pt"), "expected --to onnx, press, bundle, safetensors; got '.pt'"),
        (
            ("--out", "m.safetensors"),
            "--to safetensors: expected a member whose policy sets the network's shape alone;",
        ),
    ],
)
def test_what_cannot_be_exported_is_refused(
    finished: Finished,
    options: tuple[str, ...],
    message: str,
    refused: Refuse,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused("export", finished[0], *options)
    assert not list(tmp_path.iterdir())


def test_verify_refuses_what_is_no_bundle(tmp_path: Path, refused: Refuse) -> None:
    assert "is no bundle: it lacks model.onnx" in refused("verify", tmp_path / "none")


# The work fails


def test_a_search_in_which_everything_fails_ends_with_one(
    tmp_path: Path, weights: Path, refused: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def screen(self: CandidateEvaluator, policy: pp.Policy) -> dict[str, Any]:
        raise RuntimeError("no kernel for this operator")

    monkeypatch.setattr(CandidateEvaluator, "screen", screen)
    config = write_config(tmp_path / "mine.yaml", with_weights(weights, search__evaluations=6))
    said = refused("search", config, "--out", tmp_path / "run", code=1)
    assert "candidates failed" in said and "RuntimeError: no kernel for this operator (test_cli.py, line" in said


def test_an_error_of_the_system_is_one_message(
    tmp_path: Path, weights: Path, refused: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "environment.json")

    monkeypatch.setattr(api, "write_environment", broken)
    config = write_config(tmp_path / "mine.yaml", with_weights(weights))
    said = refused("search", config, "--out", tmp_path / "run", code=1)
    assert "error: [Errno 13] Permission denied: 'environment.json'; what was recorded is kept" in said
