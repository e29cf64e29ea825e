"""Early exits for a network: trained, their thresholds chosen by expected cost, exported and tested."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..evaluators.accuracy import bounds, error_interval, error_pct
from ..evaluators.data import DataSet, Pictures
from ..evaluators.exits import ALWAYS, NEVER, Exits, cost_before, macs_by_exit, run_exits
from ..evaluators.holdout import whole_test
from ..evaluators.latency import LatencyProbe
from ..evaluators.models import load_weights
from ..evaluators.runtime import session as runtime_session
from ..evaluators.training.checkpoints import OnEpoch
from ..evaluators.training.early_exits import exits_loss
from ..evaluators.training.loop import train
from ..evaluators.training.task import TrainingTask
from ..policies.errors import ConfigError, ModelError, ParetopressError
from ..policies.exits import MOST_SHARE, EveryExit, ExitNetwork, places_for_exits
from ..policies.export.early_exit import with_exits
from ..policies.export.onnx import export_onnx
from ..policies.files import write_bytes, write_text
from ..policies.policy import Policy
from .comparing import check_file, take_samples
from .labelling import to_learn_from
from .pareto import front as front_of
from .report.exits import render_exits
from .rundir import sha256
from .session import Session
from .splits import describe_recipe, notes_of, trained_further
from .trainings import train_network

RUNG = "exits"
MOST_SETS = 20_000
BATCH = 256
MOST_SHOWN = 8


@dataclass(frozen=True)
class ExitMember:
    """One set of thresholds.

    Parameters
    ----------
    policy
        Its ``exits``: module -> threshold.
    validation
        Expected figures on validation pictures.
    tested
        Those of the exported file on test pictures.
    """

    policy: Policy
    validation: Mapping[str, Any]
    tested: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.policy.id,
            "policy": self.policy.as_dict(),
            "validation": dict(self.validation),
            "metrics": dict(self.tested),
        }


@dataclass(frozen=True)
class ExitsFound:
    """A network's exits.

    Parameters
    ----------
    after
        Modules behind which they stand.
    baseline
        The dense network's metrics.
    curve
        Error and expected cost of every undominated set of thresholds, on validation pictures.
    members
        Those that were exported and tested.
    """

    after: tuple[str, ...]
    baseline: Mapping[str, float]
    curve: tuple[Mapping[str, Any], ...]
    members: tuple[ExitMember, ...]

    def as_dict(self) -> dict[str, Any]:
        """What ``exits.json`` holds."""
        return {
            "after": list(self.after),
            "baseline": dict(self.baseline),
            "curve": [dict(point) for point in self.curve],
            "members": [member.as_dict() for member in self.members],
        }


def find_exits(session: Session) -> ExitsFound:
    """Train the exits of the run's network, choose thresholds, export and test; what is recorded is not done again.

    Raises
    ------
    ConfigError
        Where an exit is to stand behind a module that cannot have one.
    """
    bench, run = session.prepared.bench, session.run
    example = session.prepared.example
    network = _trained(session, example)
    file = export_onnx(EveryExit(network), example, calibration=None)
    check_file(EveryExit(network), file, take_samples(session.prepared.data))
    probe = LatencyProbe(
        bench.reference, example.numpy(), session.config.latency.threads, session.baseline["latency_ms"]
    )
    session.tell_drift()
    exits = _on_validation(session, network, file, probe)
    points = _undominated(exits)
    chosen = _spread(_useful(session, exits, points), session.config.exits.members)
    members = []
    for number, thresholds in enumerate(chosen, 1):
        policy = Policy(exits=dict(zip(network.after, thresholds)))
        onnx = with_exits(file, thresholds)
        write_bytes(run.artefact(policy.id, "model.onnx"), onnx)
        members.append(ExitMember(policy, _plain(exits.at(thresholds)), _tested(session, policy, onnx, exits)))
        session.listener.say(f"testing {number}/{len(chosen)}: {_told(members[-1].tested)}")
    curve = tuple({"thresholds": list(t), **_plain(exits.at(t))} for t in points)
    found = ExitsFound(network.after, session.baseline, curve, tuple(members))
    write_text(run.path / "exits.json", json.dumps(found.as_dict(), indent=1) + "\n")
    notes = notes_of(session.prepared.splits.record, session.baseline)
    write_text(
        run.path / "exits.html", render_exits(run.path.resolve().name, found.as_dict(), session.config.quality, notes)
    )
    return found


def _trained(session: Session, example: Tensor) -> ExitNetwork:
    settings, bench, run = session.config.exits, session.prepared.bench, session.run
    after = _places(session, cost_before(bench.model, example))
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(session.config.seed)
            network = ExitNetwork(bench.model, after, example, settings.channels).tuned(settings.tuned)
    except ModelError as error:
        raise ConfigError(str(error)) from error
    weights = run.path / "exits.safetensors"
    if weights.is_file():
        load_weights(network, str(weights))
        return network.eval()
    recipe = settings.recipe()
    session.listener.say(f"training exits behind {', '.join(after)}: {recipe.epochs} epochs")
    loss, seed = exits_loss(network, recipe.label_smoothing), session.config.seed
    data = to_learn_from(session.config.quality, bench.reference, session.prepared.data)

    def carry_out(checkpoint: Path | None, on_epoch: OnEpoch) -> None:
        train(network, data, recipe, seed=seed, loss=loss, checkpoint=checkpoint, on_epoch=on_epoch)

    # Where they stand, not how their places were found.
    trained = {**settings.model_dump(mode="json", exclude={"count", "members"}), "after": list(after)}
    described = describe_recipe(session.config, exits=trained)
    metadata = trained_further(session.prepared.splits.record, session.config, described).metadata()
    task = TrainingTask(network, carry_out, recipe.epochs, metadata)
    state = run.path / "exits-training.safetensors"
    train_network(task, weights, state, session.config.pool, run, session.listener.say)
    return network.eval()


def _places(session: Session, cost_before: Mapping[str, float]) -> tuple[str, ...]:
    """Modules behind which exits stand: those that were named, or as many as were asked for and have a place."""
    settings = session.config.exits
    total = max(cost_before.values(), default=0.0)
    late = [name for name in settings.after if name in cost_before and cost_before[name] >= total]
    if late:
        earlier = [name for name, cost in cost_before.items() if cost < total]
        raise ConfigError(
            f"exits.after: nothing is saved behind {', '.join(late)}, where the whole network has been run; expected"
            f" modules before it, such as {', '.join(earlier[-MOST_SHOWN:]) or 'none here'}"
        )
    if settings.after:
        return settings.after
    after = tuple(places_for_exits(cost_before, settings.count))
    if not after:
        raise ConfigError(
            f"exits.count: no module but the last ones can have an exit, before {MOST_SHARE:.0%} of the network's"
            " multiply-accumulates; name modules in exits.after"
        )
    if len(after) < settings.count:
        session.listener.say(
            f"exits.count: {len(after)} of {settings.count} exits can be placed, at modules of different cost before"
            f" {MOST_SHARE:.0%} of the network's multiply-accumulates"
        )
    return after


def _on_validation(session: Session, network: ExitNetwork, file: bytes, probe: LatencyProbe) -> Exits:
    """Every exit's outputs on validation pictures, and what each way out takes in the exported file."""
    data, config = session.prepared.data, session.config
    with torch.inference_mode():
        parts = [torch.stack(network.exits(x)) for x, _ in data.batches(data.validation, BATCH)]
    # Measured once: thresholds follow from it, and what was tested must not change when the command is given again.
    noted = f"latency of exits {sha256(file)}"
    if (known := session.ledger.meta(noted)) is None:
        known = json.dumps(_latency_ratios(file, len(network.after), probe, config.latency.pairs, config.seed))
        session.ledger.set_meta(noted, known)
    logits, macs = torch.cat(parts, 1).numpy(), macs_by_exit(network, session.prepared.example)
    return Exits(logits, data.validation.labels, macs, np.array(json.loads(known)))


