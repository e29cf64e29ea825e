"""One candidate: from a policy to a compressed network, its files and what is measured on them."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..policies.apply import CompressedModel, apply_plan, round_vectors
from ..policies.batch_norms import settle_statistics
from ..policies.coding.memory import CodingMemory
from ..policies.coding.press import encode
from ..policies.compact import brief_policy, numbered
from ..policies.errors import CandidateError
from ..policies.export.onnx import export_onnx
from ..policies.export.tracing import OnnxTracer
from ..policies.folding import Norms, fold_scales, norms_around, round_scales
from ..policies.forms import is_input_quantized, weighted_modules
from ..policies.graph import input_energies
from ..policies.loading import NETWORK
from ..policies.plan import Plan, make_plan
from ..policies.policy import Policy, Scalar
from ..policies.stored_layers import write_layer
from .accuracy import ONNX_BATCH, bounds, count_mistakes, error_interval, file_mistakes
from .bank import Bank
from .counts import counted
from .data import DataSet, Pictures
from .fine_tuning import FineTuning
from .kernels import kernel_policy
from .latency import LatencyProbe
from .macs import Profile, nonzero_parameters, profile
from .memory import release_memory
from .observe import Observations
from .stitch import norms_after
from .stitched import StitchedRung
from .stopwatch import Stopwatch
from .training.checkpoints import UNKEPT, Checkpoints
from .training.loop import Recipe
from .workbench import Workbench

RANGE_PICTURES = 32
"""Calibration pictures that give a screened candidate's sums their 8-bit ranges; one that is shipped has all of them."""
KERNEL_PICTURES = 4
"""Calibration pictures where ranges are of no account, since nothing but time is measured."""
KERNEL_SHARE = 0.3
"""Of a screening's time for the latency probe: many variants are timed, and screenings correct what is summed from them."""


@dataclass(frozen=True)
class Candidate:
    """A compressed network with the two files that ship."""

    compressed: CompressedModel
    plain: nn.Module
    onnx: bytes
    press: bytes

    def profiled(self, example: Tensor) -> Profile:
        """One forward pass, counted."""
        int8 = [name for name, module in weighted_modules(self.compressed.model) if is_input_quantized(module)]
        return profile(self.plain, example, int8)

    def counted(self, counts: Profile) -> dict[str, float]:
        """What is counted rather than timed or tried: sizes, operations, memory, energy."""
        return {"stored_bytes": len(self.press), "onnx_bytes": len(self.onnx), **counted(counts, len(self.onnx))}


