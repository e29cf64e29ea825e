"""Sets of numbers as text: short, canonical, refused where they are anything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paretopress.policies.ranges import read_ranges, write_ranges


@given(st.sets(st.integers(0, 200), min_size=1))
def test_what_is_written_is_read_again(numbers):
    assert read_ranges(write_ranges(numbers)) == tuple(sorted(numbers))


def test_runs_are_written_as_ranges():
    assert write_ranges([7, 0, 1, 2, 9, 10]) == "0-2,7,9-10"


@pytest.mark.parametrize("text", ["", "3-1", "1,1", "5,2", "0-9999999", "-1", "1-2-3", "a", "0-999999999"])
def test_what_is_no_ascending_range_is_refused(text):
    with pytest.raises(ValueError, match="expected ascending numbers"):
        read_ranges(text)
