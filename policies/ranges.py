"""Sets of numbers as short text, such as ``0-3,7``. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

LARGEST = 1_000_000
_RANGE = re.compile(r"(\d{1,7})(?:-(\d{1,7}))?")


def write_ranges(numbers: Iterable[int]) -> str:
    """The text of these numbers, in ascending order."""
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in _runs(numbers))


def read_ranges(text: str) -> tuple[int, ...]:
    """The numbers of a text, in ascending order.

    Raises
    ------
    ValueError
        Where the text is none of ours: expected are numbers below ``LARGEST`` and ranges of them, ascending.
    """
    numbers: list[int] = []
    for part in text.split(","):
        match = _RANGE.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"expected ascending numbers and ranges such as 0-3,7; got {text[:40]!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or (numbers and first <= numbers[-1]) or last >= LARGEST:
            raise ValueError(f"expected ascending numbers below {LARGEST}; got {part.strip()!r} in {text[:40]!r}")
        numbers.extend(range(first, last + 1))
    return tuple(numbers)


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    first = last = -1
    for number in sorted(set(numbers)):
        if first >= 0 and number > last + 1:
            yield first, last
            first = number
        elif first < 0:
            first = number
        last = number
    if first >= 0:
        yield first, last
