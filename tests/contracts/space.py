"""What every space must keep: a test runs each check in ``CONTRACT`` on a ``Case``."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from paretopress.policies.graph import ModelGraph
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy, Step
from paretopress.spaces.base import Choices, Space

TRIALS = 25


@dataclass(frozen=True)
class Case:
    """A space and the network that its policies are for, or where they set its shape, what gives it."""

    space: Space
    graph: ModelGraph | Callable[[Policy], ModelGraph]

    def graph_of(self, policy: Policy) -> ModelGraph:
        return self.graph if isinstance(self.graph, ModelGraph) else self.graph(policy)


@dataclass
class RandomTrial:
    """A sampler's trial that answers by chance and notes what it was asked."""

    seed: int
    asked: Choices = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        return str(self._note(name, self._random.choice(choices)))

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return int(self._note(name, self._random.randint(low, high)))

    def suggest_float(self, name: str, low: float, high: float) -> float:
        return float(self._note(name, self._random.uniform(low, high)))

    def _note(self, name: str, value: float | int | str) -> float | int | str:
        assert name not in self.asked, f"'{name}' is asked twice"
        self.asked[name] = value
        return value


@dataclass(frozen=True)
class FixedTrial:
    """A sampler's trial that answers with given choices."""

    given: Mapping[str, float | int | str]

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        assert self.given[name] in choices
        return str(self.given[name])

    def suggest_int(self, name: str, low: int, high: int) -> int:
        value = self.given[name]
        assert isinstance(value, int)
        assert low <= value <= high
        return value

    def suggest_float(self, name: str, low: float, high: float) -> float:
        value = float(self.given[name])
        assert low <= value <= high
        return value


def suggested(case: Case) -> list[tuple[Choices, Policy]]:
    trials = [RandomTrial(seed) for seed in range(TRIALS)]
    policies = [case.space.suggest(trial) for trial in trials]
    return [(trial.asked, policy) for trial, policy in zip(trials, policies)]


def check_every_suggested_policy_fits_the_network(case: Case) -> None:
    for _, policy in suggested(case):
        make_plan(policy, case.graph_of(policy))


def check_suggestions_cover_more_than_one_policy(case: Case) -> None:
    assert len({policy.digest for _, policy in suggested(case)}) > 1


def check_a_trial_is_asked_the_knobs_of_the_menu_and_no_others(case: Case) -> None:
    for asked, _ in suggested(case):
        assert list(asked) == list(case.space.menu())


def check_the_same_choices_give_the_same_policy(case: Case) -> None:
    for asked, policy in suggested(case):
        assert case.space.suggest(FixedTrial(asked)) == policy


def check_choices_are_the_inverse_of_suggest(case: Case) -> None:
    for _, policy in suggested(case):
        found = case.space.choices(policy)
        assert found is not None
        assert set(found) <= set(case.space.menu())
        assert case.space.suggest(FixedTrial({**dict.fromkeys(case.space.menu(), 0), **found})) == policy


def check_a_policy_of_another_network_has_no_choices(case: Case) -> None:
    assert case.space.choices(Policy({"no such layer": (Step.of("quantize", bits=8),)})) is None


def check_uniform_choices_are_whole_valid_and_distinct(case: Case) -> None:
    uniform = [dict(choices) for choices in case.space.uniform()]
    assert len(uniform) > 1
    assert len({tuple(sorted(choices.items())) for choices in uniform}) == len(uniform)
    for choices in uniform:
        assert set(choices) == set(case.space.menu())
        policy = case.space.suggest(FixedTrial(choices))
        make_plan(policy, case.graph_of(policy))


def check_every_knob_is_a_choice_that_changes_some_policy(case: Case) -> None:
    knobs = case.space.menu()
    neutral = dict.fromkeys(knobs, 0)
    for knob, options in knobs.items():
        policies = {case.space.suggest(FixedTrial({**neutral, knob: i})).digest for i in range(len(options))}
        assert len(policies) > 1, knob


CONTRACT: tuple[Callable[[Case], None], ...] = (
    check_every_suggested_policy_fits_the_network,
    check_suggestions_cover_more_than_one_policy,
    check_a_trial_is_asked_the_knobs_of_the_menu_and_no_others,
    check_the_same_choices_give_the_same_policy,
    check_choices_are_the_inverse_of_suggest,
    check_a_policy_of_another_network_has_no_choices,
    check_uniform_choices_are_whole_valid_and_distinct,
    check_every_knob_is_a_choice_that_changes_some_policy,
)
