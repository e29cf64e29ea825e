"""The Python interface; the command line calls the same functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..evaluators.data import DataSet
from ..evaluators.exact_integers import WITH_OPTION, options_here
from ..evaluators.macs import profile as profiled
from ..evaluators.models import load_weights
from ..evaluators.sources import as_dataset
from ..evaluators.supernet import Slimmable, Supernet
from ..evaluators.wrappers import unwrap
from ..policies.apply import restore
from ..policies.coding.press import decode
from ..policies.errors import ConfigError, DataError, InputError, ModelError, RunDirectoryError, WorkError
from ..policies.files import write_bytes
from ..policies.graph import ModelGraph
from ..policies.own_network import into_evaluation, own_copy, settle_calls
from ..policies.plain_layers import make_plain
from ..policies.plan import make_plan
from ..policies.policy import Policy
from ..policies.version import VERSION
from .caller_state import keep_caller_state
from .checking import check_command
from .config import Config, load_config, make_config
from .driver import run_stages
from .early_exits import ExitsFound, find_exits
from .exporting import export_member, export_weights, target_of
from .front import FrontData, Member
from .identity import Identity
from .ledger import LEDGER_FILE, Ledger
from .prepare import (
    OWN_DATA,
    OWN_MODEL,
    Given,
    Prepared,
    data_options,
    dense_network,
    network_for,
    prepare,
    read_data,
    shapes_taken,
)
from .profiling import run_profile
from .progress import Listener, Silence
from .report.sensitivity import Profile
from .rundir import RunDirectory, discard_unused, find_run, open_run, write_environment
from .session import Session
from .splits import META as SPLITS
from .splits import apply_choice, read_splits, recorded_choice
from .standing import Standing
from .summary import note_classes, note_layers, note_unknown, write_report

IDENTITY = "identity"
COMMAND = "command"
"""What the ledger calls the command that a run goes on with."""
TIMED_UNDER = "session options"
"""What the ledger calls the session option that latencies were measured under."""


@keep_caller_state()
def search(
    model: nn.Module | str | Path,
    data: object = None,
    budgets: Mapping[str, str | float] | None = None,
    *,
    evaluations: int | None = None,
    out: str | Path | None = None,
    listener: Listener | None = None,
    validation_from: str | None = None,
    **sections: Any,
) -> Front:
    """Search for the Pareto front of compressed versions of a trained network.

    Parameters
    ----------
    model
        A trained network whose forward pass takes (N, C, H, W) and gives logits (N, classes), or the path of a
        configuration file, which says everything (then ``data`` and ``budgets`` are left out).
    data
        Whatever ``evaluators.sources.as_dataset`` takes (arrays, loaders, a mapping of splits), or a data set's name;
        a network needs it.
    budgets
        Such as ``{"latency": "0.5x", "stored": "200kB", "error": "+1.0"}``; any subset.
    evaluations
        Candidates to screen.
    out
        Run directory; by default ``runs/`` with the network's or the configuration's name.
    listener
        Hears the progress; silent by default.
    validation_from
        Where the pictures come from on which candidates are compared, as ``data.validation_from`` of a configuration: by
        default a validation split in ``data``, else test pictures, since the network may have learned the others.
    sections
        Any further section of the configuration: ``space={...}``, ``search={...}``, ``recovery={...}``, ``seed=1``, ...

    Returns
    -------
    Front
        The final candidates, measured.

    Raises
    ------
    InputError
        Where something given is wrong.
    WorkError
        Where the work failed; what was recorded is kept, and the run can be resumed.
    """
    listener = listener or Silence()
    if not isinstance(model, str | Path | nn.Module):
        raise ModelError(f"expected an nn.Module or the path of a configuration, got a {type(model).__name__}")
    if isinstance(model, str | Path):
        config = load_config(Path(model))
        if data is not None or budgets is not None or validation_from is not None or sections:
            raise InputError(
                "a configuration file says everything; leave out data, budgets and sections, or change the file"
            )
        if evaluations is not None:
            config = make_config(config.model_dump(), (f"search.evaluations={evaluations}",))
        return run_search(config, Path(out or Path("runs") / Path(model).stem), listener)
    if data is None:
        raise InputError(
            "a network alone is nothing to search on; give data: arrays, a loader, or a name such as 'digits'"
        )
    plain: dict[str, Any] = {"model": {"name": OWN_MODEL}, "budgets": dict(budgets or {}), **sections}
    if evaluations is not None:
        plain["search"] = {**plain.get("search", {}), "evaluations": evaluations}
    plain["data"] = {"name": data if isinstance(data, str) else OWN_DATA, "validation_from": validation_from}
    config = make_config(plain)
    given = _given(model, None if isinstance(data, str) else data, config, listener)
    return run_search(config, Path(out or Path("runs") / type(model).__name__.lower()), listener, given)


def resume(
    directory: str | Path,
    *,
    model: nn.Module | None = None,
    data: object = None,
    listener: Listener | None = None,
    changes: Sequence[str] = (),
) -> Front:
    """Go on where a search stopped, whatever stopped it.

    Parameters
    ----------
    directory
        What ``search`` wrote to.
    model, data
        The same objects again, where the run was started with objects.
    changes
        Of ``pool`` alone, such as ``("pool.kind=in-process",)``: where the work is done changes no measurement.

    Raises
    ------
    ConfigError
        Where anything else is to be changed.
    RunDirectoryError
        Where there is no run, or none was a search, or its network was an object and none is given.
    """
    _check_searched(find_run(Path(directory))[0])
    found = go_on(directory, model=model, data=data, listener=listener, changes=changes)
    assert isinstance(found, Front)
    return found


@keep_caller_state()
def go_on(
    directory: str | Path,
    *,
    model: nn.Module | None = None,
    data: object = None,
    listener: Listener | None = None,
    changes: Sequence[str] = (),
) -> Front | Profile | ExitsFound:
    """Go on with what was asked for in a directory: its search, or else its profile or early exits.

    The parameters and errors are those of ``resume``.
    """
    run, config = find_run(Path(directory))
    for change in changes:
        if change.partition("=")[0].strip().partition(".")[0] != "pool":
            raise ConfigError(
                f"--set {change}: a run goes on with its own configuration but for pool.*; search with another --out instead"
            )
    if changes:
        config = make_config(config.model_dump(mode="json"), tuple(changes))
    if (config.model.name == OWN_MODEL and model is None) or (config.data.name == OWN_DATA and data is None):
        raise RunDirectoryError(
            f"the run in {directory} was started from Python with objects; give them again:"
            f" resume({str(directory)!r}, model=..., data=...)"
        )
    listener = listener or Silence()
    given = _given(model, data, config, listener)
    work: dict[str, Callable[[Config, Path, Listener, Given], Front | Profile | ExitsFound]] = {
        "search": run_search,
        "profile": profile,
        "exits": early_exits,
    }
    return work[asked_of(run)](config, run.path, listener, given)


def _given(model: nn.Module | None, data: object, config: Config, listener: Listener) -> Given:
    """What the caller hands over, the network out of its wrappers and the data as that takes it."""
    network = None if model is None else unwrap(model)
    if data is None:
        return Given(network)
    takes = shapes_taken(config, network)
    return Given(network, as_dataset(data, report=listener.say, takes=takes, **data_options(config)))


def asked_of(run: RunDirectory) -> str:
    """The command that a run goes on with: ``search`` where one was ever asked for, else ``profile`` or ``exits``."""
    if not (run.path / LEDGER_FILE).is_file():
        return "search"
    with Ledger.read(run.path) as ledger:
        return ledger.meta(COMMAND) or "search"


def _check_searched(run: RunDirectory) -> None:
    command = asked_of(run)
    if command != "search":
        raise RunDirectoryError(
            f"{run.path} holds what '{command}' made and no search; expected a directory that was searched:"
            f" 'paretopress search {run.config} --out {run.path}' begins a search there"
        )


def open_front(directory: str | Path) -> Front:
    """The front of a finished run.

    Raises
    ------
    RunDirectoryError
        Where there is no run, none was a search, or it is not finished.
    """
    run, config = find_run(Path(directory))
    _check_searched(run)
    return Front(run, config, FrontData.read(run.front), Given())


@keep_caller_state()
def slimmable(directory: str | Path) -> Slimmable:
    """One network that takes on any shape of a run's front at run time, with the weights of the run's supernet.

    The front's finalists were trained on their own and are better than the same shapes here; all of these together are as
    large as the largest alone.

    Parameters
    ----------
    directory
        A run that searched shapes.

    Raises
    ------
    ConfigError
        Where the run searched no shapes.
    """
    front = open_front(directory)
    config, data = front.config, apply_choice(front.config, read_data(front.config, lambda _: None))
    if config.space.shape is None:
        raise ConfigError(f"{directory}: the run searched no shapes; give one whose configuration has space.shape")
    model = dense_network(config, data, front.run, lambda _: None)
    load_weights(model, config.space.shape.supernet.weights or str(front.run.supernet))
    calibration = data.preprocess(data.calibration.images)
    supernet = Supernet(into_evaluation(model), calibration[:1], int(model(calibration[:1]).shape[1]))
    return supernet.slimmable([member.policy.shape for member in front], calibration)


@keep_caller_state()
def run_search(config: Config, out: Path, listener: Listener, given: Given | None = None) -> Front:
    """Start or take up a run: what both interfaces do."""
    given = given or Given()
    with open_session(config, out, listener, given, "search") as session:
        try:
            found = run_stages(session)
        except BaseException:
            # What stopped the run is the error to tell.
            with suppress(Exception):
                write_report(session.run, config, session.ledger)
            raise
        write_report(session.run, config, session.ledger)
    return Front(session.run, config, found, given)


@keep_caller_state()
def profile(config: Config, out: Path, listener: Listener | None = None, given: Given | None = None) -> Profile:
    """Build the bank of a configuration and write ``sensitivity.html``; a search in the same directory goes on from it.

    Parameters
    ----------
    config, out
        What is looked at, and the run directory.
    """
    if config.space.shape is not None:
        raise ConfigError("space.shape: sensitivity curves are of one network's layers; leave out space.shape")
    with open_session(config, out, listener or Silence(), given or Given(), "profile") as session:
        return run_profile(session)


@keep_caller_state()
def early_exits(config: Config, out: Path, listener: Listener | None = None, given: Given | None = None) -> ExitsFound:
    """Give the network of a configuration early exits; ``exits.json``, ``exits.html`` and the exported files are written.

    Parameters
    ----------
    config, out
        Whose ``exits`` say how, and the run directory.
    """
    with open_session(config, out, listener or Silence(), given or Given(), "exits") as session:
        return find_exits(session)


@contextmanager
def open_session(
    config: Config, out: Path, listener: Listener, given: Given, command: str = "search"
) -> Iterator[Session]:
    """Everything prepared for a run in this directory, and its ledger open; the command is what it goes on with."""
    searched = command != "exits"
    absent = [place for place in out.absolute().parents if not place.exists()]
    is_new = not RunDirectory(out).config.is_file()
    run = open_run(out, config, listener.say)
    try:
        with Ledger(run.path) as ledger:
            _note_command(ledger, command)
            earlier = recorded_choice(ledger)
            prepared = prepare(config, run, listener.say, given, searched=searched, validation_from=earlier)
            for note in check_command(command, config, prepared.bench):
                listener.say(note)
            # Measurements of shapes hang on a supernet besides, which nothing but their search trains.
            _claim(
                ledger, run, prepared, "context" if searched or config.space.shape is None else "context of the network"
            )
            _claim_timing(ledger, run)
            write_bytes(run.reference, prepared.bench.reference)
            write_environment(run, prepared.threads, prepared.workers, config.seed)
            note_layers(ledger, prepared.bench.graph)
            note_unknown(ledger, profiled(prepared.bench.model, prepared.example).unknown_operations)
            if prepared.bench.supernet is not None:
                note_classes(ledger, prepared.bench.supernet.num_classes, prepared.data.input_shape[0])
            yield Session(config, run, prepared, ledger, listener)
    except (ConfigError, DataError, ModelError):
        if is_new:
            discard_unused(run, absent)
        raise


def _note_command(ledger: Ledger, command: str) -> None:
    """A search stands above what else is asked for in its directory; runs that noted nothing were searches."""
    known = ledger.meta(COMMAND) or (ledger.meta("context") and "search")
    if known != "search":
        ledger.set_meta(COMMAND, command)


def _claim(ledger: Ledger, run: RunDirectory, prepared: Prepared, name: str) -> None:
    """Refuse a run whose measurements do not hold for what was prepared."""
    context = f"{VERSION} {prepared.context_hash}"
    recorded = ledger.meta(name)
    if recorded is not None and recorded != context:
        parts = ledger.meta(f"{name}: {IDENTITY}")
        # Runs of older releases tell nothing but that something differs.
        known = [] if parts is None else prepared.identity.differences(Identity.from_text(parts))
        differing = "; ".join(known) or "what it was, this run has not recorded"
        raise RunDirectoryError(
            f"{run.path} holds a run on another network or other data, or of another release; differing: {differing}."
            " Give what it was started with, or choose another directory"
        )
    if recorded is None or not read_splits(ledger):
        ledger.set_meta(SPLITS, json.dumps(prepared.splits.record))
    if recorded is None:
        ledger.set_meta(f"{name}: {IDENTITY}", prepared.identity.to_text())
        # Last, so that a run that has begun always says with which pictures.
        ledger.set_meta(name, context)


def _claim_timing(ledger: Ledger, run: RunDirectory) -> None:
    """Refuse a run whose latencies were measured under another session option: 8-bit layers take another time with it."""
    # Runs that noted nothing had the option on every processor.
    recorded = ledger.meta(TIMED_UNDER) or (WITH_OPTION if ledger.rows(state="done") else options_here())
    if recorded != options_here():
        raise RunDirectoryError(
            f"{run.path} holds latencies that were measured with {recorded} in ONNX Runtime, and this processor runs 8-bit"
            f" layers with {options_here()}: such latencies cannot be compared. Go on with the run on a processor such as"
            f" {run.environment.name} names, or choose another directory"
        )
    ledger.set_meta(TIMED_UNDER, recorded)


@dataclass(frozen=True)
class Front:
    """The final candidates of a run, ordered by error.

    Parameters
    ----------
    run, config, found
        Where it lies, how it was made, its content.
    given
        Objects that the run was started with.
    """

    run: RunDirectory
    config: Config
    found: FrontData
    given: Given

    def __len__(self) -> int:
        return len(self.found)

    def __iter__(self) -> Iterator[Candidate]:
        return (Candidate(self, member) for member in self.found)

    def __getitem__(self, index: int) -> Candidate:
        return Candidate(self, self.found.members[index])

    @property
    def baseline(self) -> Mapping[str, Any]:
        """The dense network's metrics."""
        return self.found.baseline

    def pick(self, choice: str = "knee") -> Candidate:
        """A member by ``knee``, its id, or a condition such as ``stored_bytes<=50000``; its ``standing`` tells of budgets."""
        return Candidate(self, self.found.pick(choice))


