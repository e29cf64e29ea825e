"""The shape of a network as a policy: width, resolution, squeeze ratio and whatever else its family has for knobs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields

from ..policies.architectures import SHAPED, Family
from ..policies.architectures.shapes import FAMILY, canonical
from ..policies.errors import ConfigError, ModelError, PolicyError
from ..policies.policy import Policy, Scalar
from .base import Choices, SuggestTrial

KEY = "space.shape.menus"
"""Where a configuration has the menus, for complaints."""


@dataclass(frozen=True)
class ShapeSpace:
    """Menus of a family's knobs. A policy of it has a shape and no steps.

    A combination that no network has, such as a resolution that the strides do not divide, is a policy like any other:
    ``make_plan`` refuses it with the reason, so that a search records it and goes on.

    Parameters
    ----------
    family
        A key of ``architectures.SHAPED``.
    menus
        Options of each knob, in order, so that samplers may learn from neighbours.
    fixed
        Knobs that all shapes have alike, as the side of the pictures.

    Raises
    ------
    ConfigError
        Where a knob is unknown, a menu is empty, repeats an option or has one that its knob cannot have, a knob is both fixed
        and chosen, none is a choice, or no combination is a network.
    """

    family: str
    menus: Mapping[str, Sequence[Scalar]]
    fixed: Mapping[str, Scalar] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for knob, options in self.menus.items():
            if not options or len(set(options)) < len(options):
                raise ConfigError(f"{KEY}.{knob}: expected a menu of different options; got {list(options)}")
            if knob in self.fixed:
                raise ConfigError(f"{KEY}.{knob}: it has a menu and is fixed to {self.fixed[knob]!r}; keep one")
            if self.family in SHAPED:
                _check_options(SHAPED[self.family], knob, options)
        if not any(self._complaint(chosen) is None for chosen in self.all()):
            raise ConfigError(f"{KEY}: no combination is a network; the first: {self._complaint(next(self.all()))}")
        if not self.menu():
            raise ConfigError(f"{KEY}: every menu has one option; give one knob of the family two or more")

    def menu(self) -> dict[str, Sequence[object]]:
        """Knobs that are a real choice."""
        return {knob: options for knob, options in self.menus.items() if len(options) > 1}

    def suggest(self, trial: SuggestTrial) -> Policy:
        """Ask for an index into each menu."""
        return self.policy({knob: trial.suggest_int(knob, 0, len(o) - 1) for knob, o in self.menu().items()})

    def policy(self, chosen: Mapping[str, float | int | str]) -> Policy:
        """The policy of the choices; a knob that is not named takes its menu's first option."""
        knobs = {knob: options[int(chosen.get(knob, 0))] for knob, options in self.menus.items()}
        shape = {FAMILY: self.family, **self.fixed, **knobs}
        try:
            return Policy(shape=canonical(shape))
        except PolicyError:
            return Policy(shape=shape)

    def choices(self, policy: Policy) -> Choices | None:
        """The choices that give this policy, or ``None``."""
        if policy.layers or policy.shape.get(FAMILY) != self.family:
            return None
        defaults = {field.name: field.default for field in fields(SHAPED[self.family].knobs)}
        chosen: Choices = {}
        for knob, options in self.menu().items():
            value = policy.shape.get(knob, defaults.get(knob))
            if value not in options:
                return None
            chosen[knob] = list(options).index(value)
        return chosen if self.policy(chosen) == policy else None

    def uniform(self) -> Iterator[Choices]:
        """All knobs at the same place of their menus, from first to last, then one knob at a time with the others first."""
        menu = self.menu()
        longest = max(len(options) for options in menu.values())
        together: Iterator[Choices] = (
            {knob: round(step * (len(options) - 1) / (longest - 1)) for knob, options in menu.items()}
            for step in range(longest)
        )
        first: Choices = dict.fromkeys(menu, 0)
        alone: Iterator[Choices] = (first | {knob: i} for knob, options in menu.items() for i in range(len(options)))
        seen: set[tuple[object, ...]] = set()
        for chosen in itertools.chain(together, alone):
            place = tuple(chosen.values())
            if place not in seen and self._complaint(chosen) is None:
                seen.add(place)
                yield chosen

    def variants(self, most: int) -> dict[str, tuple[Choices, ...]]:
        """For each knob, at most ``most`` of its settings, spread over the menu."""
        found: dict[str, tuple[Choices, ...]] = {}
        for knob, options in self.menu().items():
            count = min(most, len(options))
            places = {round(i * (len(options) - 1) / max(1, count - 1)) for i in range(count)}
            found[knob] = tuple({knob: place} for place in sorted(places))
        return found

    def central(self) -> Choices:
        """The middle of every menu."""
        return {knob: (len(options) - 1) // 2 for knob, options in self.menu().items()}

    def shapes(self) -> Iterator[dict[str, Scalar]]:
        """The shape of every combination that is a network."""
        for chosen in self.all():
            if self._complaint(chosen) is None:
                yield dict(self.policy(chosen).shape)

    @property
    def size(self) -> int:
        """How many combinations there are, those that are no network among them."""
        return math.prod(len(options) for options in self.menu().values())

    def all(self) -> Iterator[Choices]:
        """Every combination, those that are no network among them."""
        menu = self.menu()
        for places in itertools.product(*(range(len(options)) for options in menu.values())):
            yield dict(zip(menu, places))

    def _complaint(self, chosen: Choices) -> str | None:
        try:
            canonical(self.policy(chosen).shape)
        except PolicyError as error:
            return str(error)
        return None


def _check_options(family: Family, knob: str, options: Sequence[Scalar]) -> None:
    try:
        family.check_known(knob)
    except ModelError as error:
        raise ConfigError(f"{KEY}: {error}") from error
    for option in options:
        complaint = family.knobs.complaint(knob, option)
        if complaint is not None:
            raise ConfigError(f"{KEY}.{knob}: {complaint}")
