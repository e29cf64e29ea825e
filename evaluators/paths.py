"""Where the driver finds modules that a fresh process would not: what its workers must search as well."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE_PARENT = Path(__file__).absolute().parents[2]
"""The folder that this package lies in."""


@dataclass(frozen=True)
class ModulePath:
    """Folders of the driver's ``sys.path``, searched in a process from when this is unpickled there: to be pickled first.

    They may have been added at run time, by a notebook or by a script that stands beside its modules. Folders of the
    interpreter stay out: on another node they may be another version's.

    Parameters
    ----------
    before, after
        What the driver searches before the interpreter's own folders and after them, in order.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]

    @classmethod
    def here(cls) -> ModulePath:
        """For what is pickled in this process."""
        own = {Path(place) for place in (*sysconfig.get_paths().values(), *site.getsitepackages())}
        folders = [Path(entry or ".").absolute() for entry in sys.path]
        places = [place for place, folder in enumerate(folders) if _lies_in(folder, own)]
        first = places[0] if places else len(folders)
        others = [(place, str(folder)) for place, folder in enumerate(folders) if not _lies_in(folder, own)]
        before = tuple(folder for place, folder in others if place < first)
        return cls(before, tuple(folder for place, folder in others if place > first))

    def search(self) -> None:
        """Search the folders in this process, after those that it has been told before."""
        before = [folder for folder in self.before if folder not in sys.path]
        after = [folder for folder in self.after if folder not in sys.path]
        sys.path[:] = [*before, *sys.path, *after]

    def __reduce__(self) -> tuple[Any, ...]:
        return _searched, (self.before, self.after)


def _searched(before: tuple[str, ...], after: tuple[str, ...]) -> ModulePath:
    path = ModulePath(before, after)
    path.search()
    return path


def _lies_in(folder: Path, places: set[Path]) -> bool:
    return any(place in places for place in (folder, *folder.parents))


def package_variables() -> dict[str, str]:
    """Return ``PYTHONPATH`` with this package's folder, where that alone makes it known here; a worker needs it to begin."""
    if PACKAGE_PARENT not in [Path(entry or ".").absolute() for entry in sys.path]:
        return {}
    known = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join(filter(None, (known, str(PACKAGE_PARENT))))}
