"""Imports that every cell needs: done once, in the process that the cells are forked from."""

from __future__ import annotations

from paretopress.evaluators.torchvision_guard import import_torchvision

from . import cell

import_torchvision()
import timm  # noqa: E402

__all__ = ["cell", "timm"]
