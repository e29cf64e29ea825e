from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from paretopress.policies.errors import SearchError
from paretopress.search.families import family, spread_multipliers, sweep
from paretopress.search.solve import Infeasible, exact, within
from paretopress.search.table import Table, undominated
from scipy.optimize import linprog

NAMES = ("kl", "stored_bytes", "latency_ratio")
NO = np.inf


def table_of(costs: np.ndarray, offsets: np.ndarray | None = None) -> Table:
    count, _, objectives = np.shape(costs)
    offsets = np.zeros(objectives) if offsets is None else offsets
    return Table(tuple(f"layer{i}" for i in range(count)), NAMES[:objectives], np.asarray(costs, float), offsets)


@st.composite
def tables(draw: st.DrawFn, most_units: int = 5, most_variants: int = 5) -> Table:
    """Tables with padded units, and costs on a coarse grid (ties of every kind) or off it (rounding)."""
    units, variants = draw(st.integers(1, most_units)), draw(st.integers(1, most_variants))
    objectives = draw(st.integers(2, 3))
    shape = (units, variants, objectives)
    grid = arrays.arrays(float, shape, elements=st.integers(0, 9).map(float))
    seeds = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).exponential(size=shape))
    costs = draw(st.one_of(grid, seeds)) * draw(st.sampled_from([1.0, 1000.0, 1e-4]))
    for unit, there in enumerate(draw(st.lists(st.integers(1, variants), min_size=units, max_size=units))):
        costs[unit, there:] = np.inf
    return table_of(costs, np.array(draw(st.sampled_from([[0.0, 0.0, 0.0], [0.0, 7.0, 0.25]])))[:objectives])


def every_policy(table: Table) -> np.ndarray:
    return np.array(list(itertools.product(*(np.flatnonzero(row) for row in table.valid))))


@st.composite
def bounded(draw: st.DrawFn) -> tuple[Table, np.ndarray]:
    """A table and bounds on up to all objectives: what some policy costs, a little less, or none."""
    table = draw(tables())
    totals = table.totals(every_policy(table))
    bounds = np.full(len(table.objectives), np.inf)
    for j in range(len(bounds)):
        bound = totals[draw(st.integers(0, len(totals) - 1)), j]
        least = totals[:, j].min()
        bounds[j] = draw(st.sampled_from([np.nan, np.inf])) if draw(st.integers(0, 3)) == 0 else bound
        bounds[j] = max(least, np.nextafter(bound, -1)) if draw(st.booleans()) and np.isfinite(bounds[j]) else bounds[j]
    return table, bounds


def least_damage(table: Table, bounds: np.ndarray) -> float:
    """By trying all; ``inf`` where none fits."""
    totals = table.totals(every_policy(table))
    fits = (totals <= np.where(np.isnan(bounds), np.inf, bounds)).all(1)
    return float(totals[fits, 0].min(initial=np.inf))


def relaxed_damage(table: Table, bounds: np.ndarray) -> float:
    """Optimum of the linear relaxation, which is the greatest Lagrangian bound."""
    unit, variant = np.nonzero(table.valid)
    columns = table.costs[unit, variant]
    rows = np.flatnonzero(np.isfinite(bounds))
    scale = columns.max(0) + (columns.max(0) == 0)
    usage = {"A_ub": columns[:, rows].T / scale[rows, None], "b_ub": (bounds - table.offsets)[rows] / scale[rows]}
    one_each = (unit == np.arange(len(table.units))[:, None]).astype(float)
    solved = linprog(
        columns[:, 0] / scale[0], **(usage if len(rows) else {}), A_eq=one_each, b_eq=np.ones(len(one_each))
    )
    assert solved.status == 0
    return float(solved.fun * scale[0] + table.offsets[0])


def is_dominated(totals: np.ndarray, by: np.ndarray) -> np.ndarray:
    return ((by[:, None] <= totals).all(-1) & (by[:, None] < totals).any(-1)).any(0)


