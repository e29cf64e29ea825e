"""What export writes over, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto, helper
from paretopress.evaluators.exact_integers import ADVICE, EXACT_INTEGERS, make_trial
from paretopress.policies.coding.press import encode
from paretopress.policies.errors import InputError, WorkError
from paretopress.policies.files import write_text
from paretopress.policies.policy import Policy
from paretopress.search.bundle_readme import bundle_readme
from paretopress.search.exporting import check_ending, check_target, export_member, report_card
from paretopress.search.front import FrontData, Member
from paretopress.search.ledger import Ledger
from paretopress.search.rundir import RunDirectory


def onnx_file() -> bytes:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    return bytes(helper.make_model(helper.make_graph([node], "g", [value], [value])).SerializeToString())


CONTENT = {"onnx": onnx_file(), "press": encode({}, {})}


@pytest.mark.parametrize("target", ["onnx", "press"])
def test_an_earlier_export_of_the_same_kind_may_be_written_over(target: str, tmp_path: Path) -> None:
    check_target(tmp_path / f"new.{target}", target)
    for name in (f"old.{target}", "old"):
        (tmp_path / name).write_bytes(CONTENT[target])
        check_target(tmp_path / name, target)


@pytest.mark.parametrize("target", ["onnx", "press"])
@pytest.mark.parametrize("content", [b"", b"model: {name: family:lenet5}\n", b"SQLite format 3\0", b"\x08\x08" * 9])
def test_a_file_that_is_no_export_is_never_written_over(target: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(content)
    with pytest.raises(InputError, match=f"mine exists and is no {target} file; choose another or remove it"):
        check_target(tmp_path / "mine", target)
    (tmp_path / f"a.{target}").mkdir()
    with pytest.raises(InputError, match="exists and is no"):
        check_ending(tmp_path / f"a.{target}")


def test_an_ending_that_says_another_target_is_refused(tmp_path: Path) -> None:
    for name, target in (("a.press", "onnx"), ("a.onnx", "press"), ("a.onnx", "bundle")):
        with pytest.raises(InputError, match=rf"{name} ends as .* files do; leave out --to {target}"):
            check_target(tmp_path / name, target)


@pytest.mark.parametrize("owner", ["ledger.sqlite", "card.json"])
def test_files_of_a_run_or_a_bundle_are_never_written_over(owner: str, tmp_path: Path) -> None:
    (tmp_path / owner).write_text("")
    (tmp_path / "artefacts").mkdir()
    for place in (tmp_path / "reference.onnx", tmp_path / "artefacts" / "model.onnx"):
        place.write_bytes(CONTENT["onnx"])
        with pytest.raises(InputError, match="is part of a run or a bundle, which needs it; choose another"):
            check_target(place, "onnx")
    check_target(tmp_path / "best.onnx", "onnx")


def test_a_bundle_of_a_run_that_lost_its_reference_says_what_makes_it_again(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with Ledger(run.path):
        pass
    member = Member(Policy().id, Policy(), True, {})
    found = FrontData({}, {}, (), (member,))
    with pytest.raises(WorkError, match=r"reference.onnx is missing; 'paretopress resume .*run' makes it again"):
        export_member(run, found, member, tmp_path / "bundle", "bundle")
    assert not (tmp_path / "bundle").exists()


def test_a_file_as_a_folder_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "dense.safetensors").write_text("weights")
    with pytest.raises(
        WorkError, match=r"cannot write .*x.onnx: (Not a directory|File exists); .*choose another place"
    ):
        write_text(tmp_path / "dense.safetensors" / "x.onnx", "")


@pytest.mark.parametrize("file", [make_trial().file, onnx_file()], ids=["8 bit", "float"])
def test_a_bundle_says_which_session_option_its_8_bit_layers_need_where(file: bytes, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_text(run.environment, "{}")
    Ledger(tmp_path).close()
    metrics = {"error_pct": 1.5, "stored_bytes": 12_345, "latency_ratio": 0.5}
    member = Member(Policy().id, Policy(), True, metrics)
    card = report_card(
        run, FrontData({}, {}, (), (member,)), member, {"model.onnx": file, "model.press": CONTENT["press"]}
    )
    text, is_8_bit = bundle_readme(card), file != onnx_file()
    assert (card.get("session_options") == ADVICE) == is_8_bit
    assert (ADVICE in text) == is_8_bit and (f'"{EXACT_INTEGERS[0]}", "1"' in text) == is_8_bit
    assert member.id in text and "1.50 % error, 12,345 bytes stored, 0.500x" in text and "model.onnx" in text
