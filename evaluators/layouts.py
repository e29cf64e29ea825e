"""On which axis of an array of pictures the channels lie. What the network takes decides, and what was decided is said."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from ..policies.errors import DataError

MIN_SIDE = 8
"""Rows or columns below which an array is no picture but a signal: its first axis holds the channels."""
MIN_PHOTO_SIDE = 16
"""Rows and columns from which three values at the end are taken for red, green and blue."""
MAX_LAST_CHANNELS = 4

Report = Callable[[str], None]
Takes = Callable[[tuple[int, int, int]], bool]
"""(C, H, W) -> whether the network takes pictures of that shape."""


def shapes_taken_by(model: nn.Module, size: tuple[int, int] | None) -> Takes:
    """Return whether a network takes pictures of a shape: it is tried with one, in evaluation mode, and left as it was.

    Parameters
    ----------
    size
        (height, width) that pictures are resized to on their way into the network; ``None`` keeps theirs.
    """

    def takes(shape: tuple[int, int, int]) -> bool:
        channels, height, width = shape
        picture = torch.zeros(1, channels, *(size or (height, width)), dtype=torch.float32)
        training = [module for module in model.modules() if module.training]
        try:
            for module in training:
                module.training = False
            with torch.no_grad():
                outputs = model(picture)
        # A network may refuse a shape in any way.
        except Exception:
            return False
        finally:
            for module in training:
                module.training = True
        return isinstance(outputs, Tensor) and outputs.ndim == 2

    return takes


def to_channels_first(images: np.ndarray, what: str, report: Report, takes: Takes | None = None) -> np.ndarray:
    """Return pictures as (N, C, H, W), whether they come so or as (N, H, W, C).

    Parameters
    ----------
    images
        (N, C, H, W) or (N, H, W, C).
    what
        What the pictures are called in messages.
    report
        Gets a line where the shape alone does not tell.
    takes
        Whether the network takes pictures of a shape; ``None`` where there is no network.

    Raises
    ------
    DataError
        Where neither shape nor network tell.
    """
    first, second, last = images.shape[1:]
    if last > MAX_LAST_CHANNELS:
        return images
    shape = f"({first}, {second}, {last})"
    if takes is not None and (first, second, last) != (last, first, second):
        as_they_are, turned = takes((first, second, last)), takes((last, first, second))
        if as_they_are and not turned:
            return images
        if turned and not as_they_are:
            report(
                f"{what}: arrays of shape {shape} are read as {first} x {second} pictures of {last} channels, which the"
                " network takes"
            )
            return _turn(images)
    if last not in (1, 3) or first in (1, 3):
        return images
    if first == second:
        return _turn(images)
    if min(first, second) < MIN_SIDE:
        report(f"{what}: arrays of shape {shape} are read as {second} x {last} pictures of {first} channels")
        return images
    if last == 3 and min(first, second) >= MIN_PHOTO_SIDE:
        report(f"{what}: arrays of shape {shape} are read as {first} x {second} pictures of {last} channels")
        return _turn(images)
    raise DataError(
        f"{what}: arrays of shape {shape} may be {first} channels of {second} x {last}, or {first} x {second} pictures of"
        f" {last} channels; give pictures as images.transpose(0, 3, 1, 2), or channels as evaluators.data.Pictures, which"
        " are taken as they are"
    )


def _turn(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2))
