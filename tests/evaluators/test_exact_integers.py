"""Which session options 8-bit layers need: by the processor's flags, confirmed by outputs."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from paretopress.evaluators import exact_integers
from paretopress.evaluators.exact_integers import (
    EXACT_INTEGERS,
    VNNI,
    entries_for,
    is_exact,
    make_trial,
    run_trial,
    session_entries,
)
from paretopress.evaluators.runtime import session, session_options

OPTION = dict([EXACT_INTEGERS])


class Runtime:
    """Answers with a trial's right outputs, or others, and remembers under which options it was asked."""

    def __init__(self, error: float = 0.0) -> None:
        self.error = error
        self.asked: list[Mapping[str, str]] = []

    def __call__(self, file: bytes, picture: np.ndarray, entries: Mapping[str, str]) -> np.ndarray:
        self.asked.append(entries)
        outputs = make_trial().outputs.copy()
        outputs[0, -1] += self.error
        return outputs


@pytest.mark.parametrize("name", ["avx512_vnni", "avx_vnni"])
def test_with_vnni_and_exact_outputs_the_option_is_left_out(name: str) -> None:
    runtime = Runtime()
    assert entries_for({"architecture": "x86_64", "avx2": True, name: True}, runtime) == {}
    assert runtime.asked == [{}], "the kernels that are to be used are the ones that are tried"


def test_with_vnni_but_one_other_output_the_option_stays() -> None:
    smallest = float(np.spacing(make_trial().outputs[0, -1]))
    runtime = Runtime(smallest)
    assert entries_for({"architecture": "x86_64", "avx512_vnni": True}, runtime) == OPTION
    assert runtime.asked == [{}]


@pytest.mark.parametrize(
    "capabilities",
    [
        {"architecture": "x86_64", "avx2": True, "avx512_vnni": False, "avx_vnni": False},
        {"architecture": "x86_64", "avx512_f": True},
        {"architecture": "AMD64"},
    ],
    ids=["AVX2", "AVX-512 without VNNI", "nothing known but its name"],
)
def test_without_vnni_the_option_stays_whatever_the_outputs(capabilities: Mapping[str, object]) -> None:
    runtime = Runtime()
    assert entries_for(capabilities, runtime) == OPTION
    assert runtime.asked == [], "that one network came out right says nothing of others"


@pytest.mark.parametrize("architecture", ["arm64", "aarch64", "ppc64le"])
def test_other_processors_have_no_such_option(architecture: str) -> None:
    assert entries_for({"architecture": architecture, "neon": True}, Runtime(1.0)) == {}


def test_a_torch_that_does_not_tell_instructions_keeps_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "AMD64")
    exact_integers.session_entries.cache_clear()
    try:
        assert session_entries() == OPTION
    finally:
        exact_integers.session_entries.cache_clear()


def test_with_the_options_of_this_processor_the_runtime_is_exact_here() -> None:
    assert is_exact(run_trial, session_entries())
    assert is_exact(run_trial, OPTION), "the option is right everywhere, if slower"


def test_this_runtime_is_refused_where_its_fast_kernels_overflow() -> None:
    """The trial tells the kernels apart on a real runtime: whatever the flags say, what overflows is not taken."""
    claimed = {"architecture": "x86_64", "avx512_vnni": True}
    assert entries_for(claimed, run_trial) == ({} if is_exact(run_trial, {}) else OPTION)
    known = torch.cpu.get_capabilities()
    if known.get("avx2") and not any(known.get(name) for name in VNNI):
        assert entries_for(claimed, run_trial) == OPTION, "these are the kernels that overflow"


def test_the_trial_runs_on_integers_and_loses_nothing_before_its_last_layer() -> None:
    trial = make_trial()
    weights = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load_model_from_string(trial.file).graph.initializer
        if tensor.name.endswith("_weight")
    ]
    assert len(weights) == 4
    for weight in weights:
        assert weight.dtype == np.int8 and weight.max() > 64, "codes beyond those that no kernel overflows on"
    assert all(0 < low < high < 255 for low, high in trial.codes), "nothing is cut off, which could hide an overflow"
    assert make_trial().file == trial.file


def test_every_session_has_the_options_that_the_processor_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    name, value = EXACT_INTEGERS
    for entries in ({}, OPTION):
        monkeypatch.setattr("paretopress.evaluators.runtime.session_entries", lambda entries=entries: entries)
        options = session_options(2)
        assert options.intra_op_num_threads == 2
        if entries:
            assert options.get_session_config_entry(name) == value
        else:
            with pytest.raises(RuntimeError, match="does not have configuration"):
                options.get_session_config_entry(name)


def test_the_session_computes_the_trial_exactly() -> None:
    trial = make_trial()
    (outputs,) = session(trial.file).run(None, {"input": trial.picture})
    assert np.array_equal(outputs, trial.outputs)