def supported(totals: np.ndarray) -> np.ndarray:
    """Points (n, M) that are the only best ones for some weights, by a linear program each."""
    points = np.unique(totals, axis=0)
    points = points[~is_dominated(points, points)]
    scaled = (points - points.min(0)) / np.where(np.ptp(points, axis=0) > 0, np.ptp(points, axis=0), 1)
    kept = []
    for i, point in enumerate(scaled):
        others = np.delete(scaled, i, 0)
        width = scaled.shape[1]
        margin = linprog(
            np.append(np.zeros(width), -1.0),
            A_ub=np.column_stack([point - others, np.ones(len(others))]),
            b_ub=np.zeros(len(others)),
            A_eq=[[1.0] * width + [0.0]],
            b_eq=[1.0],
            bounds=[(0, None)] * width + [(None, 1)],
        )
        kept.append(-margin.fun > 1e-5)
    return points[kept]


@given(tables())
def test_undominated_variants_are_those_that_no_other_of_their_unit_beats(table: Table) -> None:
    found = undominated(table)
    for row, costs, valid in zip(found, table.costs, table.valid):
        for i in range(len(row)):
            rivals = [costs[j] for j in np.flatnonzero(valid) if j != i]
            beaten = any((rival <= costs[i]).all() and (rival < costs[i]).any() for rival in rivals)
            twin = any((costs[j] == costs[i]).all() for j in range(i))
            assert row[i] == (valid[i] and not beaten and not twin)


@given(tables(), st.integers(0, 2**32 - 1))
def test_every_swept_policy_is_the_least_of_its_weighted_sum(table: Table, seed: int) -> None:
    rng = np.random.default_rng(seed)
    multipliers = rng.exponential(size=(6, len(table.objectives))) * rng.integers(0, 2, (6, len(table.objectives)))
    chosen = sweep(table, multipliers)
    assert table.valid[np.arange(len(table.units)), chosen].all()
    sums = table.totals(every_policy(table)) @ multipliers.T
    found = (table.totals(chosen) * multipliers).sum(1)
    assert found == pytest.approx(sums.min(0), rel=1e-12, abs=1e-12)


def test_ties_go_to_the_lower_damage_and_then_to_the_lower_index() -> None:
    table = table_of([[[2, 1], [1, 2], [1, 2], [3, 0]]])
    assert sweep(table, np.array([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])).tolist() == [[1], [1], [3]]


def test_a_zero_multiplier_meets_padding_without_a_nan() -> None:
    table = table_of([[[5, 1], [NO, NO]], [[1, 5], [5, 1]]])
    assert sweep(table, np.array([[0.0, 1.0], [1.0, 0.0]])).tolist() == [[0, 1], [0, 0]]


@settings(deadline=None)
@given(bounded())
def test_the_exact_policy_has_the_least_damage_of_all_that_fit(problem: tuple[Table, np.ndarray]) -> None:
    table, bounds = problem
    best = least_damage(table, bounds)
    if best == np.inf:
        with pytest.raises(Infeasible):
            exact(table, bounds)
        return
    total = table.totals(exact(table, bounds)[None])[0]
    assert not (total > bounds).any()
    assert total[0] == pytest.approx(best, rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=200)
@given(bounded())
def test_the_quick_policy_fits_wherever_one_does_and_is_near_the_best(problem: tuple[Table, np.ndarray]) -> None:
    table, bounds = problem
    best = least_damage(table, bounds)
    if best == np.inf:
        with pytest.raises(Infeasible):
            within(table, bounds)
        return
    chosen = within(table, bounds)
    total = table.totals(chosen[None])[0]
    assert table.valid[np.arange(len(table.units)), chosen].all()
    assert not (total > bounds).any()
    one_unit = max(np.ptp(costs[keep, 0]) for costs, keep in zip(table.costs, undominated(table)))
    rounding = 1e-6 * (1e-9 + abs(best))
    assert best - rounding <= total[0] <= max(best, relaxed_damage(table, bounds) + one_unit) + rounding


def test_a_policy_above_its_bound_by_rounding_alone_is_not_taken() -> None:
    """The solver's tolerance lets through what the bound does not."""
    table = table_of(np.random.default_rng(3).random((4, 4, 2)))
    totals = table.totals(every_policy(table))
    for best in np.unique(totals[~is_dominated(totals, totals)], axis=0)[:-1]:
        bounds = np.array([np.inf, np.nextafter(best[1], -1)])
        total = table.totals(exact(table, bounds)[None])[0]
        assert total[1] < best[1]
        assert total[0] == least_damage(table, bounds) > best[0]


