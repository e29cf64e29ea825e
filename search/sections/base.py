"""What all sections are made of."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ...evaluators.models import FUNCTION
from ...policies.architectures import FAMILIES

SOURCES = ("timm", "torchvision", "family")

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the configuration: immutable, unknown keys refused, and numbers that are none or have no end."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown name: the nearest known one, or all."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(known)}"


def _network_name(name: str) -> str:
    source, _, rest = name.partition(":")
    if not rest or (source not in SOURCES and not FUNCTION.fullmatch(name)):
        raise ValueError(
            f"a network is timm:NAME, torchvision:NAME, family:NAME or package.module:function; got '{name}'"
        )
    if source == "family" and rest not in FAMILIES:
        raise ValueError(f"family has no network '{rest}'{nearest(rest, FAMILIES)}")
    return name


NetworkName = Annotated[str, AfterValidator(_network_name)]
