"""A worker's function, and how it reaches the worker's process."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..policies.policy import Policy
from .candidate import CandidateEvaluator
from .controls import FIDELITY, control
from .pool import Job
from .torchvision_guard import import_torchvision
from .workbench import Workbench


@dataclass(frozen=True)
class CandidateFactory:
    """Makes a worker's function: job in, result out."""

    bench: Workbench

    def __reduce__(self) -> tuple[Any, ...]:
        # The network's class may live in timm or torchvision, which need the guard before they are first imported.
        return _rebuild, (_Guard("torchvision" in sys.modules), self.bench)

    def __call__(self) -> CandidateWorker:
        torch.set_num_threads(self.bench.threads)
        return CandidateWorker(CandidateEvaluator(self.bench))


@dataclass(frozen=True)
class _Guard:
    """Imports torchvision safely while it is unpickled."""

    needed: bool

    def __reduce__(self) -> tuple[Any, ...]:
        return _guarded, (self.needed,)


def _guarded(needed: bool) -> _Guard:
    if needed:
        import_torchvision()
    return _Guard(needed)


def _rebuild(_: _Guard, bench: Workbench) -> CandidateFactory:
    return CandidateFactory(bench)


@dataclass(frozen=True)
class CandidateWorker:
    """Carries out a job at the rung that it names."""

    evaluator: CandidateEvaluator

    def receive(self, value: Mapping[str, bytes]) -> None:
        """What the pool shares: the bank's files."""
        self.evaluator.adopt(value)

    def __call__(self, job: Job) -> dict[str, Any]:
        policy = Policy.from_text(job.policy_json)
        evaluator = self.evaluator.of_shape(policy.shape).with_halved_batches(int(job.payload.get("halvings", 0)))
        match job.fidelity:
            case "profile":
                return evaluator.profile(policy, Policy.from_text(job.payload["around"]))
            case "kernels":
                return evaluator.kernels(policy)
            case "stitch":
                return evaluator.stitch(policy, float(job.payload["hopeless_kl"]))
            case "screen":
                return evaluator.screen(policy)
            case "tune":
                return evaluator.tune(policy, int(job.payload["seed"]))
            case "recover":
                return evaluator.recover(policy, int(job.payload["seed"]))
            case rung if rung.startswith(FIDELITY):
                return control(evaluator, rung, policy, job.payload)
        raise AssertionError(f"no rung is called {job.fidelity}")