def test_without_bounds_each_unit_takes_its_least_damage() -> None:
    table = table_of([[[3, 1, 1], [1, 9, 9]], [[0, 5, 5], [4, 1, 0]]])
    for bounds in (np.full(3, np.inf), np.full(3, np.nan)):
        assert within(table, bounds).tolist() == exact(table, bounds).tolist() == [1, 0]


def test_a_bound_on_the_damage_itself_is_kept_or_refused() -> None:
    table = table_of([[[3, 1], [1, 9]], [[0, 5], [4, 1]]])
    assert within(table, np.array([1.0, np.inf])).tolist() == [1, 0]
    with pytest.raises(
        Infeasible, match=r"^kl: expected at most 0\.5, but the smallest policy has 1; 1 of it is in layer0;"
    ):
        exact(table, np.array([0.5, np.inf]))


def test_an_optimum_that_is_not_proven_in_time_is_not_returned_as_one() -> None:
    rng = np.random.default_rng(0)
    table = table_of(rng.exponential(size=(40, 30, 3)))
    bounds = np.array([np.inf, *np.median(table.costs[..., 1:].sum(0), 0) * 0.3])
    assert (table.totals(within(table, bounds)[None])[0] <= bounds).all()
    with pytest.raises(SearchError, match=r"proven optimum within 1e-06 s"):
        exact(table, bounds, time_limit_s=1e-6)


@settings(deadline=None, max_examples=60)
@given(tables(most_units=4, most_variants=4))
def test_a_family_with_room_holds_every_supported_policy_and_none_that_is_dominated(table: Table) -> None:
    chosen = family(table, 400)
    totals = table.totals(chosen)
    assert table.valid[np.arange(len(table.units)), chosen].all()
    assert len(np.unique(chosen, axis=0)) == len(chosen)
    assert not is_dominated(totals, totals).any()
    assert (np.diff(totals[:, 0]) >= 0).all()
    for point in supported(table.totals(every_policy(table))):
        assert np.isclose(totals, point, rtol=1e-9, atol=1e-12).all(1).any(), point


@settings(deadline=None, max_examples=40)
@given(tables(), st.integers(1, 12), st.integers(0, 5))
def test_a_small_family_is_within_its_count_deterministic_and_starts_at_the_least_damage(
    table: Table, count: int, seed: int
) -> None:
    chosen = family(table, count, seed)
    assert 1 <= len(chosen) <= count
    assert (chosen == family(table, count, seed)).all()
    totals = table.totals(chosen)
    assert not is_dominated(totals, totals).any()
    assert totals[0, 0] == pytest.approx(table.totals(every_policy(table))[:, 0].min())


def test_gaps_between_supported_policies_are_filled_by_others() -> None:
    """(6, 5) lies above the line between its neighbours: no multipliers find it."""
    table = table_of([[[0, 10], [6, 5], [10, 0], [9, 9]]])
    assert set(sweep(table, spread_multipliers(table, 50, 0)).ravel()) == {0, 2}
    assert family(table, 2).tolist() == [[0], [2]]
    assert family(table, 9).tolist() == [[0], [1], [2]]


def test_a_family_spreads_over_decades_of_damage() -> None:
    rng = np.random.default_rng(0)
    bits = np.array([8.0, 6.0, 4.0, 3.0, 2.0])
    size, sensitivity = np.exp(rng.normal(8, 1.5, 30)), np.exp(rng.normal(-4, 1, 30))
    costs = np.stack([sensitivity[:, None] * 8 * 4.0**-bits, size[:, None] * bits / 8], -1)
    table = table_of(costs)
    chosen = family(table, 24)
    damage = np.log10(table.totals(chosen)[:, 0])
    assert len(chosen) == 24
    assert np.ptp(damage) > 3
    assert np.diff(damage).max() < 0.15 * np.ptp(damage)


