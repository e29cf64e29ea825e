"""Probability tables: whatever the histogram, the file can state it."""

import numpy as np
import pytest
from paretopress.policies.coding import tables
from paretopress.policies.coding.stream import Reader, Writer
from paretopress.policies.coding.tables import Table


def _read_again(table: Table) -> Table:
    writer = Writer()
    table.write(writer)
    return Table.read(Reader(writer.bytes()), len(table.levels))


def _steep_counts(steps: int) -> np.ndarray:
    """Counts that fall about as a table's middle laws expect, but for one drop of twenty octaves from the largest."""
    gentle = np.cumsum(np.random.default_rng(0).integers(-5, 5, steps)) / 2
    gentle += 8 - gentle.min()
    return np.array([2**36, 1, *(2.0 ** (36 - gentle)).astype(np.int64)])


@pytest.mark.parametrize("steps", [1, 5, 10, 20, 40, 80])
def test_a_table_with_the_steepest_drop_is_read_as_it_was_written(steps):
    table = Table.fit(_steep_counts(steps), steps + 2)
    assert table.precision == 4

    again = _read_again(table)

    np.testing.assert_array_equal(again.levels, table.levels)
    assert again.precision == table.precision


@pytest.mark.parametrize("precision", range(5))
def test_every_difference_that_has_a_price_can_be_coded(precision):
    for spread, bits in enumerate(tables._LOG_GEOMETRIC[precision]):
        law, symbols = tables._law(spread, precision), np.flatnonzero(np.isfinite(bits))
        writer = Writer()
        writer.symbols(symbols, law)
        np.testing.assert_array_equal(Reader(writer.bytes()).symbols(len(symbols), law), symbols)


@pytest.mark.parametrize("precision", range(5))
def test_every_difference_has_a_price_in_some_law(precision):
    assert np.isfinite(tables._LOG_GEOMETRIC[precision]).any(axis=0).all()
