"""The bank of a run: what is measured of each variant, and the table that the sampler solves."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paretopress as pp
import pytest
from paretopress.evaluators.bank import Bank
from paretopress.evaluators.candidate import CandidateEvaluator
from paretopress.evaluators.kernels import kernel_policy
from paretopress.evaluators.variants import Stitch
from paretopress.policies.errors import CandidateError, SearchError
from paretopress.policies.plan import Plan, make_plan
from paretopress.search import api, banking
from paretopress.search.banking import Banking, Built, leave_dense, make_guide
from paretopress.search.config import make_config
from paretopress.search.driver import dispatching
from paretopress.search.feasibility import unreachable
from paretopress.search.prepare import Given
from paretopress.search.progress import Silence
from paretopress.search.samplers.bank_guided import Guide, clearly_dominated, without_dominated
from paretopress.search.session import Session
from paretopress.tests.search.runs import few_variants, meta, rows

pytestmark = pytest.mark.usefixtures("one_core")

LAYERS = ("conv1", "conv2", "fc1", "fc2")


@contextmanager
def banked(out: Path, config: dict[str, Any]) -> Iterator[tuple[Session, Built]]:
    with api.open_session(make_config(config), out, Silence(), Given()) as session:
        with dispatching(session) as dispatcher:
            built = Banking(session)(dispatcher)
        yield session, built


@pytest.fixture(scope="module")
def bank(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Session, Built]]:
    with banked(tmp_path_factory.mktemp("bank") / "run", few_variants(trained)) as found:
        yield found


@pytest.fixture(scope="module")
def guide(bank: tuple[Session, Built]) -> Guide:
    return make_guide(*bank)


def values_of(session: Session, policy: pp.Policy, fidelity: str) -> Mapping[str, float]:
    normal = make_plan(policy, session.prepared.bench.graph).policy
    return session.ledger.get(session.key(normal, fidelity)).values


def test_the_table_holds_what_the_ledger_measured(bank: tuple[Session, Built], guide: Guide) -> None:
    session, _ = bank
    space, table = session.prepared.space, guide.table
    assert table.objectives == ("kl", "stored_bytes", "latency_ratio") and table.units == LAYERS
    central = space.policy(space.central())
    stored = values_of(session, central, "stitch")["estimated_stored_bytes"]
    latency = values_of(session, kernel_policy(central), "kernels")["latency_ratio"]
    assert table.offsets.tolist() == [0.0, stored, latency]
    for u, unit in enumerate(table.units):
        for v, chosen in enumerate(guide.choices[u]):
            profile = values_of(session, space.alone(unit, chosen), "profile")
            kernels = values_of(session, kernel_policy(space.policy({**space.central(), **chosen})), "kernels")
            kl, _, ratio = table.costs[u, v]
            assert kl == profile["kl"] and ratio == pytest.approx(kernels["latency_ratio"] - latency)


def test_summed_bytes_are_those_of_the_whole_where_layers_do_not_touch(
    bank: tuple[Session, Built], guide: Guide
) -> None:
    session, _ = bank
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, [len(unit) for unit in guide.choices], (6, len(LAYERS)))
    rung = CandidateEvaluator(session.prepared.bench)
    for row, total in zip(chosen, guide.table.totals(chosen)):
        whole = rung.stitch(session.prepared.space.policy(guide.params_of(row)), 1e9)["metrics"]
        assert total[1] == pytest.approx(whole["estimated_stored_bytes"])


def test_a_dense_layer_is_the_most_accurate_and_the_largest(bank: tuple[Session, Built]) -> None:
    for unit in LAYERS:
        mine = [f for f in bank[1].figures if f.entry.unit == unit]
        dense, *others = mine
        assert not any(dense.entry.choices.values()) and dense.profile["kl"] == 0
        for other in others:
            assert other.profile["estimated_stored_bytes"] < dense.profile["estimated_stored_bytes"]


def test_dominated_variants_are_left_out(guide: Guide) -> None:
    assert not (clearly_dominated(guide.table) & guide.table.valid).any()
    for row, unit in zip(guide.table.valid, guide.choices):
        assert row.sum() == len(unit) >= 1
    costs = guide.table.costs.copy()
    costs[0, 1] = costs[0, 0] + 1
    left = without_dominated(replace(guide, table=replace(guide.table, costs=costs)))
    assert left.choices == (tuple(c for i, c in enumerate(guide.choices[0]) if i != 1), *guide.choices[1:])


def test_long_menus_are_thinned_and_what_is_left_out_is_no_policy_of_the_bank(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(banking, "MOST_VARIANTS", 4)
    space = {"precision": ["float32", "w8a8"], "sparsity": [0.0, 0.3, 0.5, 0.7], "skip": ["conv*", "fc1"]}
    with banked(tmp_path / "run", few_variants(trained, space=space)) as (session, built):
        assert len(built.figures) == 4 and not built.failed
        guide = make_guide(session, built)
        assert guide.variants_of({"fc2/precision": 1, "fc2/sparsity": 1}) is None
        # The middle of the menus, sparsity 0.5, is not in the thinned bank either; costs are held against it all the same.
        central = values_of(session, session.prepared.space.policy(session.prepared.space.central()), "stitch")
        assert guide.table.offsets[1] == central["estimated_stored_bytes"]


def break_rung(monkeypatch: pytest.MonkeyPatch, rung: str, breaks: Callable[[pp.Policy], bool]) -> None:
    whole = getattr(CandidateEvaluator, rung)

    def broken(self: CandidateEvaluator, policy: pp.Policy, *rest: Any) -> dict[str, Any]:
        if breaks(policy):
            raise CandidateError("no kernel for this operator")
        return whole(self, policy, *rest)

    monkeypatch.setattr(CandidateEvaluator, rung, broken)


def does(policy: pp.Policy, layer: str, technique: str) -> bool:
    return any(step.technique == technique for step in policy.layers.get(layer, ()))


def test_a_variant_that_fails_is_not_in_the_table(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_rung(monkeypatch, "profile", lambda policy: does(policy, "fc1", "prune_obs"))
    with banked(tmp_path / "run", few_variants(trained)) as (session, built):
        failed = [f for f in built.figures if f.failure]
        assert {f.entry.choices["fc1/sparsity"] for f in failed} == {1} and len(failed) == 2
        assert {f.failure for f in failed} == {"CandidateError: no kernel for this operator"}
        guide = make_guide(session, built)
        assert not built.failed and guide.table.units == LAYERS
        assert all(choice["fc1/sparsity"] == 0 for choice in guide.choices[LAYERS.index("fc1")])


def test_the_other_layers_are_measured_where_one_fails_in_the_middle_of_its_menus(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_rung(monkeypatch, "kernels", lambda policy: does(policy, "fc1", "quantize"))
    with banked(tmp_path / "run", few_variants(trained)) as (session, built):
        assert built.central["latency_ratio"] > 0 and not built.failed
        assert {tuple(f.entry.choices.values())[1] for f in built.figures if f.failure} == {1}
        assert {f.entry.unit for f in built.figures if f.failure} == {"fc1"}
        table = make_guide(session, built).table
        assert table.units == LAYERS and np.isfinite(table.costs[table.valid]).all()


def break_layer(monkeypatch: pytest.MonkeyPatch, layer: str) -> None:
    whole = Bank.stitch

    def stitch(self: Bank, plan: Plan) -> Stitch:
        if any(found.layer.name == layer for found in plan.layers):
            raise CandidateError(f"layer '{layer}': its Hessian is singular")
        return whole(self, plan)

    monkeypatch.setattr(Bank, "stitch", stitch)


def test_a_layer_all_of_whose_variants_fail_is_left_dense_and_the_report_says_why(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_layer(monkeypatch, "fc2")
    front = api.run_search(make_config(few_variants(trained)), tmp_path / "run", Silence())
    assert len(front) and not any("fc2" in candidate.policy.layers for candidate in front)
    assert {row.state for row in rows(tmp_path / "run", "screen")} == {"done"}
    reason = "CandidateError: layer 'fc2': its Hessian is singular"
    assert json.loads(meta(tmp_path / "run", "left_dense") or "") == {"fc2": reason}
    report = (tmp_path / "run" / "report.html").read_text()
    assert "Left dense" in report and reason.replace("'", "&#39;") in report


def test_where_nothing_can_be_compressed_the_search_says_so(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_rung(monkeypatch, "profile", lambda policy: bool(policy.layers))
    with pytest.raises(SearchError, match=rf"space says: {len(LAYERS)} with: CandidateError: no kernel for"):
        api.run_search(make_config(few_variants(trained)), tmp_path / "run", Silence())
    assert set(json.loads(meta(tmp_path / "run", "left_dense") or "")) == set(LAYERS)


def test_units_left_dense_are_no_knobs_any_more(bank: tuple[Session, Built]) -> None:
    session, built = bank
    before = session.prepared
    try:
        leave_dense(session, {"fc2": "it cannot"})
        assert not any(knob.startswith("fc2/") for knob in session.prepared.space.menu())
        assert json.loads(session.ledger.meta("left_dense") or "") == {"fc2": "it cannot"}
    finally:
        session.prepared = before
        leave_dense(session, built.failed)


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        ({"stored": "100kB", "latency": "9x"}, None),
        ({"stored": "9kB"}, r"stored_bytes: expected at most 9,000, but the smallest policy has [\d,]+; [\d,]+ of it is in fc1"),
        ({"latency": "0.001x"}, r"latency_ratio: expected at most 0\.001, .*; the choices for [\w, ]+ move it most"),
        ({"params": "10"}, None),
    ],
)  # fmt: skip
def test_a_budget_that_no_policy_keeps_names_the_layers_that_bound_it(
    bank: tuple[Session, Built], budgets: dict[str, str], said: str | None
) -> None:
    session, built = bank
    config = make_config({**session.config.model_dump(), "budgets": budgets})
    other = replace(session, config=config)
    found = unreachable(other, make_guide(other, built), built)
    assert (found is None) == (said is None)
    if said is not None:
        assert re.search(said, found or ""), found
