"""The bank looked at for its own sake: every layer's sensitivity, and whether sums over layers can be trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import spearmanr

from ..evaluators.kernels import kernel_policy
from ..policies.errors import PolicyError
from ..policies.files import write_text
from ..policies.plan import make_plan
from ..policies.policy import Policy
from ..spaces.layerwise import LayerwiseSpace
from .banking import ESTIMATED, LARGEST, STORED, Banking, Built, Figures, layers_of, leave_dense, make_guide, table_of
from .dispatch import Dispatcher
from .driver import dispatching
from .report.sensitivity import Profile, Variant, render_sensitivity
from .samplers.bank_guided import Guide
from .session import Session
from .splits import notes_of
from .table import undominated

CHECKED = 20
"""Random policies that sums are compared with."""


def run_profile(session: Session) -> Profile:
    """Build the bank, check its sums, and write the page of sensitivity curves."""
    space = layers_of(session)
    session.tell_drift()
    with dispatching(session) as dispatcher:
        built = Banking(session)(dispatcher)
        additivity = None
        if built.usable:
            leave_dense(session, built.failed)
            additivity = _additivity(session, dispatcher, make_guide(session, built))
    profile = _profile(session, space, built, additivity)
    write_text(session.run.sensitivity, render_sensitivity(profile))
    return profile


def _additivity(session: Session, dispatcher: Dispatcher, guide: Guide) -> dict[str, float] | None:
    """How far sums over the bank lie from whole policies, drawn at random from its variants."""
    rng = np.random.default_rng([session.config.seed, CHECKED])
    sizes = [len(unit) for unit in guide.choices]
    drawn = np.unique(rng.integers(0, sizes, (CHECKED, len(sizes))), axis=0)
    space, graph = layers_of(session), session.prepared.bench.graph
    policies: list[Policy] = []
    kernels: list[Policy] = []
    kept = []
    for row in drawn:
        try:
            policy = make_plan(space.policy(guide.params_of(row)), graph).policy
            kernels.append(make_plan(kernel_policy(policy), graph).policy)
        except PolicyError:
            continue
        policies.append(policy)
        kept.append(row)
    session.listener.say(f"comparing sums over the bank with {len(policies)} whole policies")
    dispatcher.on_done = lambda _: None
    _measure(session, dispatcher, "stitch", policies, {"hopeless_kl": LARGEST})
    _measure(session, dispatcher, "kernels", kernels, {})
    rows = [
        (session.ledger.get(session.key(p, "stitch")), session.ledger.get(session.key(k, "kernels")))
        for p, k in zip(policies, kernels)
    ]
    whole = [
        {"kl": a.values["kl"], **b.values, STORED: a.values[ESTIMATED]} for a, b in rows if a.state == b.state == "done"
    ]
    if not whole:
        return None
    done = [row for row, (a, b) in zip(kept, rows) if a.state == b.state == "done"]
    return _compared(guide.table.totals(np.array(done)), whole, guide.table.objectives)


def _compared(sums: np.ndarray, whole: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, float]:
    out = {"policies": float(len(whole))}
    for column, name in enumerate(names):
        measured = np.array([metrics[name] for metrics in whole])
        apart = np.abs(sums[:, column] - measured) / np.maximum(np.abs(measured), 1e-12)
        out[f"{name}_median_error_pct"] = 100 * float(np.median(apart))
        if len(measured) > 2 and np.ptp(measured) > 0 and np.ptp(sums[:, column]) > 0:
            out[f"{name}_spearman"] = float(spearmanr(sums[:, column], measured).statistic)
    return out


def _measure(
    session: Session, dispatcher: Dispatcher, fidelity: str, policies: Sequence[Policy], payload: Mapping[str, float]
) -> None:
    keys = [session.key(policy, fidelity) for policy in {policy.digest: policy for policy in policies}.values()]
    for key, policy in zip(keys, {policy.digest: policy for policy in policies}.values()):
        session.ledger.register(key, policy.to_json(), "bank", {})
    dispatcher.run((key, payload) for key in keys)


def _profile(session: Session, space: LayerwiseSpace, built: Built, additivity: Mapping[str, float] | None) -> Profile:
    config, prepared = session.config, session.prepared
    rows = session.rows("profile") + session.rows("kernels")
    return Profile(
        run=session.run.path.resolve().name,
        network=config.model.name,
        data=prepared.data.name,
        dense=session.baseline,
        pictures=min(config.search.stitch_pictures, len(prepared.data.train)),
        layers=json.loads(session.ledger.meta("layers") or "[]"),
        variants=_variants(space, built.figures),
        seconds=sum(row.seconds.get("total", 0.0) for row in rows) / prepared.workers,
        additivity=additivity,
        notes=notes_of(prepared.splits.record, session.baseline),
    )


def _variants(space: LayerwiseSpace, figures: Sequence[Figures]) -> list[Variant]:
    options = space.menu()
    dominated = _dominated(figures)
    out = []
    for index, found in enumerate(figures):
        profile, costs, unit = found.profile, found.costs, found.entry.unit
        chosen = {knob.rpartition("/")[2]: options[knob][int(i)] for knob, i in found.entry.choices.items()}
        out.append(
            Variant(
                unit=unit,
                layers=space.units[unit],
                choices={
                    knob: value if isinstance(value, str) else float(str(value)) for knob, value in chosen.items()
                },
                kl=profile.get("kl"),
                relative_error=profile.get("relative_error"),
                weighted_error=profile.get("weighted_error"),
                stored_bytes=profile.get("layer_bytes") if _is_all_changed(space, found) else None,
                onnx_bytes=None,
                latency_ratio=costs.get("latency_ratio"),
                dominated=index in dominated,
                failure=found.failure or None,
            )
        )
    return out


def _is_all_changed(space: LayerwiseSpace, found: Figures) -> bool:
    """Whether no layer of the unit is left as it was: the bytes of such are not among those that were measured."""
    if found.entry.policy is None:
        return False
    plan = make_plan(found.entry.policy, space.graph)
    changed = {*plan.policy.layers, *(layer for branch in plan.dropped for layer in branch.layers)}
    return changed.issuperset(space.units[found.entry.unit])


def _dominated(figures: Sequence[Figures]) -> set[int]:
    """Indices of the variants that another of their unit is at least as good as in damage, bytes and latency."""
    out: set[int] = set()
    usable = [i for i, f in enumerate(figures) if not f.failure]
    for unit in dict.fromkeys(figures[i].entry.unit for i in usable):
        mine = [i for i in usable if figures[i].entry.unit == unit]
        table = table_of(
            (unit,),
            ("kl", STORED, "latency_ratio"),
            {unit: [figures[i] for i in mine]},
            {STORED: 0.0, "latency_ratio": 0.0},
        )
        keep = undominated(table)[0]
        out |= {i for i, kept in zip(mine, keep) if not kept}
    return out