@settings(deadline=None, max_examples=50)
@given(tables(), st.integers(0, 5))
def test_multipliers_do_not_depend_on_units_of_measurement(table: Table, seed: int) -> None:
    scale = 2.0 ** np.array([-10, 12, 7])[: len(table.objectives)]
    rescaled = Table(table.units, table.objectives, table.costs * scale, table.offsets * scale)
    found, other = spread_multipliers(table, 20, seed), spread_multipliers(rescaled, 20, seed)
    assert found.shape == (20, len(table.objectives))
    assert np.isfinite(found).all() and (found >= 0).all()
    assert (found == spread_multipliers(table, 20, seed)).all()
    # Where the damage is the same for all, its unit is nothing to trade in.
    unit = scale[0] if table.menu.span[0] > 0 else 1.0
    assert (other * scale)[:, 1:] == pytest.approx(found[:, 1:] * unit, rel=1e-9)


def test_spread_multipliers_reach_both_ends_of_the_front() -> None:
    rng = np.random.default_rng(1)
    table = table_of(rng.exponential(size=(30, 20, 3)))
    totals = table.totals(sweep(table, spread_multipliers(table, 8, 0)))
    assert totals.min(0) == pytest.approx(table.costs.min(1).sum(0))


def test_units_with_one_variant_and_objectives_without_a_range_are_no_trouble() -> None:
    costs = np.full((3, 3, 3), NO)
    costs[0, 0] = [1.0, 10.0, 0.5]
    costs[1] = [[0.0, 9.0, 0.5], [1.0, 6.0, 0.5], [2.0, 1.0, 0.5]]
    costs[2, :2] = [[0.0, 4.0, 0.5], [0.0, 4.0, 0.5]]
    table = table_of(costs)
    assert family(table, 10).tolist() == [[0, 0, 0], [0, 1, 0], [0, 2, 0]]
    for solve in (within, exact):
        assert solve(table, np.array([NO, 20.0, 1.5])).tolist() == [0, 1, 0]
        with pytest.raises(Infeasible, match="latency_ratio"):
            solve(table, np.array([NO, 20.0, 1.4]))


def test_a_table_with_one_policy_has_a_family_of_one() -> None:
    table = table_of([[[0.0, 0.0]], [[0.0, 0.0]]])
    assert family(table, 5).tolist() == [[0, 0]]
    assert within(table, np.zeros(2)).tolist() == exact(table, np.zeros(2)).tolist() == [0, 0]


def test_damage_that_never_changes_leaves_the_costs_to_trade_with_each_other() -> None:
    table = table_of([[[0.0, 1.0, 9.0], [0.0, 9.0, 1.0]], [[0.0, 1.0, 4.0], [0.0, 3.0, 1.0]]])
    assert sorted(family(table, 9).tolist()) == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_an_unreachable_budget_names_what_is_reached_and_which_units_hold_it() -> None:
    names = ("conv1", "conv2", "fc1", "fc2")
    costs = np.array([[[0, 90], [1, 80]], [[0, 900], [1, 500]], [[0, 4000], [2, 1000]], [[0, 150], [9, 150]]], float)
    table = Table(names, NAMES[:2], costs, np.array([0.0, 100.0]))
    for solve in (within, exact):
        with pytest.raises(Infeasible) as caught:
            solve(table, np.array([np.inf, 1000.0]))
        error = caught.value
        assert (error.objective, error.bound, error.least) == ("stored_bytes", 1000.0, 1830.0)
        assert (error.units, error.held, error.together) == (("fc1", "conv2"), 1500.0, False)
        assert str(error) == (
            "stored_bytes: expected at most 1,000, but the smallest policy has 1,830; 1,500 of it is in fc1, conv2; "
            "raise the budget or widen these layers' menus"
        )
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_unit_that_holds_more_than_the_sum_is_named_without_a_figure() -> None:
    costs = np.array([[[0.0, 10_000.0]], [[0.0, 900.0]]])
    table = Table(("fc1", "conv1"), NAMES[:2], costs, np.array([0.0, -10_177.0]))
    with pytest.raises(Infeasible, match="the smallest policy has 723; most of it is in fc1; raise the budget"):
        within(table, np.array([np.inf, 1.0]))


def test_what_lies_outside_every_unit_is_not_blamed_on_one() -> None:
    table = Table(("conv1",), NAMES[:2], np.array([[[0.0, 0.0]]]), np.array([0.0, 64.0]))
    with pytest.raises(Infeasible, match="none of it is in a layer") as caught:
        within(table, np.array([np.inf, 10.0]))
    assert caught.value.units == ()


