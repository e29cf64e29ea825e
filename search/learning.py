"""Learned architectures as candidates: each training's policy is tried like any other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor

from ..evaluators.learning import POLICY_FILE
from ..evaluators.training.learned import Learning
from ..policies.plan import make_plan
from ..policies.policy import Policy, Step
from ..spaces.thresholds import sparsities_by_threshold
from .dispatch import Dispatcher
from .ledger import EvaluationKey
from .rundir import sha256
from .session import DENSE, Session

RUNG, ORIGIN, BESIDE = "learn", "learned", "magnitude"
FINE = 1e-4
"""Grid of a layer's sparsity where parameters are to be equal."""


@dataclass(frozen=True)
class LearningStage:
    """Learns the architectures that the space names, and screens what they come to beside what the sampler asks for.

    A training is a row of the ledger on a rung of its own, with its widths and its error. Its policy names the neurons that are
    left, so that the candidate starts from the dense network and is recovered, tested and exported as all others are.
    """

    session: Session

    def __call__(self, dispatcher: Dispatcher) -> None:
        """Learn, then screen; a training that leaves no network is recorded as failed, and the others go on."""
        learnings = self.session.config.space.learned.learnings()
        if not learnings:
            return
        self.learn(dispatcher)
        self._screen(dispatcher, {learning: found for learning in learnings if (found := self._policy(learning))})

    def learn(self, dispatcher: Dispatcher) -> None:
        """The trainings alone; those that are recorded are not made again."""
        learnings = self.session.config.space.learned.learnings()
        if learnings:
            self._learn(dispatcher, learnings)

    def _learn(self, dispatcher: Dispatcher, learnings: Sequence[Learning]) -> None:
        self.session.listener.say(f"learning {len(learnings)} architectures")
        told = {self._key(learning): learning for learning in learnings}
        for key, learning in told.items():
            row = self.session.ledger.register(key, DENSE.to_json(), ORIGIN, _knobs(learning))
            if row.state == "done" and self._stored(key) is None:
                self.session.ledger.reopen(key, "its file is missing or damaged")
        dispatcher.on_done = lambda row: self.session.listener.say(f"  {_line(told[row.key], row.values, row.error)}")
        dispatcher.run((key, {"learning": learning, "seed": key.seed}) for key, learning in told.items())

    def _screen(self, dispatcher: Dispatcher, found: Mapping[Learning, Policy]) -> None:
        keys = []
        for learning, policy in found.items():
            plan = make_plan(policy, self.session.prepared.bench.graph)
            if plan.policy == DENSE:
                continue
            keys.append(self.session.key(plan.policy, "screen"))
            self.session.ledger.register(keys[-1], plan.policy.to_json(), ORIGIN, _knobs(learning))
            if self.session.config.space.learned.compare:
                keys.extend(self._beside(learning))
        dispatcher.on_done = lambda _: None
        # Two prices may come to the same network.
        dispatcher.run((key, {}) for key in dict.fromkeys(keys))

    def _beside(self, learning: Learning) -> Iterator[EvaluationKey]:
        """The dense network with as many parameters as a learned one, by one magnitude threshold for all its layers."""
        bench, params = self.session.prepared.bench, self.session.ledger.get(self._key(learning)).values["params"]
        weights = {
            name: cast(Tensor, bench.model.get_submodule(name).weight).detach().numpy()
            for name, layer in bench.graph.layers.items()
            if layer.groups == 1
        }
        of_weights = sum(values.size for values in weights.values())
        share = (self.session.baseline["params"] - params) / of_weights
        if not 0 < share < 1:
            return
        found = sparsities_by_threshold(weights, share, FINE).items()
        policy = Policy({name: (Step.of("prune_magnitude", sparsity=sparsity),) for name, sparsity in found})
        policy = make_plan(policy, bench.graph).policy
        key = self.session.key(policy, "screen")
        self.session.ledger.register(key, policy.to_json(), BESIDE, _knobs(learning))
        yield key

    def _policy(self, learning: Learning) -> Policy | None:
        """What a training came to, or ``None`` where it failed."""
        stored = self._stored(self._key(learning))
        return None if stored is None else Policy.from_text(stored.decode())

    def _stored(self, key: EvaluationKey) -> bytes | None:
        row = self.session.ledger.get(key)
        path = self.session.run.artefact(key.policy_hash[:12], POLICY_FILE)
        content = path.read_bytes() if row.state == "done" and path.is_file() else b""
        return content if row.artefacts.get(POLICY_FILE) == sha256(content) else None

    def _key(self, learning: Learning) -> EvaluationKey:
        return self.session.key_of(learning.digest, RUNG)


def _knobs(learning: Learning) -> dict[str, Any]:
    penalty = learning.penalty
    lambdas = {"lambda": penalty.neurons, "layers": penalty.layers, "binary": penalty.binary}
    return {"learning": learning.digest[:12], "kind": learning.kind, **lambdas}


def _line(learning: Learning, values: Mapping[str, float], error: str | None) -> str:
    if not values:
        return str(error)
    what = f"lambda {learning.penalty.neurons:g} ({learning.kind})"
    return f"{what}: {values['params']:,.0f} parameters, {values['error_pct']:.2f} % error"
