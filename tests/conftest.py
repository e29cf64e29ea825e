from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# An example that takes long beside other work is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


class RootIsAFolder:
    """The root holds the package's ``__init__.py``, which pytest would import under the folder's name, whatever that is."""

    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == parent.config.rootpath else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RootIsAFolder())


@pytest.fixture(scope="module")
def foreign_ray() -> Iterator[None]:
    """A Ray that the pools did not start and must leave running: it is shared because starting one takes 5 s."""
    import ray
    from paretopress.evaluators.ray_pool import local_environment

    # Ray's own default is 15: beside other work its processes would take minutes to come up.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(
        address="local",
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env=local_environment(),
    )
    yield
    assert ray.is_initialized(), "a pool has shut down a Ray that it had not started"
    ray.shutdown()
