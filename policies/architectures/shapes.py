"""The shape that a policy gives a network: a family and its knobs as plain data, and the network of it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields

from torch import nn

from ..errors import ModelError, PolicyError
from ..policy import Scalar
from . import SHAPED, Knobs

FAMILY = "family"


def knobs_of(shape: Mapping[str, Scalar]) -> Knobs:
    """The knobs, validated.

    Parameters
    ----------
    shape
        ``family``, a key of ``SHAPED``, and values of its knobs; those left out take the family's defaults.

    Raises
    ------
    PolicyError
        Where there is no such family or no network of this shape: a layer without channels, strides that do not divide the
        resolution, an unknown knob.
    """
    family = shape.get(FAMILY)
    if not isinstance(family, str) or family not in SHAPED:
        near = difflib.get_close_matches(str(family), SHAPED, 1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(SHAPED)}"
        raise PolicyError(f"shape: expected the name of a family of networks under 'family'; got {family!r}; {hint}")
    try:
        return SHAPED[family].shape(**{name: value for name, value in shape.items() if name != FAMILY})
    except ModelError as error:
        raise PolicyError(f"shape: no {family} has it: {error}") from error


def canonical(shape: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """The same shape, written one way: defaults left out, so that a knob that a family gets later changes no digest.

    Raises
    ------
    PolicyError
        As ``knobs_of`` does.
    """
    if not shape:
        return {}
    knobs, written = knobs_of(shape), {FAMILY: shape[FAMILY]}
    for field in fields(knobs):
        value = getattr(knobs, field.name)
        if value is not None and value != field.default:
            written[field.name] = float(value) if isinstance(field.default, float) else value
    return dict(sorted(written.items()))


def network_of(shape: Mapping[str, Scalar], num_classes: int, in_channels: int) -> nn.Module:
    """The network of this shape, freshly initialised.

    Raises
    ------
    PolicyError
        As ``knobs_of`` does.
    """
    knobs = knobs_of(shape)
    return SHAPED[str(shape[FAMILY])].network(knobs, num_classes, in_channels)