class CandidateEvaluator:
    """Builds and measures candidates on one workbench; made once in each worker."""

    def __init__(self, bench: Workbench, batch_size: int = ONNX_BATCH) -> None:
        self.bench = bench
        self._batch_size = batch_size
        self._calibration = bench.data.preprocess(bench.data.calibration.images)
        self._example = self._calibration[:1]
        self._tracer, self._memory = OnnxTracer(), CodingMemory()
        self._profiles: dict[str, Profile] = {}
        self._files: Mapping[str, bytes] = {}
        self._shaped: dict[tuple[tuple[str, Scalar], ...], CandidateEvaluator] = {}
        self._base: CandidateEvaluator | None = None

    def with_halved_batches(self, times: int) -> CandidateEvaluator:
        """The same with smaller batches, for a candidate that ran out of memory."""
        if not times:
            return self
        settings = self.bench.settings
        recipe = replace(settings.recovery, batch_size=max(2, settings.recovery.batch_size >> times))
        bench = replace(self.bench, settings=replace(settings, recovery=recipe))
        smaller = CandidateEvaluator(bench, max(1, self._batch_size >> times))
        smaller.adopt(self._files)
        return smaller

    def of_shape(self, shape: Mapping[str, Scalar]) -> CandidateEvaluator:
        """The same for the network of a shape; this one where a policy sets none. The last is kept.

        Raises
        ------
        PolicyError
            Where the workbench has no network of this shape.
        """
        if not shape:
            return self
        key = tuple(sorted(shape.items()))
        if key not in self._shaped:
            shaped = CandidateEvaluator(self.bench.of_shape(shape), self._batch_size)
            shaped._probe = self._probe
            shaped._base = self
            self._shaped = {key: shaped}
        return self._shaped[key]

    def build(self, policy: Policy, watch: Stopwatch, ranges: Tensor | None = None) -> Candidate:
        """Compress, without training; the exported sums' 8-bit ranges by these pictures (N, C, H, W), or by all."""
        with watch("build"):
            compressed = self._compress_plan(make_plan(policy, self.bench.graph))
        return self._package(compressed, watch, ranges)

    def screen(self, policy: Policy) -> dict[str, Any]:
        """The cheap rung: compressed as it is, the exported file tried on some validation pictures."""
        watch = Stopwatch()
        candidate = self.build(policy, watch, self._calibration[:RANGE_PICTURES])
        with watch("forward"):
            mistakes = self._mistakes(candidate.onnx, self._screening)
        metrics = self._measure(candidate, mistakes, watch)
        if not self.bench.settings.recovery.epochs:
            # No training follows, so that finalists are chosen by what is measured here.
            metrics |= self._counted_mistakes(mistakes)
        return {"metrics": metrics, "seconds": watch.seconds, "artefacts": {}}

    def stitch(self, policy: Policy, hopeless_kl: float) -> dict[str, Any]:
        """The lowest rung: layers of the bank in the dense network, one forward pass of some training pictures."""
        watch = Stopwatch()
        rung = self._rung
        with watch("build"):
            stitch = rung.bank.stitch(make_plan(policy, self.bench.graph))
        with watch("forward"):
            metrics = rung.measure_stitch(stitch, hopeless_kl)
        return {"metrics": metrics, "seconds": watch.seconds, "artefacts": {}}

    def profile(self, policy: Policy, around: Policy) -> dict[str, Any]:
        """A few layers compressed, all others dense; its bytes are those of the whole with the others as in ``around``."""
        watch = Stopwatch()
        rung, graph = self._rung, self.bench.graph
        with watch("build"):
            plan = make_plan(policy, graph)
            stitch = rung.bank.stitch(plan)
            whole = Policy({**around.layers, **policy.layers}, shape=policy.shape)
            stored_bytes = rung.bank.stitch(make_plan(whole, graph)).stored_bytes
        with watch("forward"):
            metrics = rung.measure_stitch(stitch)
        named = [variant for name, variant in stitch.variants.items() if name in policy.layers]
        # Of a dropped branch's output nothing is left; what the loss rises by is known for changed layers alone.
        errors = [1.0 for _ in plan.dropped] + [variant.relative_error for variant in named]
        if not plan.dropped:
            metrics["weighted_error"] = float(sum(variant.weighted_error for variant in stitch.variants.values()))
        metrics |= {
            "relative_error": float(np.mean(errors)) if errors else 0.0,
            "estimated_stored_bytes": float(stored_bytes),
            "layer_bytes": float(sum(variant.stored_bytes for variant in named)),
        }
        with watch("encode"):
            files = {f"{variant.digest}.press": write_layer(variant.module) for variant in named}
        return {"metrics": metrics, "seconds": watch.seconds, "artefacts": files}

    def kernels(self, policy: Policy) -> dict[str, Any]:
        """What a policy's kernels cost: exported, counted and timed, but not tried on pictures."""
        watch, few = Stopwatch(), self._calibration[:KERNEL_PICTURES]
        with watch("build"):
            compressed = self._compress_plan(make_plan(policy, self.bench.graph), few)
        candidate = self._package(compressed, watch, few)
        return {"metrics": self._cost(candidate, watch, KERNEL_SHARE), "seconds": watch.seconds, "artefacts": {}}

    def tune(self, policy: Policy, seed: int) -> dict[str, Any]:
        """The rung before the last: trained once on a share of the pictures, tried on the screening's validation pictures."""
        settings, data = self.bench.settings, self.bench.data
        few = data.train.take(slice(0, max(2, round(settings.tryout * len(data.train)))))
        watch = Stopwatch()
        recipe = replace(settings.recovery, epochs=1)
        candidate = self._tuned(policy, seed, watch, recipe, replace(data, train=few), UNKEPT)
        with watch("forward"):
            mistakes = self._mistakes(candidate.onnx, self._screening)
        metrics = self._measure(candidate, mistakes, watch) | self._counted_mistakes(mistakes)
        return {"metrics": metrics, "seconds": watch.seconds, "artefacts": {}}

    def recover(self, policy: Policy, seed: int, checkpoints: Checkpoints = UNKEPT) -> dict[str, Any]:
        """The last rung: fine-tuned with the teachers, the exported file tried on all validation pictures.

        Where fine-tuning did not help, or diverged, the candidate is kept as it was (``recovered`` is then 0, and
        where it diverged ``recovery_failed`` is 1). With checkpoints, a recovery that was killed is gone on with where it was.
        """
        watch = Stopwatch()
        best = self.build(policy, watch)
        validation = self.bench.data.validation
        with watch("forward"):
            mistakes = self._mistakes(best.onnx, validation)
        recipe, data, came = self.bench.settings.recovery, self.bench.data, {"recovered": 0.0}
        if recipe.epochs:
            try:
                tuned = self._tuned(policy, seed, watch, recipe, data, checkpoints)
                with watch("forward"):
                    tuned_mistakes = self._mistakes(tuned.onnx, validation)
            except CandidateError:
                came["recovery_failed"] = 1.0
            else:
                if tuned_mistakes.sum() <= mistakes.sum():
                    best, mistakes, came["recovered"] = tuned, tuned_mistakes, 1.0
        metrics = self._measure(best, mistakes, watch) | self._counted_mistakes(mistakes) | came
        return {
            "metrics": metrics,
            "seconds": watch.seconds,
            "artefacts": {"model.onnx": best.onnx, "model.press": best.press},
        }

    def validated(self, compressed: CompressedModel, watch: Stopwatch) -> dict[str, Any]:
        """A network that was made elsewhere: its files, and their error on all validation pictures; nothing is timed."""
        candidate = self._package(compressed, watch)
        validation = self.bench.data.validation
        with watch("forward"):
            error = 100 * float(np.mean(self._mistakes(candidate.onnx, validation)))
        interval = bounds("error_ci95", error_interval(error, len(validation)))
        sizes = {"stored_bytes": float(len(candidate.press)), "onnx_bytes": float(len(candidate.onnx))}
        return {
            "metrics": {"error_pct": error, **interval, **sizes},
            "seconds": watch.seconds,
            "artefacts": {"model.onnx": candidate.onnx, "model.press": candidate.press},
        }

    def _tuned(
        self,
        policy: Policy,
        seed: int,
        watch: Stopwatch,
        recipe: Recipe,
        data: DataSet,
        checkpoints: Checkpoints = UNKEPT,
    ) -> Candidate:
        """The candidate after fine-tuning."""
        self._make_room()
        with watch("train"):
            plan = make_plan(policy, self.bench.graph)
            compressed = self.fine_tuning.carry_out(plan, seed, recipe, data, checkpoints)
        return self._package(compressed, watch)

    def _make_room(self) -> None:
        """Before a training, which takes the most memory: nothing that can be made again stays beside it."""
        if "_rung" in vars(self):
            self._rung.forget()
        # Networks that were traced hold themselves in circles.
        gc.collect()
        release_memory()

    @cached_property
    def fine_tuning(self) -> FineTuning:
        """How candidates of this workbench are trained."""
        return FineTuning(self.bench, self._compress_plan, self._calibration, self._screening)

    def _compress_plan(self, plan: Plan, calibration: Tensor | None = None) -> CompressedModel:
        calibration = self._calibration if calibration is None else calibration
        # Which channels are dead is only known of the whole network.
        if plan.layers and not plan.dead and self._bank.can_make(plan):
            return self._bank.assemble(plan, calibration)
        return apply_plan(plan, self.bench.graph, self.bench.model, calibration, self._energies)

    def _package(self, compressed: CompressedModel, watch: Stopwatch, ranges: Tensor | None = None) -> Candidate:
        with watch("export"):
            settings, layers = self.bench.settings, compressed.plan.policy.layers
            settle_statistics(compressed.model)
            if layers and settings.compact:
                round_scales(compressed.model, settings.vector_bits)
                fold_scales(compressed.model, self._norms)
            if layers:
                round_vectors(compressed.model, settings.vector_bits)
            plain = compressed.plain()
            ranges = self._calibration if ranges is None else ranges
            onnx = export_onnx(compressed.model, self._example, calibration=ranges, plain=plain, tracer=self._tracer)
        with watch("encode"):
            press = self._press(compressed)
        return Candidate(compressed, plain, onnx, press)

    def _press(self, compressed: CompressedModel) -> bytes:
        settings, policy = self.bench.settings, compressed.plan.policy
        if not settings.compact:
            return encode(compressed.stored_once(), {"policy": policy.as_dict()}, self._memory, settings.coder)
        brief: dict[str, Any] = {"policy": brief_policy(policy, list(self.bench.graph.layers))}
        if settings.network is not None:
            brief[NETWORK] = settings.network
        return encode(numbered(compressed.stored(), compressed.model), brief, None, settings.coder, compact=True)

    def _measure(self, candidate: Candidate, mistakes: np.ndarray, watch: Stopwatch) -> dict[str, Any]:
        error = 100 * float(np.mean(mistakes))
        interval = bounds("error_ci95", error_interval(error, len(mistakes)))
        return {"error_pct": error, **interval, **self._cost(candidate, watch)}

    def _cost(self, candidate: Candidate, watch: Stopwatch, share: float = 1.0) -> dict[str, Any]:
        with watch("count"):
            counted = candidate.counted(self._profile(candidate))
        with watch("probe"):
            settings = self.bench.settings
            seconds = share * settings.screen_seconds
            latency = self._probe.measure(candidate.onnx, seconds=seconds, seed=settings.seed)
        return {
            "latency_ratio": latency.ratio,
            **bounds("latency_ratio_ci95", latency.interval),
            "latency_ms": latency.latency_ms,
            **counted,
        }

    def _profile(self, candidate: Candidate) -> Profile:
        """One forward pass counted, once for all networks of the same kernels: only their zeros differ."""
        plan = candidate.compressed.plan
        if plan.dead:
            return candidate.profiled(self._example)
        shape = kernel_policy(plan.policy).digest
        if shape not in self._profiles:
            self._profiles[shape] = candidate.profiled(self._example)
        return replace(self._profiles[shape], params=nonzero_parameters(candidate.plain))

    def _mistakes(self, onnx: bytes, split: Pictures) -> np.ndarray:
        return file_mistakes(onnx, self.bench.data, split, self.bench.threads, self._batch_size)

    def _counted_mistakes(self, mistakes: np.ndarray) -> dict[str, float]:
        """Return a candidate's mistakes on the first validation pictures beside the dense network's on the same ones."""
        return count_mistakes(mistakes, self._dense_mistakes[: len(mistakes)])

    @cached_property
    def _dense_mistakes(self) -> np.ndarray:
        """(N,) bool of all validation pictures; the dense network is the same one whatever shape is tried."""
        if self._base is not None:
            return self._base._dense_mistakes
        return self._mistakes(self.bench.reference, self.bench.data.validation)

    @cached_property
    def _rung(self) -> StitchedRung:
        bench = self.bench
        return StitchedRung(bench.model, self._bank, bench.data, bench.settings.stitch_pictures, bench.settings.seed)

    @cached_property
    def _bank(self) -> Bank:
        bench = self.bench
        seen = Observations.of(bench.model, bench.graph, self._calibration, bench.settings.seed)
        bank = Bank(bench.model, bench.graph, seen, self._energies, norms_after(bench.model), bench.settings.coder)
        bank.adopt(self._files)
        return bank

    def adopt(self, files: Mapping[str, bytes]) -> None:
        """Take layers that were compressed elsewhere: digest -> file."""
        self._files = files
        if "_bank" in vars(self):
            self._bank.adopt(files)

    @cached_property
    def _norms(self) -> Norms:
        return norms_around(self.bench.model)

    @cached_property
    def _energies(self) -> dict[str, Tensor]:
        return input_energies(self.bench.model, self._calibration, self.bench.graph.groups)

    @cached_property
    def _screening(self) -> Pictures:
        return self.bench.data.validation.take(slice(0, self.bench.settings.screen_pictures))

    @cached_property
    def _probe(self) -> LatencyProbe:
        return LatencyProbe(self.bench.reference, self._example.numpy(), self.bench.settings.latency_threads)
