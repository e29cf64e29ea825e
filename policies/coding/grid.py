"""Classes of rows and columns of a mask by how full they are.

Magnitude pruning leaves rows and columns (output and input channels, pixels) very differently full. Their classes cost a
few bits each, and every cell (row class, column class) then has a probability of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .tables import table_bits

CLASSES = 17
"""Class 0 for what is empty, 16 more by equal steps."""

_CELL_BITS = 7.0


@dataclass(frozen=True)
class Grid:
    """Classes of rows and columns.

    Parameters
    ----------
    rows, columns
        (rows,) and (columns,): class of each, from 0.
    shape
        Number of row classes and of column classes.
    """

    rows: np.ndarray
    columns: np.ndarray
    shape: tuple[int, int]

    @property
    def size(self) -> int:
        """Number of cells."""
        return self.shape[0] * self.shape[1]

    @cached_property
    def places(self) -> np.ndarray:
        """(rows, columns): cell of each place of the mask."""
        return self.rows[:, None] * self.shape[1] + self.columns

    @cached_property
    def _order(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Rows and columns sorted by class; ``None`` where there is only one."""
        return (
            np.argsort(self.rows, kind="stable") if self.shape[0] > 1 else None,
            np.argsort(self.columns, kind="stable") if self.shape[1] > 1 else None,
        )

    def permuted(self, mask: np.ndarray) -> np.ndarray:
        """The mask with rows and columns sorted by class, so that each cell is a rectangle."""
        rows, columns = self._order
        mask = mask if rows is None else mask[rows]
        return mask if columns is None else mask[:, columns]

    def restored(self, permuted: np.ndarray) -> np.ndarray:
        """The inverse of ``permuted``."""
        rows, columns = self._order
        permuted = permuted if rows is None else permuted[np.argsort(rows)]
        return permuted if columns is None else permuted[:, np.argsort(columns)]

    def cells(self) -> Iterator[tuple[slice, slice]]:
        """Place of each cell in the permuted mask."""
        down = np.concatenate([[0], np.cumsum(np.bincount(self.rows, minlength=self.shape[0]))])
        across = np.concatenate([[0], np.cumsum(np.bincount(self.columns, minlength=self.shape[1]))])
        for i in range(self.shape[0]):
            for j in range(self.shape[1]):
                yield slice(down[i], down[i + 1]), slice(across[j], across[j + 1])

    def groups(self, mask: np.ndarray, count: int) -> np.ndarray:
        """Group (0 is the emptiest) of each place that is set, in C order; groups of whole cells, about equal in size."""
        row, column = np.divmod(np.flatnonzero(mask), mask.shape[1])
        cell = self.rows[row] * self.shape[1] + self.columns[column]
        ones = np.bincount(cell, minlength=self.size)
        heights = np.bincount(self.rows, minlength=self.shape[0])
        widths = np.bincount(self.columns, minlength=self.shape[1])
        order = np.argsort((ones << 20) // np.maximum(np.outer(heights, widths).ravel(), 1), kind="stable")
        group = np.empty(self.size, np.int64)
        group[order] = (np.cumsum(ones[order]) - ones[order]) * count // max(len(cell), 1)
        return group[cell]


def choose_grid(mask: np.ndarray, activity: tuple[np.ndarray, np.ndarray] | None) -> tuple[Grid, float, float]:
    """The grid that takes the fewest bits among dyadic numbers of classes (the rows' first, then the columns', then
    the rows' again), the bits of its classes, and of the mask.

    Parameters
    ----------
    mask
        (rows, columns) bool, not empty.
    activity
        (rows,) and (columns,): what classes are made of; ``None``: how full they are, by the arcsine of the root, whose
        standard error is the same everywhere.
    """
    filled = np.count_nonzero(mask, axis=1), np.count_nonzero(mask, axis=0)
    features = activity or tuple(np.arcsin(np.sqrt(count / n)) for count, n in zip(filled, mask.shape[::-1]))
    fine = [_fine_classes(feature, count) for feature, count in zip(features, filled)]
    row, column = np.divmod(np.flatnonzero(mask), mask.shape[1])
    ones = np.bincount(fine[0][row] * CLASSES + fine[1][column], minlength=CLASSES**2).reshape(CLASSES, CLASSES)
    sizes = [np.bincount(classes, minlength=CLASSES) for classes in fine]
    ways = [_merges(size) for size in sizes]
    labels = [[_label_bits(way.T @ size) for way in some] for some, size in zip(ways, sizes)]

    def bits(down: int, across: int) -> float:
        merged, height, width = (
            ways[0][down].T @ ones @ ways[1][across],
            ways[0][down].T @ sizes[0],
            ways[1][across].T @ sizes[1],
        )
        return labels[0][down] + labels[1][across] + cell_bits(merged, np.outer(height, width))

    down = min(range(len(ways[0])), key=lambda way: bits(way, 0))
    across = min(range(len(ways[1])), key=lambda way: bits(down, way))
    down = min(range(len(ways[0])), key=lambda way: bits(way, across)) if across else down
    rows, columns = (some[way].argmax(axis=1)[classes] for some, way, classes in zip(ways, (down, across), fine))
    total, label = bits(down, across), labels[0][down] + labels[1][across]
    return Grid(rows, columns, (ways[0][down].shape[1], ways[1][across].shape[1])), label, total - label


def cell_bits(ones: np.ndarray, totals: np.ndarray) -> float:
    """Bits of a mask with a probability for each cell, and of those probabilities."""
    logs = [x * np.log2(np.maximum(x, 1)) for x in (totals, ones, totals - ones)]
    return float((logs[0] - logs[1] - logs[2]).sum()) + _CELL_BITS * ones.size


def _fine_classes(feature: np.ndarray, filled: np.ndarray) -> np.ndarray:
    some = filled > 0
    if not some.any():
        return np.zeros(len(feature), np.int64)
    low, high = float(feature[some].min()), float(feature[some].max())
    steps = (feature - low) * ((CLASSES - 1) / (high - low)) if high > low else np.zeros(len(feature))
    return np.where(some, 1 + np.minimum(np.maximum(steps, 0).astype(np.int64), CLASSES - 2), 0)


def _merges(sizes: np.ndarray) -> list[np.ndarray]:
    """Ways to merge neighbouring fine classes: (17, classes) indicators, the single class first, no class empty."""
    ways = [np.ones((CLASSES, 1), np.int64)]
    for width in (16, 8, 4, 2, 1):
        label = (np.arange(CLASSES) + width - 1) // width
        used = np.unique(label[sizes > 0])
        if len(used) > ways[-1].shape[1]:
            ways.append((label[:, None] == used).astype(np.int64))
    return ways


def _label_bits(sizes: np.ndarray) -> float:
    return table_bits(sizes) if len(sizes) > 1 else 4.0
