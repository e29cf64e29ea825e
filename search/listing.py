"""The techniques as a list: what each is, takes, reduces and exports."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..policies.techniques import TECHNIQUES


def listed() -> list[dict[str, Any]]:
    """A row for each technique: ``name``, ``phase`` and the fields of its ``About``, in the order of the phases."""
    ordered = sorted(TECHNIQUES.items(), key=lambda item: (item[1].phase, item[0]))
    return [{"name": name, "phase": cls.phase.name.lower(), **asdict(cls.about)} for name, cls in ordered]
