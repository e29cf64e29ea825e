"""Torch's process-wide defaults as our computations need them, whatever the caller has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_defaults() -> Iterator[None]:
    """Make float32 the default type of new tensors meanwhile; the caller's comes back afterwards."""
    of_caller = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(of_caller)
