"""A row of the ledger: its key, its table and its lease, as data."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ..policies.errors import CandidateError

State = Literal["pending", "leased", "done", "failed"]
STATES: tuple[State, ...] = get_args(State)

KEY_MATCHES = "policy_hash = ? AND fidelity = ? AND data_hash = ? AND seed = ? AND code_version = ?"
COLUMNS = (
    "policy_hash, fidelity, data_hash, seed, code_version, policy_json, origin, trial, state, attempt, epoch,"
    ' created_s, lease_deadline_s, started_s, finished_s, "values", constraints, artefacts, seconds,'
    " host, error_class, error"
)
CREATE_EVALUATIONS = """
CREATE TABLE evaluations (
    policy_hash TEXT NOT NULL, fidelity TEXT NOT NULL, data_hash TEXT NOT NULL, seed INTEGER NOT NULL,
    code_version TEXT NOT NULL,
    policy_json TEXT NOT NULL, origin TEXT NOT NULL, trial TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'leased', 'done', 'failed')),
    attempt INTEGER NOT NULL DEFAULT 0, epoch INTEGER NOT NULL DEFAULT 0,
    created_s REAL NOT NULL, lease_deadline_s REAL, started_s REAL, finished_s REAL,
    "values" TEXT NOT NULL DEFAULT '{}', constraints TEXT NOT NULL DEFAULT '{}', artefacts TEXT NOT NULL DEFAULT '{}',
    seconds TEXT NOT NULL DEFAULT '{}', host TEXT, error_class TEXT, error TEXT,
    UNIQUE (policy_hash, fidelity, data_hash, seed, code_version)
)"""
CREATE_TRIALS = """
CREATE TABLE trials (
    number INTEGER PRIMARY KEY, policy_hash TEXT NOT NULL, origin TEXT NOT NULL, choices TEXT NOT NULL,
    attributes TEXT NOT NULL
)"""
CREATE_META = "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)"


@dataclass(frozen=True)
class EvaluationKey:
    """What makes two evaluations the same.

    Parameters
    ----------
    policy_hash
        Digest of the normalised policy.
    fidelity
        Name of the rung on which it is measured.
    data_hash
        Digest of the data set.
    seed
        Seed of the evaluation, 0 to 2**63 - 1.
    code_version
        Version of the code that measures.
    """

    policy_hash: str
    fidelity: str
    data_hash: str
    seed: int
    code_version: str


@dataclass(frozen=True)
class Evaluation:
    """A row of the ledger.

    Times (``_s``) are seconds by the ledger's clock. ``attempt`` counts the leases so far, ``epoch`` is that of the
    driver that leased it last (0: none). ``trial`` is what the study needs to be rebuilt, ``artefacts`` maps file names
    to their SHA-256, ``seconds`` says where the time went. The ``error`` of a pending row says why it was reopened.
    """

    key: EvaluationKey
    policy_json: str
    origin: str
    trial: Mapping[str, Any]
    state: State
    attempt: int
    epoch: int
    created_s: float
    lease_deadline_s: float | None
    started_s: float | None
    finished_s: float | None
    values: Mapping[str, float]
    constraints: Mapping[str, float]
    artefacts: Mapping[str, str]
    seconds: Mapping[str, float]
    host: str | None
    error_class: str | None
    error: str | None


@dataclass(frozen=True)
class Lease:
    """The right to answer for a row: void once the row is leased again, released, or another driver has taken over."""

    key: EvaluationKey
    attempt: int
    epoch: int
    deadline_s: float


@dataclass(frozen=True)
class TrialRecord:
    """A question that a sampler asked; several may lead to one evaluation.

    Parameters
    ----------
    number
        From 0, in the order of asking.
    policy_hash
        Of the normalised policy; the key to its evaluation.
    origin
        ``uniform`` or the sampler's name.
    choices
        Index into each menu.
    attributes
        What the sampler noted down (its generation).
    """

    number: int
    policy_hash: str
    origin: str
    choices: Mapping[str, int]
    attributes: Mapping[str, Any] = field(default_factory=dict)


def read_row(row: tuple[Any, ...]) -> Evaluation:
    """An evaluation from the ``COLUMNS`` of its row."""
    fields = [*row[5:7], json.loads(row[7]), *row[8:15], *map(json.loads, row[15:19]), *row[19:]]
    return Evaluation(EvaluationKey(*row[:5]), *fields)


def to_json(data: Mapping[str, Any]) -> str:
    """Compact JSON text; keys keep their order."""
    return json.dumps(dict(data), separators=(",", ":"), allow_nan=False)


def numbers_to_json(numbers: Mapping[str, float]) -> str:
    """Compact JSON text of named numbers.

    Raises
    ------
    CandidateError
        Where one is infinite or no number: such a measurement is not to be believed.
    """
    plain = {name: float(number) for name, number in numbers.items()}
    for name, number in plain.items():
        if not math.isfinite(number):
            raise CandidateError(f"expected a finite number for {name}, got {number}; nothing was recorded")
    return to_json(plain)
