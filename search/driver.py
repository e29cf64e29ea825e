"""The main job: screen many policies, recover the best, measure the files that ship, write the front.

ask -> lease -> evaluate -> record -> tell, over the ledger. Whatever stops a run, starting it again on the same directory
goes on from what was recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from ..evaluators.pool import InProcessPool, Pool
from ..evaluators.ray_pool import RayPool
from ..evaluators.tune import Scheduler, TunePool
from ..evaluators.worker import CandidateFactory
from ..policies.files import write_bytes, write_text
from .banking import Banking
from .certainty import PairedErrors, excess, pictures_needed
from .controls import Controls
from .dispatch import Dispatcher, KeepArtefacts
from .finals import Finals
from .front import FrontData
from .learning import LearningStage
from .ledger import EvaluationKey
from .rundir import sha256
from .screening import Screening
from .session import Session


def run_stages(session: Session) -> FrontData:
    """Go on to the end of a run, and write its front.

    Raises
    ------
    SearchError
        Where every candidate failed.
    """
    baseline = session.baseline
    size, latency = baseline["stored_bytes"] / 1000, baseline["latency_ms"]
    session.listener.say(f"dense: {baseline['error_pct']:.2f} % error, {size:.1f} kB stored, {latency:.3f} ms")
    session.tell_drift()
    too_few = doubt_of_all(session)
    if too_few is not None:
        session.listener.say(too_few)
    finals, by_trials = Finals(session), session.config.pool.train == "tune"
    # Where trainings are trials, one pool is closed before the other opens: either reserves every core.
    if by_trials and session.config.space.learned.learnings():
        with training(session, "learn") as dispatcher:
            LearningStage(session).learn(dispatcher)
    with dispatching(session) as dispatcher:
        LearningStage(session)(dispatcher)
        Screening(session)(dispatcher)
        finalists = finals.choose(dispatcher)
        if not by_trials:
            finals.recover(dispatcher, finalists)
    if by_trials:
        with training(session, "recover", session.config.recovery.scheduler) as dispatcher:
            finals.recover(dispatcher, finalists)
    # The pool is closed: nothing else runs while latency is measured.
    finals.test(finalists)
    found = finals.front(finalists)
    for member in found:
        write_text(session.run.policy(member.id), member.policy.to_yaml())
    found.write(session.run.front)
    if session.config.controls.which:
        opening = partial(training, stage="controls") if by_trials else dispatching
        found = Controls(session, opening).of(found)
        found.write(session.run.front)
    return found


def doubt_of_all(session: Session) -> str | None:
    """Return a sentence where too few validation pictures make any member certain, with the number that would do."""
    budget, confidence = session.error_budget, session.config.search.confidence
    if budget is None:
        return None
    pictures, dense_pct = len(session.prepared.data.validation), session.baseline["validation_error_pct"]
    if excess(budget, PairedErrors.without_loss(pictures, dense_pct), confidence) <= 0:
        return None
    text, needed = session.config.budgets[budget.name], pictures_needed(budget, dense_pct, confidence)
    if needed is None:
        return (
            f"budgets.error: {text}: a network that answers as the dense one does ({dense_pct:.2f} % error on validation"
            f" pictures) is on no number of pictures {confidence:.0%} certain to keep it; expected a budget that allows a loss."
            " Members that are not better than the dense network are ordered by the upper bound of their error and marked as not"
            " certain"
        )
    return (
        f"budgets.error: {text}: {pictures:,} validation pictures are too few for a network that loses nothing to be"
        f" {confidence:.0%} certain to keep it; expected at least {needed:,} (data.validation). With fewer, members that are"
        " not better than the dense network are ordered by the upper bound of their error and marked as not certain"
    )


@contextmanager
def dispatching(session: Session) -> Iterator[Dispatcher]:
    """A pool of workers, and who hands them their work."""
    with _pool(session) as pool:
        yield _dispatcher(session, pool)


@contextmanager
def training(session: Session, stage: str, scheduler: Scheduler = "none") -> Iterator[Dispatcher]:
    """The same for a stage's trainings, as trials of Ray Tune; what they kept is removed when all is recorded."""
    settings, prepared, recovery = session.config.pool, session.prepared, session.config.recovery
    factory = CandidateFactory(prepared.bench)
    with TunePool(
        factory,
        session.run.trials / stage,
        prepared.workers,
        prepared.threads,
        settings.address,
        scheduler=scheduler,
        max_epochs=recovery.epochs,
    ) as pool:
        # Layers of the bank need not be compressed again.
        pool.share(Banking(session).files())
        yield _dispatcher(session, pool)
    session.run.drop_trials(stage)


def _dispatcher(session: Session, pool: Pool) -> Dispatcher:
    recovery = session.config.recovery
    expected = {
        "recover": ("tune", max(1, recovery.epochs) / (recovery.tryout or 0.1)),
        # Nothing shorter is known when they begin.
        "learn": ("", float(session.config.space.learned.epochs)),
    }
    return Dispatcher(session.ledger, pool, session.config.pool.min_timeout_s, _keeper(session), as_long_as=expected)


def _keeper(session: Session) -> KeepArtefacts:
    def keep(key: EvaluationKey, artefacts: Mapping[str, bytes]) -> dict[str, str]:
        for name, content in artefacts.items():
            in_bank = key.fidelity == "profile"
            write_bytes(
                session.run.bank(name) if in_bank else session.run.artefact(key.policy_hash[:12], name), content
            )
        return {name: sha256(content) for name, content in artefacts.items()}

    return keep


def _pool(session: Session) -> Pool:
    settings, prepared = session.config.pool, session.prepared
    factory = CandidateFactory(prepared.bench)
    if settings.kind == "in-process":
        return InProcessPool(factory)
    return RayPool(factory, prepared.workers, prepared.threads, settings.address)
