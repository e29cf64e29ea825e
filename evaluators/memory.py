"""Memory that a process no longer uses, given back to the system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def release_memory() -> None:
    """Give back what freed tensors have left in the allocator's hands; where that cannot be asked for, do nothing.

    Between two trainings of EfficientNet-Lite0 at 160 px a worker held more than 1 GB so: glibc keeps what was freed in
    pieces below 32 MB for later, which beside other workers is memory that nobody has.
    """
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    # Of glibc alone.
    except (AttributeError, OSError, TypeError):
        return None
