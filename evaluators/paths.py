"""Where the driver finds modules that a fresh process would not: what its workers must search as well."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from pathlib import Path


def path_variables() -> dict[str, str]:
    """Return ``PYTHONPATH`` with the folders of ``sys.path`` that are not the interpreter's own; nothing where there are none.

    They may have been added at run time, by a notebook or by a script that stands beside its modules. Paths of the
    interpreter stay out: on another node they may be another version's.
    """
    own = {Path(place) for place in (*sysconfig.get_paths().values(), *site.getsitepackages())}
    folders = [Path(entry or ".").absolute() for entry in sys.path]
    handed = [str(folder) for folder in folders if folder.exists() and not _lies_in(folder, own)]
    # A folder of such a name can be on no PYTHONPATH.
    text = os.pathsep.join(folder for folder in dict.fromkeys(handed) if os.pathsep not in folder)
    return {"PYTHONPATH": text} if text else {}


def _lies_in(folder: Path, places: set[Path]) -> bool:
    return any(place in places for place in (folder, *folder.parents))
