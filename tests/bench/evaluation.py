"""Where the seconds of a screening go, against the bare forward pass of the same pictures; JSON on stdout.

Run by ``make bench``. Candidates are drawn from the spaces of the shipped configurations; pictures are random, and so are
weights that a configuration does not ship. Every figure is a median over the candidates, and a share or ratio within this run.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from paretopress.evaluators.accuracy import file_error, file_logits
from paretopress.evaluators.candidate import RANGE_PICTURES, CandidateEvaluator
from paretopress.evaluators.data import DataSet, Pictures, SplitSizes, split
from paretopress.evaluators.models import build_model, load_weights
from paretopress.evaluators.stitched import BATCH
from paretopress.evaluators.workbench import Settings, Workbench
from paretopress.policies.apply import apply_plan
from paretopress.policies.batch_norms import settle_statistics
from paretopress.policies.coding.press import encode
from paretopress.policies.export.onnx import export_onnx
from paretopress.policies.graph import ModelGraph
from paretopress.policies.layout import laid_out
from paretopress.policies.plan import make_plan
from paretopress.policies.policy import Policy
from paretopress.search.banking import MOST_VARIANTS
from paretopress.search.config import Config, load_config
from paretopress.search.ledger import EvaluationKey, Ledger
from paretopress.search.prepare import make_space
from paretopress.search.records import TrialRecord
from paretopress.search.study import Outcome, Study
from paretopress.spaces.layerwise import LayerwiseSpace

CANDIDATES = 24
COPIED = 6
CONFIGS = Path(__file__).parents[2] / "configs"
SHAPES = {"mnist_lenet5": (1, 28, 28), "cifar10_resnet20": (3, 32, 32)}
OBJECTIVES = ("error_pct", "stored_bytes", "latency_ratio")


@dataclass(frozen=True)
class Part:
    """Which of the evaluator's own timings belong to a row of the output."""

    name: str
    kinds: tuple[str, ...]


PARTS = (
    Part("build", ("build",)),
    Part("stitch", ("export", "encode", "count")),
    Part("forward", ("forward",)),
    Part("latency_probe", ("probe",)),
    Part("bookkeeping", ("bookkeeping",)),
)


def pictures(shape: tuple[int, int, int], count: int, calibration: int, seed: int) -> DataSet:
    """Random pictures, enough for the validation split asked for."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count + 600, *shape), dtype=np.uint8)
    everything = Pictures(images, rng.integers(0, 10, len(images)))
    return split("random", everything, everything.take(slice(0, 10)), SplitSizes(count, calibration), seed)


def workbench(config: Config, shape: tuple[int, int, int]) -> Workbench:
    """The configuration's network on random pictures, at one thread."""
    data = pictures(shape, config.search.screen_pictures, config.data.calibration, config.seed)
    model = build_model(config.model.name, num_classes=10, seed=0).eval()
    if config.model.weights is not None:
        load_weights(model, str(CONFIGS.parent / config.model.weights))
    example = data.preprocess(data.calibration.images[:1])
    graph = ModelGraph.trace(model, example)
    settings = Settings(
        screen_pictures=config.search.screen_pictures, screen_seconds=config.latency.screen_seconds, seed=config.seed
    )
    return Workbench(model, graph, data.without_test(), export_onnx(model, example, calibration=None), settings)


def measure(name: str) -> dict[str, object]:
    """Medians for one configuration, as a search finds its layers: made beforehand for the bank, or when first needed."""
    config = load_config(CONFIGS / f"{name}.yaml")
    bench = workbench(config, SHAPES[name])
    space = make_space(config.space, bench.graph)
    bare_s = bare_forward(bench)
    fresh, prepared = CandidateEvaluator(bench), CandidateEvaluator(bench)
    first = screened(name, config, space, fresh)
    start = time.perf_counter()
    files = banked(space, CandidateEvaluator(bench))
    bank_s = time.perf_counter() - start
    prepared.adopt(files)
    rows = screened(name, config, space, prepared)
    built = statistics.median(sum(row.values()) - row["probe"] for row in rows)
    return {
        "with_bank": summarise(rows, bare_s),
        "without_bank": summarise(first, bare_s),
        "bank": {"variants": len(files), "seconds": bank_s},
        "stitched": stitched(bench, prepared, space, built),
    }


def screened(name: str, config: Config, space: LayerwiseSpace, evaluator: CandidateEvaluator) -> list[dict[str, float]]:
    """Seconds by kind of random candidates; the first one, which warms up, is left out."""
    study = Study(space, OBJECTIVES, "random", config.seed, config.search.evaluations)
    rows = []
    with tempfile.TemporaryDirectory() as directory, Ledger(Path(directory)) as ledger:
        for number in range(CANDIDATES + 1):
            rows.append(evaluate(study, evaluator, ledger, number))
            print(f"{name}: {number}/{CANDIDATES}", file=sys.stderr)
    return rows[1:]


