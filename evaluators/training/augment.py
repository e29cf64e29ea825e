"""Random changes of training pictures: shifts, mirror images, small rotations and scalings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Augment:
    """What may happen to a training picture.

    Parameters
    ----------
    shift
        Largest shift in pixels, each way, filled with zeros (after normalisation: the mean colour).
    flip
        Mirror left and right with probability 1/2.
    rotate
        Largest rotation in degrees, each way.
    scale
        Largest relative change of size, each way (0.1: between 0.9 and 1.1).
    """

    shift: int = 0
    flip: bool = False
    rotate: float = 0.0
    scale: float = 0.0

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Changed pictures, same shape (N, C, H, W)."""
        if self.rotate or self.scale:
            x = self._affine(x, generator)
        if self.shift:
            x = self._shift(x, generator)
        if self.flip:
            mirror = torch.rand(len(x), generator=generator) < 0.5
            x = torch.where(mirror.view(-1, 1, 1, 1), x.flip(-1), x)
        return x

    def _shift(self, x: Tensor, generator: torch.Generator) -> Tensor:
        count, _, height, width = x.shape
        padded = functional.pad(x, (self.shift,) * 4)
        rows = torch.randint(0, 2 * self.shift + 1, (count, 1), generator=generator) + torch.arange(height)
        cols = torch.randint(0, 2 * self.shift + 1, (count, 1), generator=generator) + torch.arange(width)
        sample = torch.arange(count).view(-1, 1, 1)
        return padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2)

    def _affine(self, x: Tensor, generator: torch.Generator) -> Tensor:
        def uniform() -> Tensor:
            return torch.rand(len(x), generator=generator) * 2 - 1

        angle = uniform() * math.radians(self.rotate)
        factor = 1 + uniform() * self.scale
        zero = torch.zeros_like(angle)
        first = torch.stack([angle.cos() * factor, -angle.sin() * factor, zero], 1)
        second = torch.stack([angle.sin() * factor, angle.cos() * factor, zero], 1)
        grid = functional.affine_grid(torch.stack([first, second], 1), list(x.shape), align_corners=False)
        return functional.grid_sample(x, grid, align_corners=False)
