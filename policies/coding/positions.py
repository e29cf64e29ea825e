"""Where a matrix is zero, and which symbols stand in the other places.

A mask (rows, columns) is coded by the cheapest of three ways:

- *cells*: a probability for each cell of a ``Grid``. With a single cell it is the plain entropy code of the mask, and
  costs what "zero as one more symbol" costs; a raw bitmask is never cheaper;
- *neighbours*: a probability for each cell and number of set neighbours, one column and ``lag`` columns before, in the same
  row. Filters on pictures keep neighbouring pixels together;
- *gaps*: the relative indices of 1510.00149, section 2, through the integer coder.

With Huffman codes a place takes a bit at least, whatever its probability, so there the three ways are a bitmask, and gaps
along rows (compressed sparse rows) or along columns (compressed sparse columns); the one of fewest bits is taken.

The symbols in the places that are set are coded in groups of cells that are about equally full: where few weights were
kept those are small ones.
"""

from __future__ import annotations

from math import log2

import numpy as np

from ..errors import FormatError
from .grid import CLASSES, Grid, cell_bits, choose_grid
from .stream import Reader, Writer
from .symbols import Plan, plan_ints, read_ints, write_ints
from .tables import Flags, flag_top, table_bits

_CELLS, _NEIGHBOURS, _GAPS = range(3)
_BITMASK, _COLUMN_GAPS = _CELLS, _NEIGHBOURS
"""What the first two mean with Huffman codes."""
_COUNTS = 3
"""None, one or both neighbours are set."""

_GROUPS = 4
"""Groups of cells are 2^0 to 2^3."""

_LAGS, _LAG_SAMPLE, _NEIGHBOUR_LIMIT = 48, 1 << 16, 1 << 23
_WORTH, _LAG_BITS = 0.98, 7
"""Neighbours are read column by column, so they must save something."""


def write_mask(writer: Writer, mask: np.ndarray, activity: tuple[np.ndarray, np.ndarray] | None = None) -> Grid | None:
    """Write a mask.

    Parameters
    ----------
    mask
        (rows, columns) bool, not empty; the reader must know the shape.
    activity
        (rows,) and (columns,): what the classes are made of, larger where weights are larger; ``None``: how full they are.

    Returns
    -------
    Grid | None
        What ``write_grouped`` needs; ``None`` where gaps were cheapest, and with Huffman codes.
    """
    if writer.coder == "huffman":
        _write_plainly(writer, mask)
        return None
    grid, labels, cells = choose_grid(mask, activity)
    lag, near = _best_lag(mask, grid)
    gaps = _plan_gaps(mask, labels + min(cells, near))
    if gaps is not None:
        writer.choice(_GAPS, 3)
        writer.number(len(gaps[0]))
        write_ints(writer, *gaps)
        return None
    lag = lag if near + _LAG_BITS < _WORTH * cells else 0
    writer.choice(_NEIGHBOURS if lag else _CELLS, 3)
    for classes, size in zip((grid.rows, grid.columns), grid.shape):
        writer.choice(size - 1, CLASSES)
        write_ints(writer, classes, size - 1)
    if lag:
        _write_neighbours(writer, mask, grid, lag)
    else:
        _write_cells(writer, mask, grid)
    return grid


def read_mask(reader: Reader, rows: int, columns: int) -> tuple[np.ndarray, Grid | None]:
    """The mask (rows, columns) bool and its grid.

    Raises
    ------
    FormatError
        Where the stream is not one that ``write_mask`` writes.
    """
    if reader.coder == "huffman":
        return _read_plainly(reader, rows, columns), None
    way = reader.choice(3)
    if way == _GAPS:
        return _read_gaps(reader, rows * columns).reshape(rows, columns), None
    height = reader.choice(CLASSES) + 1
    row_class = read_ints(reader, rows, height - 1)
    width = reader.choice(CLASSES) + 1
    grid = Grid(row_class, read_ints(reader, columns, width - 1), (height, width))
    return (_read_neighbours if way == _NEIGHBOURS else _read_cells)(reader, grid), grid