def banked(space: LayerwiseSpace, evaluator: CandidateEvaluator) -> dict[str, bytes]:
    """Every layer's variants made and tried once, as a search begins; digest -> file."""
    files: dict[str, bytes] = {}
    around = space.policy(space.central())
    for unit, variants in space.variants(MOST_VARIANTS).items():
        for chosen in variants:
            found = evaluator.profile(space.alone(unit, chosen), around)
            files |= {name.removesuffix(".press"): content for name, content in found["artefacts"].items()}
    return files


def stitched(
    bench: Workbench, evaluator: CandidateEvaluator, space: LayerwiseSpace, built_s: float
) -> dict[str, float]:
    """The lowest rung with its variants in the bank, interleaved with the dense network's bare forward pass in torch.

    Parameters
    ----------
    built_s
        Seconds of an evaluation on the next rung, its latency probe left out.
    """
    rng = np.random.default_rng(0)
    menu = space.menu()
    drawn = [{knob: int(rng.integers(len(options))) for knob, options in menu.items()} for _ in range(CANDIDATES)]
    policies = [space.policy(choices) for choices in drawn]
    for policy in policies:
        evaluator.stitch(policy, math.inf)
    pictures = bench.data.preprocess(bench.data.train.images[: bench.settings.stitch_pictures])
    batches = laid_out(bench.model, pictures).split(BATCH)
    bare, whole, copied = [], [], []
    for policy in policies:
        start = time.perf_counter()
        with torch.no_grad():
            for batch in batches:
                bench.model(batch)
        bare.append(time.perf_counter() - start)
        start = time.perf_counter()
        evaluator.stitch(policy, math.inf)
        whole.append(time.perf_counter() - start)
        if len(copied) < COPIED:
            start = time.perf_counter()
            copy_compress_evaluate(bench, policy)
            copied.append(time.perf_counter() - start)
    return {
        "seconds": statistics.median(whole),
        "bare_forward_s": statistics.median(bare),
        "times_bare_forward": statistics.median(a / b for a, b in zip(whole, bare)),
        "evaluations_for_one_built": built_s / statistics.median(whole),
        "evaluations_for_one_copied": statistics.median(a / b for a, b in zip(copied, whole)),
    }


def copy_compress_evaluate(bench: Workbench, policy: Policy) -> None:
    """What an evaluation is without a bank: a copy compressed anew, exported, coded, and tried on the screening's pictures."""
    calibration = bench.data.preprocess(bench.data.calibration.images)
    compressed = apply_plan(make_plan(policy, bench.graph), bench.graph, bench.model, calibration)
    settle_statistics(compressed.model)
    onnx = export_onnx(compressed.model, calibration[:1], calibration=calibration[:RANGE_PICTURES])
    encode(compressed.stored(), {})
    part = bench.data.validation.take(slice(0, bench.settings.screen_pictures))
    file_error(onnx, bench.data, part, 1)


def evaluate(study: Study, evaluator: CandidateEvaluator, ledger: Ledger, number: int) -> dict[str, float]:
    """One candidate, all that a search does for it; seconds by kind."""
    start = time.perf_counter()
    (asked,) = study.ask([], 1)
    policy = make_plan(asked.policy, evaluator.bench.graph).policy
    key = EvaluationKey(policy.digest, "screen", "random", number, "bench")
    ledger.register(key, policy.to_json(), asked.origin, {})
    record = TrialRecord(asked.number, policy.digest, asked.origin, asked.choices, asked.attributes)
    ledger.add_trials([record])
    lease = ledger.lease(key, time.time() + 60)
    before = time.perf_counter() - start
    result = evaluator.screen(policy)
    start = time.perf_counter()
    ledger.complete(lease, result["metrics"], {}, {}, "bench", result["seconds"])
    study.tell(record, Outcome(tuple(result["metrics"][name] for name in OBJECTIVES)))
    return {**result["seconds"], "bookkeeping": before + time.perf_counter() - start}


def bare_forward(bench: Workbench) -> float:
    """Median seconds of the dense file's forward pass over the screening's pictures, and nothing else."""
    part = bench.data.validation.take(slice(0, bench.settings.screen_pictures))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        file_logits(bench.reference, bench.data, part, 1)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def summarise(rows: list[dict[str, float]], reference_s: float) -> dict[str, object]:
    """Medians and shares."""
    seconds = {part.name: statistics.median(sum(row[kind] for kind in part.kinds) for row in rows) for part in PARTS}
    total = statistics.median(sum(row.values()) for row in rows)
    overhead = statistics.median(
        1 - sum(row[kind] for kind in ("forward", "probe")) / sum(row.values()) for row in rows
    )
    return {
        "seconds": seconds,
        "seconds_per_evaluation": total,
        "bare_forward_s": reference_s,
        "times_bare_forward": total / reference_s,
        "overhead_share": overhead,
    }


def main() -> None:
    """Measure every network and print the result."""
    torch.set_num_threads(1)
    print(json.dumps({name: measure(name) for name in SHAPES}, indent=2))


if __name__ == "__main__":
    main()
