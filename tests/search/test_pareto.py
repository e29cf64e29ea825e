from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paretopress.search.pareto import certain_front, crowding, dominates, front, hypervolume, knee, ranks, select

SIDE = 5


@st.composite
def populations(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """(n, m) values and (n,) violations, on a coarse grid so that ties of every kind occur."""
    n, m = draw(st.integers(1, 14)), draw(st.integers(1, 4))
    values = draw(st.lists(st.lists(st.integers(0, SIDE - 1), min_size=m, max_size=m), min_size=n, max_size=n))
    violations = draw(st.lists(st.sampled_from([-1.0, 0.0, 0.0, 0.5, 1.0]), min_size=n, max_size=n))
    return np.array(values, float), np.array(violations)


def beats(a: np.ndarray, b: np.ndarray, miss_a: float, miss_b: float) -> bool:
    """Constrained dominance, case by case as Deb (2002) has it."""
    if miss_a <= 0 < miss_b:
        return True
    if miss_a > 0 and (miss_b <= 0 or miss_a != miss_b):
        return bool(miss_b > 0 and miss_a < miss_b)
    return bool(all(x <= y for x, y in zip(a, b)) and any(x < y for x, y in zip(a, b)))


def peeled(values: np.ndarray, violations: np.ndarray) -> list[int]:
    left, rank, out = set(range(len(values))), 0, [-1] * len(values)
    while left:
        beaten = {
            i for i, j in itertools.permutations(left, 2) if beats(values[j], values[i], violations[j], violations[i])
        }
        for i in left - beaten:
            out[i] = rank
        left, rank = beaten, rank + 1
    return out


@given(populations())
def test_dominance_is_that_of_the_definition(population: tuple[np.ndarray, np.ndarray]) -> None:
    values, violations = population
    found = dominates(values, violations)
    for i, j in itertools.product(range(len(values)), repeat=2):
        assert found[i, j] == beats(values[i], values[j], violations[i], violations[j])


@given(populations())
def test_ranks_are_the_layers_that_peel_off_one_by_one(population: tuple[np.ndarray, np.ndarray]) -> None:
    assert ranks(*population).tolist() == peeled(*population)


@given(populations())
def test_the_front_holds_what_nothing_beats_in_the_order_of_the_first_objective(
    population: tuple[np.ndarray, np.ndarray],
) -> None:
    values, violations = population
    found = front(values, violations)
    assert sorted(found.tolist()) == [i for i, rank in enumerate(peeled(values, violations)) if rank == 0]
    assert (np.diff(values[found, 0]) >= 0).all()


def test_of_points_that_all_miss_the_limits_the_nearest_are_the_front() -> None:
    values = np.array([[1.0, 1.0], [5.0, 5.0], [4.0, 6.0]])
    assert front(values, np.array([0.9, 0.1, 0.1])).tolist() == [2, 1]


def test_the_front_of_nothing_is_empty() -> None:
    assert front(np.zeros((0, 2)), np.zeros(0)).tolist() == []


@given(populations(), st.integers(1, 16))
def test_selection_takes_whole_ranks_and_thins_the_last(population: tuple[np.ndarray, np.ndarray], count: int) -> None:
    values, violations = population
    chosen = select(values, violations, count).tolist()
    order = ranks(values, violations)
    assert len(chosen) == len(set(chosen)) <= count
    assert (np.diff(order[chosen]) >= 0).all()
    last = order[chosen[-1]]
    for rank in range(last + 1):
        taken = {tuple(values[i]) for i in chosen if order[i] == rank}
        there = {tuple(value) for value in values[order == rank]}
        assert taken == there if rank < last else taken <= there
    distinct = sum(len({tuple(value) for value in values[order == rank]}) for rank in range(order.max() + 1))
    assert len(chosen) == min(count, distinct), "a twin in its rank takes no place"


def test_selection_keeps_the_ends_and_leaves_out_the_most_crowded() -> None:
    values = np.array([[0.0, 10.0], [4.9, 5.1], [5.0, 5.0], [9.0, 2.0], [10.0, 0.0]])
    assert sorted(select(values, np.zeros(5), 4).tolist()) in ([0, 1, 3, 4], [0, 2, 3, 4])
    assert sorted(select(values, np.zeros(5), 2).tolist()) == [0, 4]


def test_crowding_is_the_way_round_a_point_by_its_neighbours() -> None:
    values = np.array([[0.0, 8.0], [1.0, 4.0], [4.0, 0.0]])
    assert crowding(values).tolist() == [np.inf, 4 / 4 + 8 / 8, np.inf]


def test_the_knee_lies_nearest_to_the_ideal_point_whatever_the_units() -> None:
    values = np.array([[0.0, 100.0], [1.0, 20.0], [2.0, 15.0], [10.0, 0.0]])
    assert knee(values) == 1
    assert knee(values * [1000.0, 1e-6] + [7.0, -3.0]) == 1


def test_the_knee_of_one_point_and_of_equal_points_is_the_first() -> None:
    assert knee(np.array([[3.0, 4.0]])) == 0
    assert knee(np.array([[3.0, 4.0], [3.0, 4.0]])) == 0


@settings(max_examples=60)
@given(populations(), st.integers(1, SIDE))
def test_hypervolume_counts_the_unit_cells_that_are_dominated(
    population: tuple[np.ndarray, np.ndarray], side: int
) -> None:
    values, _ = population
    cells = itertools.product(range(side), repeat=values.shape[1])
    covered = sum(any((value <= cell).all() for value in values) for cell in cells)
    assert hypervolume(values, np.full(values.shape[1], float(side))) == pytest.approx(covered)


def test_hypervolume_agrees_with_random_sampling_on_points_off_the_grid() -> None:
    rng = np.random.default_rng(0)
    values, reference = rng.random((20, 3)), np.array([1.0, 0.9, 0.8])
    samples = rng.random((100_000, 3)) * reference
    covered = (values[:, None] <= samples).all(-1).any(0).mean() * reference.prod()
    assert hypervolume(values, reference) == pytest.approx(covered, abs=0.005)


def test_points_at_or_beyond_the_reference_have_no_volume() -> None:
    assert hypervolume(np.array([[1.0, 0.0], [2.0, 2.0]]), np.array([1.0, 1.0])) == 0.0


@settings(max_examples=200, deadline=None)
@given(populations(), st.data())
def test_a_front_leaves_out_only_what_is_dominated_by_one_that_is_as_certain(
    population: tuple[np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    values, violations = population
    n = len(values)
    excesses = np.array(data.draw(st.lists(st.sampled_from([-0.5, 0.0, 0.2, 0.7]), min_size=n, max_size=n)))
    is_certain = (violations <= 0) & (excesses <= 0)
    members = certain_front(values, violations, excesses).tolist()
    assert members and len(set(members)) == len(members)
    above = dominates(values, violations)
    for i in range(n):
        surer = [j for j in range(n) if above[j, i] and (is_certain[j] or not is_certain[i])]
        assert (i in members) == (not surer)


def test_where_no_point_is_certain_the_surest_stands_first() -> None:
    values = np.array([[1.0, 9.0], [2.0, 5.0], [3.0, 1.0]])
    assert certain_front(values, np.zeros(3), np.array([0.5, 0.1, 0.3])).tolist() == [1, 2, 0]
    assert certain_front(values, np.array([0.2, 0.2, 0.4]), np.array([0.5, 0.3, 0.9])).tolist() == [1, 0]
    # One that is certain is enough for the order by error, and stays beside a better one that is not.
    assert certain_front(np.array([[2.0, 2.0], [1.0, 1.0]]), np.zeros(2), np.array([-0.1, 0.1])).tolist() == [1, 0]
