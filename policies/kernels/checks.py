"""What the kernels refuse, in one wording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ..errors import InputError


@contextmanager
def numba_needed(kernel: str) -> Iterator[None]:
    """Around the import of compiled loops: says what to install where numba is missing.

    Raises
    ------
    InputError
        Where numba, or the llvmlite it stands on, is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"numba", "llvmlite"}:
            raise
        raise InputError(
            f"{kernel}: expected numba, which compiles this kernel, but {error.name} is not installed;"
            " install it with: pip install 'paretopress[kernels]'"
        ) from error


def require_floats(kernel: str, name: str, array: np.ndarray, layout: str) -> np.ndarray:
    """The array, contiguous, if it is float32 with the axes of ``layout``, for example ``(N, C, H, W)``.

    Raises
    ------
    InputError
        Where it is no such array, or has an axis other than the first of length 0.
    """
    axes = layout.count(",") + 1
    if not isinstance(array, np.ndarray):
        raise InputError(f"{kernel}: expected {name} {layout} as a numpy array, got {type(array).__name__}")
    if array.dtype != np.float32:
        raise InputError(f"{kernel}: expected {name} as float32, got {array.dtype}; convert it with astype(np.float32)")
    if array.ndim != axes or 0 in array.shape[1:]:
        raise InputError(f"{kernel}: expected {name} {layout} with no empty axis, got shape {array.shape}")
    return np.ascontiguousarray(array)


def require_channels(kernel: str, x: np.ndarray, channels: int) -> None:
    """Refuse an input (N, C, H, W) whose channels are not those of the weight.

    Raises
    ------
    InputError
        Where they differ.
    """
    if x.shape[1] != channels:
        raise InputError(
            f"{kernel}: expected x with the {channels} channels of the weight, got {x.shape[1]} (shape {x.shape})"
        )


def output(kernel: str, out: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """``out`` if it can be written to as a contiguous float32 array of the shape; a new array where there is none.

    Raises
    ------
    InputError
        Where it cannot.
    """
    if out is None:
        return np.empty(shape, np.float32)
    if not isinstance(out, np.ndarray) or out.dtype != np.float32 or not out.flags.carray or out.shape != shape:
        got = f"{out.dtype} {out.shape}" if isinstance(out, np.ndarray) else type(out).__name__
        raise InputError(f"{kernel}: expected out as a contiguous, writable float32 array {shape}, got {got}")
    return out
