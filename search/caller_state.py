"""What the caller of the Python interface has set in torch and numpy: our work neither depends on it nor changes it."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch


@contextmanager
def keep_caller_state() -> Iterator[None]:
    """Work with gradients on, float32 and the processor; leave modes, threads and random states as the caller had them."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        with ExitStack() as modes:
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.enable_grad())
            modes.enter_context(torch.autocast("cpu", enabled=False))
            # A default device slows every call down, so that it is set only where the caller has set another.
            if torch.get_default_device().type != "cpu":
                modes.enter_context(torch.device("cpu"))
            torch.set_default_dtype(torch.float32)
            yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