def test_budgets_that_exclude_each_other_are_said_to_do_so() -> None:
    table = table_of([[[0, 10, 0.1], [1, 2, 0.8]], [[0, 1, 0.05], [1, 1, 0.05]]])
    for solve in (within, exact):
        with pytest.raises(Infeasible) as caught:
            solve(table, np.array([np.inf, 5.0, 0.5]))
        error = caught.value
        assert error.together and error.given == (("stored_bytes", 5.0),)
        assert (error.objective, error.units) == ("latency_ratio", ("layer0",))
        assert error.least == pytest.approx(0.85)
        assert str(error) == (
            "latency_ratio: expected at most 0.5, but the smallest policy with stored_bytes at most 5 has 0.85; 0.8 of it is in "
            "layer0; each budget can be met alone, but not all together; raise the budget or widen these layers' menus"
        )


def test_a_conflict_that_is_not_proven_in_time_is_not_called_infeasible() -> None:
    rng = np.random.default_rng(0)
    table = table_of(rng.exponential(size=(40, 30, 3)))
    bounds = np.array([np.inf, *table.costs[..., 1:].min(1).sum(0) * 1.1])
    with pytest.raises(SearchError, match="got neither") as caught:
        exact(table, bounds, time_limit_s=1e-6)
    assert not isinstance(caught.value, Infeasible)
    with pytest.raises(Infeasible, match="not all together"):
        exact(table, bounds)


def test_a_bound_missed_by_little_is_shown_with_the_digits_that_differ() -> None:
    table = table_of([[[0.0, 100000.25]]])
    with pytest.raises(Infeasible, match=r"at most 100,000\.2, but the smallest policy has 100,000\.25"):
        within(table, np.array([np.inf, 100000.2]))


@pytest.mark.parametrize(
    ("costs", "offsets", "said"),
    [
        (np.zeros((2, 3)), np.zeros(2), "expected costs of shape"),
        (np.zeros((3, 1, 2)), np.zeros(2), "expected costs of shape"),
        (np.zeros((2, 0, 2)), np.zeros(2), "expected costs of shape"),
        (np.zeros((2, 1, 2)), np.zeros(3), "expected 2 finite offsets"),
        (np.zeros((2, 1, 2)), np.array([0, np.nan]), "expected 2 finite offsets"),
        (np.array([[[0, 0]], [[np.nan, 0]]]), np.zeros(2), "fc, variant 0: expected finite costs"),
        (np.array([[[0, 0]], [[NO, 0]]]), np.zeros(2), "fc, variant 0: expected finite costs"),
        (np.array([[[0, 0]], [[-NO, -NO]]]), np.zeros(2), "fc, variant 0: expected finite costs"),
        (np.array([[[0, 0]], [[NO, NO]]]), np.zeros(2), "fc: expected at least one variant"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(costs: np.ndarray, offsets: np.ndarray, said: str) -> None:
    with pytest.raises(SearchError, match=said):
        Table(("conv", "fc"), NAMES[:2], costs, offsets)


def test_policies_multipliers_and_bounds_of_the_wrong_shape_are_refused() -> None:
    table = table_of([[[0.0, 1.0]], [[0.0, 1.0]]])
    for chosen in (np.zeros(2, int), np.zeros((1, 3), int), np.array([[0, 1]]), np.array([[0, -1]])):
        with pytest.raises(SearchError, match="expected policies"):
            table.totals(chosen)
    for multipliers in (np.ones(2), np.ones((1, 3)), np.array([[1.0, -1.0]]), np.array([[1.0, np.nan]])):
        with pytest.raises(SearchError, match="expected multipliers"):
            sweep(table, multipliers)
    with pytest.raises(SearchError, match="expected 2 bounds"):
        within(table, np.ones(3))
    with pytest.raises(SearchError, match="at least 1"):
        family(table, 0)
    with pytest.raises(SearchError, match="at least 1"):
        spread_multipliers(table, 0, 0)


def test_a_table_keeps_its_own_copy_of_the_costs() -> None:
    costs = np.zeros((1, 1, 2))
    table = table_of(costs)
    costs[:] = 5.0
    assert table.totals(np.zeros((1, 1), int)).tolist() == [[0.0, 0.0]]
    with pytest.raises(ValueError, match="read-only"):
        table.costs[0, 0, 0] = 1.0