def write_grouped(writer: Writer, symbols: np.ndarray, top: int, mask: np.ndarray, grid: Grid | None) -> None:
    """Write the symbols (count of True,) in ``[0, top]`` that stand where the mask is set, in C order."""
    if grid is None or grid.size == 1 or top == 0:
        write_ints(writer, symbols, top)
        return
    finest = 1 << (_GROUPS - 1)
    group = grid.groups(mask, finest)
    histogram = np.bincount(group * (top + 1) + symbols, minlength=finest * (top + 1)).reshape(finest, top + 1)
    prices = [
        sum(table_bits(part) for part in histogram.reshape(1 << power, -1, top + 1).sum(axis=1))
        for power in range(_GROUPS)
    ]
    power = int(np.argmin(prices))
    writer.choice(power, _GROUPS)
    group >>= _GROUPS - 1 - power
    for index in range(1 << power):
        write_ints(writer, symbols[group == index] if power else symbols, top)


def read_grouped(reader: Reader, top: int, mask: np.ndarray, grid: Grid | None) -> np.ndarray:
    """(count of True,) what ``write_grouped`` wrote."""
    count = int(np.count_nonzero(mask))
    if grid is None or grid.size == 1 or top == 0:
        return read_ints(reader, count, top)
    power = reader.choice(_GROUPS)
    group = grid.groups(mask, 1 << (_GROUPS - 1)) >> (_GROUPS - 1 - power)
    symbols = np.zeros(count, np.int64)
    for index in range(1 << power):
        chosen = group == index
        symbols[chosen] = read_ints(reader, int(np.count_nonzero(chosen)), top)
    return symbols


def _write_cells(writer: Writer, mask: np.ndarray, grid: Grid) -> None:
    permuted = grid.permuted(mask)
    cells = [permuted[rows, columns].ravel() for rows, columns in grid.cells()]
    flags = Flags.fit(np.array([np.count_nonzero(cell) for cell in cells]), np.array([cell.size for cell in cells]))
    _write_flags(writer, flags)
    for cell, weights in zip(cells, flags.weights()):
        writer.symbols(cell, weights)


def _read_cells(reader: Reader, grid: Grid) -> np.ndarray:
    flags = _read_flags(reader, grid.size)
    permuted = np.zeros((len(grid.rows), len(grid.columns)), bool)
    for (rows, columns), weights in zip(grid.cells(), flags.weights()):
        cell = permuted[rows, columns]
        permuted[rows, columns] = reader.symbols(cell.size, weights).reshape(cell.shape)
    return grid.restored(permuted)


def _write_flags(writer: Writer, flags: Flags) -> None:
    writer.choice(flags.coarse, 4)
    write_ints(writer, flags.levels, flags.top)


def _read_flags(reader: Reader, cells: int) -> Flags:
    coarse = reader.choice(4)
    return Flags(read_ints(reader, cells, flag_top(coarse)), coarse)


