"""SIGTERM ends a command as ctrl-C does. The signal is truly sent; where no command hears it, a handler of the test does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paretopress.search.cli import run
from paretopress.search.stopping import sigterm_as_ctrl_c
from paretopress.search.terminal import TerminalListener
from paretopress.tests.search.runs import few_variants, rows, small, write_config


def unheard(number: int, frame: object) -> None:
    raise AssertionError("the command did not hear SIGTERM")


@pytest.fixture(autouse=True)
def guard() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, unheard)
    yield
    assert signal.getsignal(signal.SIGTERM) is unheard, "the handler that was there before is put back"
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def stopped(one_core: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Give a command that is sent SIGTERM once it says something; what it has said in the end."""

    def stopped(marker: str, *arguments: object) -> str:
        whole = TerminalListener.say

        def say(self: TerminalListener, text: str) -> None:
            whole(self, text)
            if marker in text:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(TerminalListener, "say", say)
        code = run([str(argument) for argument in arguments])
        monkeypatch.setattr(TerminalListener, "say", whole)
        said = capsys.readouterr()
        assert (code, said.out) == (1, "") and "Traceback" not in said.err
        return said.err

    return stopped


def test_a_search_stops_while_its_dense_network_trains_and_goes_on_from_there(stopped: Any, tmp_path: Path) -> None:
    config, out = write_config(tmp_path / "mine.yaml", small()), tmp_path / "run"
    said = stopped("epoch 2/", "search", config, "--out", out)
    assert f"stopped; nothing recorded is lost. Go on by: paretopress resume {out}" in said
    assert (out / "training.safetensors").is_file() and not (out / "dense.safetensors").exists()
    again = stopped("building the bank", "resume", out)
    assert "epoch 3/" in again and "epoch 2/" not in again, "its training went on after the epochs that were done"
    assert f"Go on by: paretopress resume {out}" in again
    assert {row.origin for row in rows(out) if row.state == "done"} >= {"dense"}


@pytest.mark.parametrize(("command", "marker"), [("profile", "building the bank"), ("exits", "training exits behind")])
def test_other_commands_say_how_they_go_on(
    command: str, marker: str, stopped: Any, trained: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "mine.yaml", few_variants(trained, exits={"count": 1, "epochs": 1}))
    said = stopped(marker, command, config, "--out", tmp_path / "run")
    assert (
        f"stopped; nothing recorded is lost. Go on by: paretopress {command} {tmp_path / 'run' / 'config.yaml'}" in said
    )


def test_a_second_signal_while_it_closes_changes_nothing() -> None:
    closed = False
    with pytest.raises(KeyboardInterrupt), sigterm_as_ctrl_c():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("it goes no further")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            closed = True
    assert closed


def test_a_process_that_ignores_the_signal_goes_on_ignoring_it() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with sigterm_as_ctrl_c():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        assert signal.signal(signal.SIGTERM, unheard) == signal.SIG_IGN


def test_outside_of_the_main_thread_nothing_is_done() -> None:
    def enter() -> None:
        with sigterm_as_ctrl_c():
            heard.append(signal.getsignal(signal.SIGTERM))

    heard: list[object] = []
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert heard == [unheard]
