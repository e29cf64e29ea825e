"""Samplers on a real search at equal wall-clock: bank, evaluations and thinking all count; JSON on stdout.

python -m paretopress.tests.bench.real configs/cifar10_resnet20.yaml --minutes 2 --seeds 3

Each run searches a fresh directory with as many evaluations as fit. Hypervolume is that of the screened candidates
(validation error linear, sizes and times as logarithms) below the same reference for all: the budgets, the dense network's
figures where there is none, and the largest error that recovery is trusted with. It is divided by that of the union of all
runs; ``wide`` leaves the budgets out. What every run measured is kept in a file, so that the curves of finished runs can be
drawn again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from paretopress.search import api
from paretopress.search.banking import useful_at_most
from paretopress.search.config import load_config
from paretopress.search.driver import dispatching
from paretopress.search.front import scaled_values
from paretopress.search.pareto import front, hypervolume
from paretopress.search.prepare import Given
from paretopress.search.progress import Silence
from paretopress.search.screening import Screening

SAMPLERS = ("bank", "nsga2", "tpe", "random")
REFERENCES = {"curve": "reference", "curve_wide": "wide"}
POINTS = 12
"""Times at which the curves are read."""


def run(config: Path, sampler: str, seed: int, minutes: float, overrides: Sequence[str]) -> dict[str, Any]:
    """Screen for so long; when each candidate was done (s from the start) and what it measured."""
    changes = (
        f"search.sampler={sampler}",
        f"seed={seed}",
        "search.evaluations=100000",
        *overrides,
    )
    loaded = load_config(config, changes)
    with (
        tempfile.TemporaryDirectory() as directory,
        api.open_session(loaded, Path(directory) / "run", Silence(), Given()) as session,
    ):
        limits = {limit.metric: limit.bound for limit in session.validation_limits}
        reference = [useful_at_most(session, name, limits) for name in session.objectives]
        wide = [useful_at_most(session, name, {}) for name in session.objectives]
        with dispatching(session) as dispatcher:
            start = time.time()
            Screening(session, deadline_s=start + 60 * minutes)(dispatcher)
        rows = [row for row in session.rows("screen") if row.state == "done"]
        return {
            "sampler": sampler,
            "seed": seed,
            "objectives": list(session.objectives),
            "reference": reference,
            "wide": wide,
            "screened": len(rows),
            "seconds": [row.finished_s - start for row in rows if row.finished_s is not None],
            "values": [[row.values[name] for name in session.objectives] for row in rows],
        }


def volumes(found: dict[str, Any], times: np.ndarray, below: str) -> list[float]:
    """Hypervolume of what was measured by each time, ``below`` one of the references."""
    names, values = found["objectives"], np.array(found["values"])
    scaled = scaled_values([dict(zip(names, row)) for row in values], names)
    reference = scaled_values([dict(zip(names, found[below]))], names)[0]
    done = np.array(found["seconds"])
    return [_volume(scaled[done <= at], reference) for at in times]


def _volume(points: np.ndarray, reference: np.ndarray) -> float:
    if not len(points):
        return 0.0
    return hypervolume(points[front(points, np.zeros(len(points)))], reference)


def main() -> None:
    """Run every sampler with every seed, seeds in the outer loop so that a drifting machine treats them alike."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--raw", type=Path, default=Path("runs/bench-real.json"), help="what every run measured")
    given = parser.parse_args()
    runs: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        for sampler in given.samplers:
            runs.append(run(given.config, sampler, seed, given.minutes, given.overrides))
            print(f"seed {seed} {sampler}: {runs[-1]['screened']} screened", file=sys.stderr, flush=True)
            given.raw.parent.mkdir(parents=True, exist_ok=True)
            given.raw.write_text(json.dumps({"minutes": given.minutes, "runs": runs}))
    print(json.dumps(curves(runs, given.minutes), indent=1))


def curves(runs: Sequence[dict[str, Any]], minutes: float) -> dict[str, Any]:
    """Hypervolume of each run over time, as shares of that of all runs together."""
    times = np.linspace(0, 60 * minutes, POINTS + 1)[1:]
    everything = {
        **runs[0],
        "values": list(itertools.chain.from_iterable(r["values"] for r in runs)),
        "seconds": list(itertools.chain.from_iterable(r["seconds"] for r in runs)),
    }
    best = {below: volumes(everything, np.array([np.inf]), below)[0] or 1.0 for below in REFERENCES.values()}
    out = [
        {
            **{name: r[name] for name in ("sampler", "seed", "screened")},
            **{n: [round(v / best[below], 4) for v in volumes(r, times, below)] for n, below in REFERENCES.items()},
        }
        for r in runs
    ]
    return {"minutes": minutes, "times_s": times.round(1).tolist(), "runs": out}


if __name__ == "__main__":
    main()
