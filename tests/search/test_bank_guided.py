"""The bank-guided sampler on small made-up banks: U units whose variants trade damage for bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import TrialState
from paretopress.search.families import family
from paretopress.search.pareto import hypervolume
from paretopress.search.samplers.bank_guided import KL, BankGuidedSampler, Guide, read_history, without_dominated
from paretopress.search.samplers.gain import VolumeGain
from paretopress.search.samplers.surrogate import correct, distances
from paretopress.search.table import Table

DENSE_BYTES = 1000.0
ERROR_A_NAT = 20.0


class Net:
    """A network whose true damage the bank knows up to a factor for each unit."""

    def __init__(self, units: int, variants: int, seed: int, wrong: float) -> None:
        rng = np.random.default_rng(seed)
        strength = np.linspace(0, 1, variants)
        weights = rng.dirichlet(np.full(units, 3.0)) * DENSE_BYTES
        sensitivity = np.exp(rng.normal(-2.0, 1.0, (units, 1)))
        damage = sensitivity * strength ** rng.uniform(2, 4, (units, 1))
        self.bytes = weights[:, None] * (1 - 0.95 * strength)
        self.true = damage
        bank = damage * np.exp(wrong * rng.choice([-1.0, 1.0], (units, 1)))
        costs = np.stack([bank, self.bytes - self.bytes[:, :1]], axis=-1)
        names = tuple(f"u{u}" for u in range(units))
        self.guide = Guide(
            table=Table(names, ("kl", "stored_bytes"), costs, np.array([0.0, DENSE_BYTES])),
            choices=tuple(tuple({name: v} for v in range(variants)) for name in names),
            knobs=dict.fromkeys(names, variants),
            damage=bank.ravel(),
            error=ERROR_A_NAT * bank.ravel(),
            dense_error=0.0,
            objectives=("error_pct", "stored_bytes"),
            reference=np.array([10.0, DENSE_BYTES]),
            bounds={},
        )

    def measure(self, chosen: np.ndarray) -> tuple[float, list[float]]:
        units = np.arange(len(chosen))
        kl = float(self.true[units, chosen].sum())
        return kl, [ERROR_A_NAT * kl, float(self.bytes[units, chosen].sum())]


def searched(net: Net, trials: int, seed: int = 0, batch: int = 8, guide: Guide | None = None) -> optuna.Study:
    guide = guide or net.guide
    study = optuna.create_study(directions=["minimize"] * 2)
    space: dict[str, BaseDistribution] = {k: IntDistribution(0, count - 1) for k, count in guide.knobs.items()}
    for _ in range(trials // batch):
        study.sampler = BankGuidedSampler(guide, seed, batch)
        for trial in [study.ask(space) for _ in range(batch)]:
            kl, values = net.measure(np.array([trial.params[knob] for knob in guide.knobs]))
            trial.storage.set_trial_system_attr(trial._trial_id, KL, kl)
            study.tell(trial, values)
    return study


def settings(study: optuna.Study) -> list[tuple[int, ...]]:
    return [tuple(trial.params.values()) for trial in study.get_trials()]


def judged(net: Net, values: np.ndarray) -> float:
    points = np.column_stack([values[:, 0], np.log(values[:, 1])])
    reference = np.array([10.0, np.log(DENSE_BYTES)])
    return hypervolume(points[(points < reference).all(1)], reference)


@pytest.fixture
def net() -> Net:
    return Net(units=10, variants=12, seed=1, wrong=1.0)


def test_the_same_study_and_seed_give_the_same_proposals(net: Net) -> None:
    assert settings(searched(net, 24)) == settings(searched(net, 24))


def test_another_sampler_goes_on_from_the_study_alone(net: Net) -> None:
    history = read_history(net.guide, searched(net, 16).get_trials())
    first, second = (BankGuidedSampler(net.guide, 3, 8).plan(history, 8) for _ in range(2))
    assert first == second


def test_nothing_is_asked_twice_while_anything_is_left() -> None:
    small = Net(units=2, variants=6, seed=0, wrong=0.5)
    asked = settings(searched(small, 36, batch=4))
    assert len(set(asked)) == 36


def test_goes_on_where_everything_was_asked() -> None:
    one = Net(units=1, variants=4, seed=0, wrong=0.5)
    asked = settings(searched(one, 12, batch=4))
    assert len(asked) == 12
    assert set(asked) == {(0,), (1,), (2,), (3,)}


def test_ten_to_fifteen_per_cent_are_uniform_whatever_the_batch(monkeypatch: pytest.MonkeyPatch, net: Net) -> None:
    drawn = []
    uniform = BankGuidedSampler._uniform

    def counted(*args: Any) -> dict[str, int]:
        drawn.append(uniform(*args))
        return drawn[-1]

    monkeypatch.setattr(BankGuidedSampler, "_uniform", counted)
    empty = read_history(net.guide, [])
    for batch in (1, 8, 24):
        drawn.clear()
        for answered in range(0, 48, batch):
            BankGuidedSampler(net.guide, 0, batch).plan(replace(empty, answered=answered), batch)
        assert 0.1 <= len(drawn) / 48 <= 0.15


def test_beats_a_static_sweep_where_the_bank_is_wrong_by_a_factor() -> None:
    for seed in range(3):
        wrong = Net(units=12, variants=16, seed=seed, wrong=1.2)
        policies = family(wrong.guide.table, 40, seed)
        static = judged(wrong, np.array([wrong.measure(chosen)[1] for chosen in policies]))
        adaptive = judged(wrong, np.array([trial.values for trial in searched(wrong, 40, seed).get_trials()]))
        assert adaptive > static


def test_measurements_mend_a_bank_that_is_wrong_by_a_factor(net: Net) -> None:
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 12, (90, 10))
    measured = np.array([[kl, values[1]] for kl, values in map(net.measure, chosen)])
    corrected = correct(net.guide.table, chosen[:60], measured[:60])
    away = np.abs(np.log(corrected.predict(chosen[60:])[:, 0] / measured[60:, 0]))
    before = np.abs(np.log(net.guide.table.totals(chosen[60:])[:, 0] / measured[60:, 0]))
    assert np.median(away) < 0.1 * np.median(before)
    np.testing.assert_allclose(corrected.predict(chosen[60:])[:, 1], measured[60:, 1], rtol=0.01)


def test_a_cost_that_does_not_add_up_is_learned_and_stays_positive() -> None:
    left = np.linspace(1.0, 0.2, 4)
    costs = np.stack([np.tile(1 - left, (3, 1)), np.tile(100 * (left - 1), (3, 1))], axis=-1)
    table = Table(("a", "b", "c"), ("kl", "stored_bytes"), costs, np.array([0.0, 100.0]))
    away = []
    for seed in range(4):
        chosen = np.random.default_rng(seed).permutation(np.array(list(np.ndindex(4, 4, 4))))
        true = np.column_stack([3 - left[chosen].sum(1), 100 * left[chosen].prod(1)])
        corrected = correct(table, chosen[:40], true[:40])
        found = [corrected.predict(chosen[40:]), corrected.table.totals(chosen[40:]), table.totals(chosen[40:])]
        assert found[2][:, 1].min() < 0 < found[0].min()
        logs = np.log([np.maximum(totals[:, 1], corrected.least[1]) for totals in found])
        away.append(np.abs(logs - np.log(true[40:, 1])).mean(1))
    learned, summed, bank = np.mean(away, axis=0)
    assert learned < 0.75 * summed
    assert learned < 0.2 * bank


def test_a_bound_on_what_is_no_objective_is_kept(net: Net) -> None:
    table = net.guide.table
    latency = np.tile(np.linspace(0, -0.05, 12), (10, 1))
    costs = np.concatenate([table.costs, latency[..., None]], axis=-1)
    three = replace(
        table, objectives=(*table.objectives, "latency_ratio"), costs=costs, offsets=np.array([0.0, DENSE_BYTES, 1.0])
    )
    guide = replace(net.guide, table=three, bounds={"latency_ratio": 0.75})
    planned = BankGuidedSampler(guide, 0, 8).plan(read_history(guide, []), 8)
    found = np.array([guide.variants_of(params) for params in planned])
    assert len(found) == 8
    assert (three.totals(found)[:, 2] <= 0.75).all()


def test_choices_outside_the_bank_count_for_the_front_but_not_for_the_fit(net: Net) -> None:
    thinned = tuple(unit[::2] for unit in net.guide.choices)
    guide = replace(
        net.guide, choices=thinned, table=replace(net.guide.table, costs=net.guide.table.costs[:, ::2].copy())
    )
    outside = dict.fromkeys(net.guide.knobs, 1)
    distributions: dict[str, BaseDistribution] = {knob: IntDistribution(0, 11) for knob in net.guide.knobs}
    trial = optuna.trial.create_trial(params=outside, distributions=distributions, values=[1.0, 500.0])
    history = read_history(guide, [trial])
    assert history.values.tolist() == [[1.0, 500.0]]
    assert len(history.chosen) == 0
    planned = BankGuidedSampler(guide, 0, 8).plan(history, 8)
    assert all(guide.variants_of(params) is not None for params in planned)


def test_all_trials_failed_is_no_reason_to_stop_or_repeat(net: Net) -> None:
    study = optuna.create_study(directions=["minimize"] * 2)
    space: dict[str, BaseDistribution] = {knob: IntDistribution(0, 11) for knob in net.guide.knobs}
    for _ in range(3):
        study.sampler = BankGuidedSampler(net.guide, 0, 8)
        for trial in [study.ask(space) for _ in range(8)]:
            study.tell(trial, state=TrialState.FAIL)
    assert len(set(settings(study))) == 24


def test_a_trial_that_only_the_low_rung_measured_teaches_its_damage(net: Net) -> None:
    params = dict.fromkeys(net.guide.knobs, 6)
    distributions: dict[str, BaseDistribution] = {knob: IntDistribution(0, 11) for knob in params}
    trial = optuna.trial.create_trial(
        params=params, distributions=distributions, state=TrialState.PRUNED, system_attrs={KL: 0.3}
    )
    history = read_history(net.guide, [trial])
    assert history.costs[0, 0] == 0.3
    assert np.isnan(history.costs[0, 1])
    assert np.isnan(history.error[0])


def test_only_clearly_dominated_variants_are_left_out(net: Net) -> None:
    costs = np.array([[[0.0, 10.0], [1.0, 5.0], [1.5, 5.0], [3.0, 6.0], [4.0, 1.0]]])
    guide = replace(
        net.guide,
        table=Table(("u0",), ("kl", "stored_bytes"), costs, np.array([0.0, DENSE_BYTES])),
        choices=(tuple({"u0": v} for v in range(5)),),
        knobs={"u0": 5},
    )
    left = without_dominated(guide)
    assert [choice["u0"] for choice in left.choices[0]] == [0, 1, 2, 4]
    np.testing.assert_array_equal(left.table.costs[0], costs[0][[0, 1, 2, 4]])


def test_expected_gain_is_the_hypervolume_that_a_candidate_adds() -> None:
    rng = np.random.default_rng(0)
    front, values, reference = rng.random((5, 3)), rng.random((6, 3)), np.ones(3)
    gain = VolumeGain(front, values, values[:, :1], 0, reference, seed=0)
    best, _ = gain.take_best(np.ones(6, bool))
    added = [hypervolume(np.vstack([front, value]), reference) for value in values]
    assert best == int(np.argmax(added))
    again, less = gain.take_best(np.arange(6) == best)
    assert (again, less) == (best, 0.0)


def test_policies_are_as_far_apart_as_the_share_of_knobs_that_differ() -> None:
    two = Guide(
        table=Table(("a", "b"), ("kl",), np.zeros((2, 4, 1)), np.zeros(1)),
        choices=tuple(tuple({f"{u}/x": v // 2, f"{u}/y": v % 2} for v in range(4)) for u in "ab"),
        knobs={"a/x": 2, "a/y": 2, "b/x": 2, "b/y": 2},
        damage=np.zeros(1),
        error=np.zeros(1),
        dense_error=0.0,
        objectives=("error_pct",),
        reference=np.ones(1),
        bounds={},
    )
    policies = np.array([[0, 0], [0, 1], [3, 3]])
    shares = np.square(distances(two.options, policies, policies))
    np.testing.assert_allclose(shares, [[0, 0.25, 1], [0.25, 0, 0.75], [1, 0.75, 0]])


def test_one_objective_is_enough(net: Net) -> None:
    guide = replace(net.guide, objectives=("error_pct",), reference=np.array([10.0]), bounds={"stored_bytes": 400.0})
    planned = BankGuidedSampler(guide, 0, 4).plan(read_history(guide, []), 4)
    assert len({tuple(params.values()) for params in planned}) == 4
