"""What a space is: the policies that may be tried, and how a sampler's choices become one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from ..policies.policy import Policy

Choices = dict[str, float | int | str]


def indices(choices: Choices) -> dict[str, int]:
    """The choices as indices into each menu."""
    return {knob: int(index) for knob, index in choices.items()}


class SuggestTrial(Protocol):
    """The three methods of a sampler's trial that a space may use."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str: ...

    def suggest_int(self, name: str, low: int, high: int) -> int: ...

    def suggest_float(self, name: str, low: float, high: float) -> float: ...


class Space(Protocol):
    """Policies that may be tried on one network."""

    def suggest(self, trial: SuggestTrial) -> Policy:
        """The policy of a trial's choices."""
        ...

    def choices(self, policy: Policy) -> Choices | None:
        """The inverse: the choices that give this policy, or ``None`` where none do."""
        ...

    def uniform(self) -> Iterable[Choices]:
        """Choices that treat every layer alike: the baselines every search starts from."""
        ...

    def variants(self, most: int) -> Mapping[str, tuple[Choices, ...]]:
        """For each unit with a choice: its own knobs' settings, each doing something else, ``most`` at most."""
        ...

    def central(self) -> Choices:
        """Choices in the middle of every menu, channels and blocks kept: where a unit is looked at with the others around it."""
        ...

    def menu(self) -> Mapping[str, Sequence[object]]:
        """Each knob's name with its options, in order."""
        ...