def _best_lag(mask: np.ndarray, grid: Grid) -> tuple[int, float]:
    """The lag after which columns are most alike again, and the bits of the mask by neighbours; infinity where a sample of
    rows says that they are of no use.
    """
    rows, columns = mask.shape
    if columns < 3 or not 16 < np.count_nonzero(mask) <= mask.size // 2 or mask.size > _NEIGHBOUR_LIMIT:
        return 0, np.inf
    chosen = np.arange(0, rows, -(-mask.size // _LAG_SAMPLE))
    sample, part = mask[chosen], Grid(grid.rows[chosen], grid.columns, grid.shape)
    full = sample.mean(axis=0)
    lags = range(2, min(_LAGS, columns))
    alike = [
        np.count_nonzero(sample[:, lag:] & sample[:, :-lag]) - len(sample) * full[lag:] @ full[:-lag] for lag in lags
    ]
    peak = np.diff(alike, prepend=np.inf, append=-np.inf)
    lag = lags[int(np.argmax(np.where((peak[:-1] > 0) & (peak[1:] <= 0), alike, -np.inf)))]
    ones, totals = _context_counts(sample, part, lag)
    plain = cell_bits(ones.reshape(-1, _COUNTS).sum(axis=1), totals.reshape(-1, _COUNTS).sum(axis=1))
    if cell_bits(ones, totals) - 14 * grid.size > _WORTH * plain:
        return lag, np.inf
    return lag, cell_bits(*_context_counts(mask, grid, lag))


def _context_counts(mask: np.ndarray, grid: Grid, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Ones and places in each cell by number of neighbours set, (cells * 3,) each."""
    contexts = grid.places * _COUNTS + _neighbours(mask, lag)
    totals = np.bincount(contexts.ravel(), minlength=grid.size * _COUNTS)
    return np.bincount(contexts[mask], minlength=len(totals)), totals


def _neighbours(mask: np.ndarray, lag: int) -> np.ndarray:
    """(rows, columns) number of set places one column and ``lag`` columns before."""
    count = np.zeros(mask.shape, np.uint8)
    count[:, 1:] += mask[:, :-1]
    count[:, lag:] += mask[:, :-lag]
    return count


def _write_neighbours(writer: Writer, mask: np.ndarray, grid: Grid, lag: int) -> None:
    """Column after column, from the top down."""
    contexts = grid.places * _COUNTS + _neighbours(mask, lag)
    flags = Flags.fit(*_context_counts(mask, grid, lag))
    writer.choice(lag - 2, _LAGS)
    _write_flags(writer, flags)
    writer.flags(mask.T.ravel(), flags.weights()[contexts.T.ravel()])


def _read_neighbours(reader: Reader, grid: Grid) -> np.ndarray:
    lag = reader.choice(_LAGS) + 2
    flags = _read_flags(reader, grid.size * _COUNTS)
    weights = flags.weights().astype(np.float32).reshape(grid.size, _COUNTS, 2)
    columns, rows = len(grid.columns), len(grid.rows)
    mask = np.zeros((columns + lag, rows), np.int8)
    base = grid.rows * grid.shape[1]
    for column in range(columns):
        count = mask[column + lag - 1] + mask[column]
        mask[column + lag] = reader.flags(weights[base + grid.columns[column], count])
    return np.ascontiguousarray(mask[lag:].T).astype(bool)


def _write_plainly(writer: Writer, mask: np.ndarray) -> None:
    """The shortest of a bitmask, gaps along columns and gaps along rows."""
    ways = [Writer("huffman") for _ in range(3)]
    ways[_BITMASK].uniform(mask.ravel(), 2)
    for way, flat in ((_COLUMN_GAPS, mask.T.ravel()), (_GAPS, mask.ravel())):
        gaps = np.diff(np.flatnonzero(flat), prepend=-1) - 1
        ways[way].number(len(gaps))
        write_ints(ways[way], gaps)
    best = min(range(3), key=lambda way: ways[way].huffman_bits())
    writer.choice(best, 3)
    writer.extend(ways[best])


def _read_plainly(reader: Reader, rows: int, columns: int) -> np.ndarray:
    way = reader.choice(3)
    if way == _BITMASK:
        return reader.uniform(rows * columns, 2).astype(bool).reshape(rows, columns)
    flat = _read_gaps(reader, rows * columns)
    return flat.reshape(rows, columns) if way == _GAPS else np.ascontiguousarray(flat.reshape(columns, rows).T)


def _plan_gaps(mask: np.ndarray, bits: float) -> tuple[np.ndarray, None, Plan] | None:
    """Gaps and how to code them, where that takes fewer than so many bits."""
    places = np.flatnonzero(mask)
    if not 0 < len(places) <= mask.size // 2:
        return None
    gaps = np.diff(places, prepend=-1) - 1
    plan = plan_ints(gaps)
    return (gaps, None, plan) if plan.bits + 5 + log2(len(places) + 1) < bits else None


def _read_gaps(reader: Reader, size: int) -> np.ndarray:
    count = reader.number(size, "a count of weights kept")
    places = np.cumsum(read_ints(reader, count).astype(np.int64) + 1) - 1
    if count and places[-1] >= size:
        raise FormatError(f"a weight stands at place {places[-1]} of {size}; the file is damaged")
    mask = np.zeros(size, bool)
    mask[places] = True
    return mask
