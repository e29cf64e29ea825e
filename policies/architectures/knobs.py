"""Knobs of a family: validated data that says which shape of the network is meant. No weights, no modules."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from torch import nn

from ..errors import ModelError


@dataclass(frozen=True)
class Rule:
    """What values of a knob must be, in words and as a test."""

    expected: str
    holds: Callable[[Any], bool]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


Positive = Annotated[float, Rule("a number above 0", lambda v: _is_number(v) and 0 < v < float("inf"))]
Part = Annotated[float, Rule("a number above 0 and below 1", lambda v: _is_number(v) and 0 < v < 1)]
Ratio = Annotated[float, Rule("a number above 0, at most 1", lambda v: _is_number(v) and 0 < v <= 1)]
Count = Annotated[int, Rule("a whole number of at least 1", lambda v: _is_whole(v) and v >= 1)]
Extra = Annotated[int, Rule("a whole number of at least 0", lambda v: _is_whole(v) and v >= 0)]
Side = Annotated[
    int | None, Rule("a whole number of at least 1, or nothing", lambda v: v is None or (_is_whole(v) and v >= 1))
]


@dataclass(frozen=True, kw_only=True)
class Knobs:
    """What the shape of every family has.

    Parameters
    ----------
    side
        Of the pictures, in pixels.
    resolution
        Side in pixels at which the network works; pictures of another side are scaled to it first (the resolution
        multiplier of 1704.04861, section 3.4). ``None``: the pictures' own.
    downsampling
        Product of all strides, a power of two. Where it is less than the paper's, as small pictures need it, the first
        strides are taken out, the stem's first; a stem that then has none has a 3x3 kernel.

    Raises
    ------
    ModelError
        Where a knob has a value that it cannot have, or the strides do not divide the resolution.
    """

    side: Count = 224
    resolution: Side = None
    downsampling: Count = 32

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for field in fields(self):
            complaint = _complaint(hints[field.name], getattr(self, field.name))
            if complaint is not None:
                raise ModelError(f"{field.name}: {complaint}")
        known = [2**power for power in range(self.strides_in_paper + 1)]
        if self.downsampling not in known:
            raise ModelError(f"downsampling: expected one of {', '.join(map(str, known))}; got {self.downsampling}")
        if self.must_divide and self.pixels % self.downsampling:
            raise ModelError(
                f"resolution: strides of {self.downsampling} in all do not divide {self.pixels} pixels; take a multiple"
                f" of {self.downsampling}, or a downsampling that divides {self.pixels}"
            )

    @classmethod
    def complaint(cls, name: str, value: object) -> str | None:
        """Why a knob cannot have a value, whatever the others have, or ``None``."""
        return _complaint(get_type_hints(cls, include_extras=True)[name], value)

    @property
    def strides_in_paper(self) -> int:
        """At how many places the paper's network has a stride of 2."""
        return 5

    @property
    def pixels(self) -> int:
        """Side at which the network works."""
        return self.side if self.resolution is None else self.resolution

    @property
    def must_divide(self) -> bool:
        """Whether the strides must divide the resolution; not where the paper's network has unpadded layers."""
        return True

    @property
    def strides(self) -> tuple[int, ...]:
        """1 or 2 for each place at which the paper's network has a stride of 2."""
        kept = self.downsampling.bit_length() - 1
        return (1,) * (self.strides_in_paper - kept) + (2,) * kept


@dataclass(frozen=True)
class Family:
    """Networks of one kind, by their knobs.

    Parameters
    ----------
    knobs
        The dataclass of its shape.
    network
        Builds the network from knobs, number of outputs and channels of the picture.
    num_classes
        Outputs where none are asked for.
    """

    knobs: type[Knobs]
    network: Callable[[Any, int, int], nn.Module]
    num_classes: int = 1000

    def __call__(self, num_classes: int | None = None, in_channels: int = 3, **knobs: Any) -> nn.Module:
        """The network, freshly initialised.

        Raises
        ------
        ModelError
            Where a knob is unknown or has a value that it cannot have.
        """
        return self.network(self.shape(**knobs), num_classes or self.num_classes, in_channels)

    def shape(self, **knobs: Any) -> Knobs:
        """The knobs, validated.

        Raises
        ------
        ModelError
            Where one is unknown or has a value that it cannot have.
        """
        for name in knobs:
            self.check_known(name)
        return self.knobs(**knobs)

    def check_known(self, name: str) -> None:
        """Raise ``ModelError`` where the family has no knob of this name."""
        known = [field.name for field in fields(self.knobs)]
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            raise ModelError(f"unknown knob '{name}'; {hint}")


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """Channels times a width multiplier, rounded to the nearest multiple.

    Above ``multiple=1`` the least is one multiple, and a loss of more than a tenth is rounded up, as MobileNet V2 does.

    Raises
    ------
    ModelError
        Where nothing is left of the layer.
    """
    wanted = channels * width
    rounded = int(wanted + multiple / 2) // multiple * multiple
    if multiple > 1:
        rounded = max(multiple, rounded)
        return rounded + multiple if rounded < 0.9 * wanted else rounded
    if rounded < 1:
        raise ModelError(
            f"a width of {width} leaves a layer of {channels} channels empty; take at least {0.5 / channels:.3g}"
        )
    return rounded


def _complaint(hint: Any, value: object) -> str | None:
    expected = _violated(hint, value)
    return None if expected is None else f"expected {expected}; got {value!r}"


def _violated(hint: Any, value: object) -> str | None:
    if get_origin(hint) is Literal:
        # 1 equals True and 1.0.
        fits = any(value == option and type(value) is type(option) for option in get_args(hint))
        return None if fits else f"one of {', '.join(map(str, get_args(hint)))}"
    if hint is bool:
        return None if isinstance(value, bool) else "true or false"
    (rule,) = (extra for extra in get_args(hint) if isinstance(extra, Rule))
    return None if rule.holds(value) else str(rule.expected)
