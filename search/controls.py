"""The controls of the front's members: trained on the pool, their files tested once, beside the members in the front."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from ..evaluators.accuracy import bounds, error_interval, file_error
from ..evaluators.controls import FIDELITY, applicable, epochs_of
from ..evaluators.cores import all_cores
from ..evaluators.holdout import whole_test
from ..evaluators.models import save_weights
from ..evaluators.training.loop import Recipe
from ..evaluators.training.lottery import Control, train_early
from ..evaluators.untrained import Untrained
from ..policies.errors import ParetopressError
from .dispatch import Dispatcher
from .front import FrontData, Member
from .intervals import with_intervals
from .ledger import Evaluation, EvaluationKey
from .prepare import OWN_MODEL
from .session import Session
from .splits import describe_recipe, trained_here

TESTED = "control_test:"
"""What the rung begins with on which a control's file is read against the test pictures."""


@dataclass(frozen=True)
class Controls:
    """What follows the front, where controls are asked for.

    Parameters
    ----------
    session
        The run.
    dispatching
        Opens a pool of workers for a session.
    """

    session: Session
    dispatching: Callable[[Session], AbstractContextManager[Dispatcher]]

    def of(self, found: FrontData) -> FrontData:
        """The front with the figures of its members' controls; what failed is recorded and said with them."""
        wanted = [(member, control) for member in found for control in self._for(member)]
        self._train(wanted)
        for member, control in wanted:
            self._test(member, control)
        members = [replace(member, controls=self._figures(member)) for member in found]
        return replace(found, members=tuple(members))

    def _for(self, member: Member) -> list[Control]:
        asked = self.session.config.controls.which
        return [control for control in applicable(member.policy) if control in asked]

    def _train(self, wanted: list[tuple[Member, Control]]) -> None:
        pending = []
        for member, control in wanted:
            key = self._key(member, FIDELITY, control)
            row = self.session.ledger.register(key, member.policy.to_json(), "control", {})
            if row.state == "done" and not self.session.run.holds(member.id, row.artefacts):
                self.session.ledger.reopen(key, "its files are missing or damaged")
            if self.session.ledger.get(key).state == "pending":
                pending.append((key, self._payload(member, control)))
        if not pending:
            return
        self.session.listener.say(f"training {len(pending)} controls of the front's members")
        rewinds = any(key.fidelity == f"{FIDELITY}rewind" for key, _ in pending)
        with self.dispatching(self._prepared(rewinds)) as dispatcher:
            self._dispatch(dispatcher, pending)

    def _dispatch(self, dispatcher: Dispatcher, pending: list[tuple[EvaluationKey, dict[str, Any]]]) -> None:
        def told(row: Evaluation) -> None:
            name, what = row.key.fidelity.removeprefix(FIDELITY), f"failed: {row.error}"
            if row.state == "done":
                what = f"{row.values['error_pct']:.2f} % error on validation pictures"
            self.session.listener.say(f"  {name} of {row.key.policy_hash[:12]}: {what}")

        recovery = max(1, self.session.config.recovery.epochs)
        longest: dict[str, int] = {}
        for key, payload in pending:
            longest[key.fidelity] = max(longest.get(key.fidelity, 1), payload["epochs"])
        # What recovery took is known where this process did it; before, the least time is taken for each of its epochs.
        dispatcher.as_long_as = {rung: ("recover", epochs / recovery) for rung, epochs in longest.items()}
        dispatcher.on_done = told
        dispatcher.run(pending)

    def _payload(self, member: Member, control: Control) -> dict[str, Any]:
        dense, macs = self.session.baseline["macs"], float(member.metrics["macs"])
        epochs = epochs_of(control, self._recipe.epochs, dense, macs)
        press = self.session.run.artefact(member.id, "model.press").read_bytes()
        return {"seed": self._key(member, FIDELITY, control).seed, "epochs": epochs, "press": press}

    def _test(self, member: Member, control: Control) -> None:
        """Read the control's file once against the test pictures."""
        trained = self.session.ledger.get(self._key(member, FIDELITY, control))
        if trained.state != "done":
            return
        key, ledger = self._key(member, TESTED, control), self.session.ledger
        row = ledger.register(key, member.policy.to_json(), "control", {})
        if row.state == "done" and row.artefacts != trained.artefacts:
            ledger.reopen(key, "its file was made again and is not the one that was tested")
        elif row.state != "pending":
            return
        lease, start, prepared = ledger.lease(key, time.time()), time.perf_counter(), self.session.prepared
        try:
            onnx = self.session.run.artefact(member.id, f"{control}.onnx").read_bytes()
            assert prepared.data.test is not None
            error = file_error(onnx, prepared.data, prepared.data.test, prepared.threads * prepared.workers)
            values = {"error_pct": error, **bounds("error_ci95", error_interval(error, len(prepared.data.test)))}
            ledger.complete(lease, values, {}, trained.artefacts, "driver", {"total": time.perf_counter() - start})
        except ParetopressError as error:
            ledger.fail(lease, type(error).__name__, str(error))

    def _figures(self, member: Member) -> dict[str, dict[str, Any]]:
        return {control: self._figure(member, control) for control in self._for(member)}

    def _figure(self, member: Member, control: Control) -> dict[str, Any]:
        trained = self.session.ledger.get(self._key(member, FIDELITY, control))
        if trained.state != "done":
            return {"failed": f"{trained.error_class}: {trained.error}"}
        tested = self.session.ledger.get(self._key(member, TESTED, control))
        if tested.state != "done":
            return {"failed": f"{tested.error_class}: {tested.error}"}
        counted = {name: int(trained.values[name]) for name in ("epochs", "stored_bytes", "onnx_bytes")}
        validation = {"validation_error_pct": trained.values["error_pct"]}
        whole = whole_test(self.session.prepared.data, trained.values["error_pct"], tested.values["error_pct"])
        return with_intervals({**tested.values, **validation, **whole}) | counted

    def _key(self, member: Member, prefix: str, control: Control) -> EvaluationKey:
        return self.session.key(member.policy, f"{prefix}{control}")

    @property
    def _recipe(self) -> Recipe:
        section = self.session.config.controls.recipe_for(self.session.config.model)
        assert section is not None, "the configuration has been checked"
        return section.recipe()

    def _prepared(self, rewinds: bool) -> Session:
        """The session with a workbench that says how networks begin."""
        session, model, data = self.session, self.session.config.model, self.session.prepared.data
        untrained = Untrained(
            self._recipe,
            None if model.name == OWN_MODEL else model.name,
            model.num_classes or data.num_classes,
            data.input_shape[0],
            model.arguments,
            session.config.seed if model.weights is None and model.train is not None else None,
        )
        if rewinds and session.config.controls.rewind_epochs:
            untrained = replace(untrained, early=self._early(untrained))
        bench = replace(session.prepared.bench, untrained=untrained)
        return replace(session, prepared=replace(session.prepared, bench=bench))

    def _early(self, untrained: Untrained) -> dict[str, Tensor]:
        """The dense network's state after the first epochs of its training, which are done again once for a run."""
        path, epochs = self.session.run.early, self.session.config.controls.rewind_epochs
        if not path.is_file():
            self.session.listener.say(f"training the dense network's first epochs again, to rewind to: {epochs}")
            network = untrained.initial()
            data, seed = self.session.prepared.data.without_test(), self.session.config.seed
            with all_cores():
                train_early(network, data, self._recipe, epochs, seed=seed)
            recipe = describe_recipe(self.session.config, train=asdict(self._recipe), epochs=epochs)
            save_weights(network, path, trained_here(self.session.prepared.splits.data, recipe).metadata())
        return load_file(path)