def _latency_ratios(file: bytes, count: int, probe: LatencyProbe, pairs: int, seed: int) -> list[float]:
    """(exits,) of the exported file where all pictures leave at one exit, and at last where none does."""
    ways = [[ALWAYS if k == number else NEVER for k in range(count)] for number in range(count + 1)]
    return [probe.measure(with_exits(file, only), pairs=pairs, seed=seed).ratio for only in ways]


def _undominated(exits: Exits) -> list[tuple[float, ...]]:
    """Sets of thresholds that no other beats in both error and expected latency, from the cheapest to the dearest."""
    certainty = exits.certainty
    steps = max(2, min(101, int(MOST_SETS ** (1 / len(certainty)))))
    menus = [
        sorted({*np.quantile(one, np.linspace(0, 1, steps - 1)).astype(np.float32).tolist(), NEVER})
        for one in certainty
    ]
    sets = list(itertools.product(*menus))
    found = [exits.at(thresholds) for thresholds in sets]
    values = np.array([[average.error_pct, average.latency_ratio] for average in found])
    kept = {tuple(values[i]): sets[i] for i in front_of(values, np.zeros(len(values)))}
    return [kept[key] for key in sorted(kept, key=lambda key: key[1])]


def _useful(session: Session, exits: Exits, points: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Those whose error is within ``search.screen_error`` of the network's own; the best one where none is."""
    own = exits.at([NEVER] * (len(exits.logits) - 1)).error_pct
    near = [point for point in points if exits.at(point).error_pct <= own + session.config.search.screen_error]
    return near or points[-1:]


def _spread(points: Sequence[tuple[float, ...]], count: int) -> list[tuple[float, ...]]:
    places = np.unique(np.linspace(0, len(points) - 1, count).round().astype(int))
    return [points[i] for i in places]


def _tested(session: Session, policy: Policy, onnx: bytes, exits: Exits) -> dict[str, Any]:
    """The exported file on test pictures, read once; a figure that the ledger holds is not measured again."""
    data, ledger = session.prepared.data, session.ledger
    assert data.test is not None
    key = session.key(policy, RUNG)
    row = ledger.register(key, policy.to_json(), "exits", {})
    if row.state == "done" and row.artefacts.get("model.onnx") != sha256(onnx):
        ledger.reopen(key, "its file was made again and is not the one that was tested")
        row = ledger.get(key)
    elif row.state == "failed":
        ledger.reopen(key, "it is tried again")
        row = ledger.get(key)
    if row.state == "pending":
        lease, start = ledger.lease(key, time.time()), time.perf_counter()
        try:
            logits, taken = _run(onnx, data, data.test)
            compared = _compared_error(onnx, data)
        except ParetopressError as error:
            ledger.fail(lease, type(error).__name__, str(error))
            raise
        shares = np.bincount(taken, minlength=len(exits.macs)) / len(taken)
        wrong = error_pct(logits, data.test.labels)
        values = {
            "error_pct": wrong,
            **bounds("error_ci95", error_interval(wrong, len(data.test))),
            **whole_test(data, compared, wrong),
            "expected_macs": float(shares @ exits.macs),
            "expected_latency_ratio": float(shares @ exits.latency_ratio),
            "onnx_bytes": float(len(onnx)),
            **{f"share_{number}": float(share) for number, share in enumerate(shares)},
        }
        spent = {"total": time.perf_counter() - start}
        ledger.complete(lease, values, {}, {"model.onnx": sha256(onnx)}, "driver", spent)
    return dict(ledger.get(key).values)


def _run(onnx: bytes, data: DataSet, part: Pictures) -> tuple[np.ndarray, np.ndarray]:
    """Run the exported file on pictures: logits (N, K), and the exit (N,) that each of them took."""
    pictures = np.concatenate([x.numpy() for x, _ in data.batches(part, BATCH)])
    return run_exits(runtime_session(onnx), pictures)


def _compared_error(onnx: bytes, data: DataSet) -> float:
    """Measure the file's error in per cent on the test pictures that thresholds were chosen on; not a number without such."""
    if data.validation_from != "testing":
        return float("nan")
    return error_pct(_run(onnx, data, data.validation)[0], data.validation.labels)


def _plain(average: Any) -> dict[str, Any]:
    return {
        "error_pct": average.error_pct,
        "expected_macs": average.macs,
        "expected_latency_ratio": average.latency_ratio,
        **{f"share_{number}": share for number, share in enumerate(average.shares)},
    }


def _told(metrics: Mapping[str, Any]) -> str:
    latency, macs = metrics["expected_latency_ratio"], metrics["expected_macs"] / 1e6
    return f"{metrics['error_pct']:.2f} % error, {latency:.3f}x latency, {macs:.2f} M multiply-accumulates on average"