@dataclass(frozen=True)
class Candidate:
    """One member of a front.

    Parameters
    ----------
    front
        The front it stands in.
    member
        Its policy and metrics.
    """

    front: Front
    member: Member

    @property
    def policy(self) -> Policy:
        """What was done."""
        return self.member.policy

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What was measured."""
        return self.member.metrics

    @property
    def standing(self) -> Standing:
        """Where it stands with the budgets: promised on validation pictures, kept or missed on the test split."""
        return self.member.standing

    def __str__(self) -> str:
        """Return id, figures and standing in a line."""
        figures = f"{self.metrics['error_pct']:.2f} % error, {self.metrics['stored_bytes']:,} B stored"
        return f"{self.member.id}: {figures}; budgets: {self.standing.text if self.front.found.budgets else 'none'}"

    @property
    def controls(self) -> Mapping[str, Mapping[str, Any]]:
        """What its controls came to, by their names; none where none were asked for or none applies."""
        return self.member.controls

    @keep_caller_state()
    def export(self, path: str | Path, to: str | None = None) -> Path:
        """Write a deployable file: ``onnx``, ``press`` or ``bundle`` (a directory), by default what the path's ending says.

        ``safetensors`` are the plain weights of a member whose policy sets the network's shape alone.
        """
        run, target = self.front.run, target_of(Path(path), to)
        if target == "safetensors":
            return export_weights(run, self.member, self.model, Path(path))
        return export_member(run, self.front.found, self.member, Path(path), target)

    @keep_caller_state()
    def model(self) -> nn.Module:
        """A plain ``nn.Module`` with the compressed weights, as the ``.press`` file holds them (inputs in float32)."""
        network, data = self._network()
        content = self.front.run.artefact(self.member.id, "model.press")
        if not content.is_file():
            raise WorkError(f"{content} is missing; 'paretopress resume {self.front.run.path}' makes it again")
        example = data.preprocess(data.calibration.images[:1])
        network = make_plain(into_evaluation(network), example).model
        # What is handed out is the caller's own network and nothing of ours; what is traced must not change its example.
        traced = own_copy(network)
        settle_calls(traced, example)
        graph = ModelGraph.trace(traced, example, of_shape=self.policy.shape)
        return restore(make_plan(self.policy, graph), graph, network, decode(content.read_bytes()).tensors)

    def _network(self) -> tuple[nn.Module, DataSet]:
        given, config = self.front.given, self.front.config
        if (given.model is None and config.model.name == OWN_MODEL) or (
            given.data is None and config.data.name == OWN_DATA
        ):
            raise RunDirectoryError(
                "the run was started from Python with objects; use the front that search() returned"
            )
        data = given.data or apply_choice(config, read_data(config, lambda _: None, given.model))
        if self.policy.shape:
            return network_for(self.policy, config, data), data
        if given.model is not None:
            return own_copy(given.model), data
        return dense_network(config, data, self.front.run, lambda _: None), data
