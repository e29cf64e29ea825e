"""A worker's function, and how it reaches the worker's process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..policies.policy import Policy
from .candidate import CandidateEvaluator
from .controls import FIDELITY, control
from .learning import learn_architecture
from .memory import release_memory
from .paths import ModulePath
from .pool import Job
from .torchvision_guard import Guard
from .training.checkpoints import UNKEPT, Checkpoints
from .workbench import Workbench

QUICK = frozenset({"profile", "kernels", "stitch"})
"""Rungs that come by the hundreds, each in a fraction of a second."""


@dataclass(frozen=True)
class CandidateFactory:
    """Makes a worker's function: job in, result out."""

    bench: Workbench

    def __reduce__(self) -> tuple[Any, ...]:
        # The network's class may live where only the driver looks, or in timm or torchvision, which need the guard before
        # they are first imported.
        return _rebuild, (ModulePath.here(), Guard.here(), self.bench)

    def __call__(self) -> CandidateWorker:
        torch.set_num_threads(self.bench.threads)
        # The network's module may set another where it is imported.
        torch.set_default_dtype(torch.float32)
        return CandidateWorker(CandidateEvaluator(self.bench))


def _rebuild(_: ModulePath, __: Guard, bench: Workbench) -> CandidateFactory:
    return CandidateFactory(bench)


@dataclass(frozen=True)
class CandidateWorker:
    """Carries out a job at the rung that it names."""

    evaluator: CandidateEvaluator
    checkpoints: Checkpoints = UNKEPT

    def with_checkpoints(self, checkpoints: Checkpoints) -> CandidateWorker:
        """The same for one job whose trainings keep their states there."""
        return replace(self, checkpoints=checkpoints)

    def receive(self, value: Mapping[str, bytes]) -> None:
        """What the pool shares: the bank's files."""
        self.evaluator.adopt(value)

    def __call__(self, job: Job) -> dict[str, Any]:
        try:
            return self._carry_out(job)
        finally:
            # A worker may wait for long until its next job, beside others that need the memory.
            if job.fidelity not in QUICK:
                release_memory()

    def _carry_out(self, job: Job) -> dict[str, Any]:
        policy = Policy.from_text(job.policy_json)
        evaluator = self.evaluator.of_shape(policy.shape).with_halved_batches(int(job.payload.get("halvings", 0)))
        match job.fidelity:
            case "profile":
                return evaluator.profile(policy, Policy.from_text(job.payload["around"]))
            case "kernels":
                return evaluator.kernels(policy)
            case "stitch":
                return evaluator.stitch(policy, float(job.payload["hopeless_kl"]))
            case "learn":
                seed, halvings = int(job.payload["seed"]), int(job.payload.get("halvings", 0))
                learning = job.payload["learning"]
                return learn_architecture(evaluator.bench, learning, seed, halvings, self.checkpoints)
            case "screen":
                return evaluator.screen(policy)
            case "tune":
                return evaluator.tune(policy, int(job.payload["seed"]))
            case "recover":
                return evaluator.recover(policy, int(job.payload["seed"]), self.checkpoints)
            case rung if rung.startswith(FIDELITY):
                return control(evaluator, rung, policy, job.payload, self.checkpoints)
        raise AssertionError(f"no rung is called {job.fidelity}")
