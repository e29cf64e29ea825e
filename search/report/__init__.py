"""The report of a run: one self-contained HTML page."""

from __future__ import annotations

from .data import ReportData
from .page import render

__all__ = ["ReportData", "render"]
