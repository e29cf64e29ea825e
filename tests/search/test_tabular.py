"""The tabular benchmark: its problems keep their protocol, its judge agrees with the product's, its table can be made again."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from paretopress.search.families import family
from paretopress.search.pareto import front, hypervolume
from paretopress.tests.bench.tabular import chain, judge, methods, page, run, summary
from paretopress.tests.bench.tabular.digits import load_digits
from paretopress.tests.bench.tabular.make_table import Measurer, frozen_weights, make_measurer
from paretopress.tests.bench.tabular.problem import BANK_OBJECTIVES, OBJECTIVES, Problem, scaled
from paretopress.tests.bench.tabular.solved import greedy_path
from paretopress.tests.bench.tabular.synthetic import make_synthetic
from plotly.offline import get_plotlyjs

torch.set_num_threads(1)

QUICK = ("uniform", "greedy", "random", "static", "adaptive")


@pytest.fixture(params=["digits", "synthetic"], scope="module")
def problem(request: pytest.FixtureRequest) -> Problem:
    return run.PROBLEMS[request.param](0)


@pytest.fixture(scope="module")
def measurer() -> Iterator[Measurer]:
    yield make_measurer(frozen_weights())


def random_policies(problem: Problem, count: int, seed: int = 0) -> np.ndarray:
    shape = problem.menus.shape
    return np.random.default_rng(seed).integers(0, shape, (count, len(shape)))


def test_choices_and_variants_are_each_others_inverse(problem: Problem) -> None:
    for chosen in random_policies(problem, 20):
        choices = problem.menus.choices(chosen)
        assert set(choices) == set(problem.knobs())
        assert all(0 <= option < problem.knobs()[knob] for knob, option in choices.items())
        assert (problem.menus.chosen(choices) == chosen).all()


def test_bank_is_what_single_units_measure(problem: Problem) -> None:
    table = problem.bank()
    assert table.objectives == BANK_OBJECTIVES
    assert np.isfinite(table.costs[..., 0]).sum(1).tolist() == list(problem.menus.shape)
    rng = np.random.default_rng(1)
    exact = [1, 2] if problem.name == "synthetic" else [0, 1, 2]  # the synthetic bank does not know the damage
    for u in rng.integers(0, len(table.units), 4):
        chosen = np.zeros(len(table.units), int)
        chosen[u] = rng.integers(1, problem.menus.shape[u])
        measured = problem.measure(problem.menus.choices(chosen))
        found = table.totals(chosen[None])[0]
        assert found[exact] == pytest.approx([measured[BANK_OBJECTIVES[m]] for m in exact], rel=1e-5)


def test_dense_policy_lies_on_the_reference_but_for_its_error(problem: Problem) -> None:
    dense = problem.measure(dict.fromkeys(problem.knobs(), 0))
    assert dense["kl"] == 0
    assert dense["stored_bytes"] == pytest.approx(problem.reference["stored_bytes"])
    assert dense["latency_ratio"] == pytest.approx(1.0, abs=0.02)
    assert dense["error_pct"] < problem.reference["error_pct"]


def test_nothing_measured_lies_beyond_the_best_known_front(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "TRADE_OFFS", 200)
    monkeypatch.setattr(chain, "ROUNDS", 1)
    policies = np.vstack([random_policies(problem, 100), family(problem.bank(), 50, 0)])
    values = scaled([problem.measure(problem.menus.choices(chosen)) for chosen in policies])
    best, reference = problem.best_known(), scaled([problem.reference])[0]
    ratio = judge.volume(values, reference) / judge.volume(best, reference)
    assert 0 < ratio < 1
    union = judge.volume(np.vstack([best, values]), reference)
    assert union == pytest.approx(judge.volume(best, reference), rel=0.02 if problem.name == "synthetic" else 1e-12)


def test_interactions_are_a_fifth_to_a_third_of_the_damage() -> None:
    for seed in range(3):
        problem = make_synthetic(seed)
        policies = family(problem.bank(), 40, 0)[5:]
        whole = problem.measure_all(policies)["kl"]
        alone = problem.damage[np.arange(policies.shape[1]), policies].sum(1)
        assert 0.2 <= np.median(1 - alone / whole) <= 0.33


def test_seeds_are_different_instances_and_repeat() -> None:
    first, again, other = make_synthetic(3), make_synthetic(3), make_synthetic(4)
    assert (first.damage == again.damage).all() and (first.factors == again.factors).all()
    assert not np.allclose(first.damage, other.damage)


def test_chain_finds_what_trying_everything_finds() -> None:
    problem = make_synthetic(0)
    trade_off = np.array([[1e-6, 0.5]])
    policy = chain._viterbi(problem, trade_off)

    def cost(policies: np.ndarray) -> np.ndarray:
        figures = problem.measure_all(policies)
        return figures["kl"] + trade_off[0, 0] * figures["stored_bytes"] + trade_off[0, 1] * figures["latency_ratio"]

    layers, variants = problem.damage.shape
    changed = np.repeat(policy, layers * variants, 0)
    changed[np.arange(len(changed)), np.repeat(np.arange(layers), variants)] = np.tile(np.arange(variants), layers)
    assert cost(changed).min() == pytest.approx(cost(policy)[0], rel=1e-12)
    pairs = np.repeat(policy, variants**2, 0)
    pairs[:, 7], pairs[:, 8] = np.divmod(np.arange(variants**2), variants)
    assert cost(pairs).min() == pytest.approx(cost(policy)[0], rel=1e-12)


def test_volume_equals_the_products_and_curves_never_fall() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 40):
        values = rng.integers(0, 8, (n, 3)).astype(float)
        reference = np.array([7.0, 6.0, 7.5])
        assert judge.volume(values, reference) == pytest.approx(hypervolume(values, reference))
        curve = judge.volume_curve(values, reference)
        assert (np.diff(curve) >= 0).all() and curve[-1] == pytest.approx(hypervolume(values, reference))


def test_undominated_are_the_products_front() -> None:
    values = np.random.default_rng(0).integers(0, 9, (700, 3)).astype(float)
    expected = np.unique(values[front(values, np.zeros(len(values)))], axis=0)
    assert (np.unique(judge.undominated(values), axis=0) == expected).all()


def test_paired_differences_count_wins_and_bracket_their_mean() -> None:
    base = np.random.default_rng(0).random(10)
    found = judge.paired(base + 0.1, base)
    assert found["wins"] == 10 and found["ties"] == 0
    assert found["low"] == pytest.approx(0.1) == found["high"]
    found = judge.paired(base, base[::-1].copy())
    assert found["low"] < found["mean"] < found["high"]


def test_attainment_is_what_shares_of_the_seeds_reach() -> None:
    fronts = [np.array([[1.0, 5.0 + s], [3.0, 1.0 + s]]) for s in range(4)]
    lower, median, upper = judge.attainment(fronts, np.array([0.5, 1.0, 2.0, 3.0]))
    assert median.tolist() == [np.inf, 6.0, 6.0, 2.0]
    assert lower.tolist()[1:] == [5.0, 5.0, 1.0] and upper.tolist()[1:] == [7.0, 7.0, 3.0]


def test_clock_shows_nothing_before_the_first_evaluation_is_finished() -> None:
    curve = judge.on_clock(np.array([0.2, 0.5]), np.array([3.0, 4.0]), np.array([2.9, 3.0, 3.9, 9.0]))
    assert curve.tolist() == [0.0, 0.2, 0.2, 0.5]


def test_greedy_begins_dense_and_only_ever_compresses(problem: Problem) -> None:
    path = np.array(greedy_path(problem.menus, problem.bank(), 1.0))
    sizes = problem.bank().totals(path)[:, 1]
    assert (path[0] == 0).all() and (np.diff(sizes) < 0).all()


@pytest.mark.parametrize("name", list(methods.METHODS))
def test_methods_spend_no_more_than_they_have_and_repeat(name: str) -> None:
    problem = load_digits()
    first, again = (methods.METHODS[name].run(problem, 20, 5) for _ in range(2))
    assert 0 < len(first) <= 20
    assert [visit.choices for visit in first] == [visit.choices for visit in again]
    assert all(visit.metrics == problem.measure(visit.choices) and visit.thinking_s >= 0 for visit in first)


def test_comparison_gives_ratios_below_one_json_and_a_page_that_loads_nothing() -> None:
    instances = [run.run_instance("digits", seed, QUICK, 24) for seed in range(3)]
    comparison = run.judge("digits", instances, 24)
    for ratios in comparison.ratios.values():
        assert ratios.shape == (3, 24) and (ratios >= 0).all() and (ratios <= 1).all()
    assert comparison.added == pytest.approx(0)
    found = {"problems": {"digits": summary.summarise(comparison)}}
    text = json.dumps(found, allow_nan=False)
    html = page.render(json.loads(text)).replace(get_plotlyjs(), "")
    assert "static sweep" in html and "src=" not in html and "<link" not in html and "https://" not in html


def test_frozen_table_can_be_measured_again(measurer: Measurer) -> None:
    problem = load_digits()
    for chosen in random_policies(problem, 3, seed=2):
        row = int(problem.rows(chosen[None])[0])
        frozen, found = problem.measure(problem.menus.choices(chosen)), measurer.measure(row)
        assert found.kl == pytest.approx(frozen["kl"], rel=0.05, abs=1e-4)
        assert found.error_pct == pytest.approx(frozen["error_pct"], abs=0.5)  # a picture of 216
        assert found.stored_bytes == pytest.approx(frozen["stored_bytes"], rel=0.002)


def test_table_holds_what_the_clock_and_the_files_allow() -> None:
    figures = load_digits().figures
    assert set(figures) == {"kl", *OBJECTIVES}
    assert (figures["kl"] >= 0).all() and (figures["stored_bytes"] > 0).all()
    assert ((figures["latency_ratio"] > 0.05) & (figures["latency_ratio"] < 3)).all()
