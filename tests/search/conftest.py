from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paretopress.tests.search.runs import small, write_config


@pytest.fixture(scope="session")
def one_core() -> Iterator[None]:
    """Runs that are quick on a loaded machine: two OpenMP threads on one free core cost more than they give.

    A network of 50 microseconds is timed beside whatever else runs there, so verification allows for more than its tenth.
    """
    from paretopress.evaluators import cores
    from paretopress.search import prepare, trainings, verifying

    with pytest.MonkeyPatch.context() as patch:
        for module in (cores, prepare, trainings, verifying):
            patch.setattr(module, "available_cores", lambda: 1)
        patch.setattr(verifying, "LATENCY_TOLERANCE", 2.0)
        yield


@pytest.fixture(scope="session")
def finished(one_core: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run of the command line with all defaults in place, and its summary; tests only read it."""
    from paretopress.search.cli import run

    directory = tmp_path_factory.mktemp("finished")
    config = write_config(directory / "small.yaml", small())
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        code = run(["search", str(config), "--out", str(directory / "run"), "--json"])
    assert code == 0, stderr.getvalue()
    return directory / "run", json.loads(stdout.getvalue().splitlines()[-1])


@pytest.fixture(scope="session")
def weights(finished: tuple[Path, dict[str, Any]]) -> Path:
    """The dense network that the finished run trained."""
    return finished[0] / "dense.safetensors"


@pytest.fixture(scope="session")
def trained(one_core: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the small run's network, where no finished run is needed."""
    from paretopress.search.config import make_config
    from paretopress.search.prepare import dense_network, read_data
    from paretopress.search.rundir import RunDirectory

    config, run = make_config(small()), RunDirectory(tmp_path_factory.mktemp("trained"))
    dense_network(config, read_data(config, lambda _: None), run, lambda _: None)
    return run.weights
