"""Which pictures a run compares candidates on, by what is known of the network's training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from ..evaluators.data import DataSet, Pictures, SplitSizes
from ..evaluators.holdout import ValidationFrom, differ_by_more_than_chance, with_validation_from
from ..evaluators.provenance import Provenance, digest_pictures, read_provenance
from .config import Config
from .ledger import Ledger

META = "splits"
"""What the ledger calls a run's splits."""


@dataclass(frozen=True)
class Splits:
    """A run's data with the validation pictures that were decided on.

    Parameters
    ----------
    data
        The data set.
    is_known
        Whether the validation pictures, and test pictures that were cut from the training split, are known to be new to the
        network: it is trained in the run, or its file says so.
    notes
        What the user has to know of the decision, a sentence each.
    """

    data: DataSet
    is_known: bool
    notes: tuple[str, ...] = ()

    @cached_property
    def record(self) -> dict[str, Any]:
        """What the ledger and the bundle's card hold: of each split its origin, and number and digest of its pictures."""
        data = self.data
        assert data.test is not None, "a search has test pictures"
        return {
            "train": _describe("own", data.train),
            "validation": _describe(data.validation_from, data.validation),
            "test": _describe(data.test_from, data.test),
            "is_known": self.is_known,
            "notes": list(self.notes),
        }


def settle_splits(
    config: Config, data: DataSet, *, is_handed_over: bool = False, recorded: ValidationFrom | None = None
) -> Splits:
    """Decide which pictures candidates are compared on.

    A network that learned the pictures errs less on them than on new ones, so that every candidate looks better than it is.
    Where nothing says that they were left out of its training, they are taken from the test split.

    Parameters
    ----------
    data
        As it was loaded; with the source's own validation split, or one that was cut from the training pictures.
    is_handed_over
        Whether the network is an object of the caller's.
    recorded
        What an earlier start of the run decided.

    Raises
    ------
    DataError
        Where a split has too few pictures.
    """
    is_known = _is_known(config, data, is_handed_over)
    source = recorded or _choose(config, data, is_known)
    settled = with_validation_from(data, source, split_sizes(config), config.seed)
    return Splits(settled, is_known, tuple(_notes(config, settled, is_known)))


def apply_choice(config: Config, data: DataSet) -> DataSet:
    """Split data as the configuration alone says, which for a bundle's is what the run decided."""
    choice = config.data.validation_from
    source = cast(ValidationFrom, choice) if choice in ("training", "testing") else "own"
    return with_validation_from(data, source, split_sizes(config), config.seed)


def split_sizes(config: Config) -> SplitSizes:
    """Return how many pictures the held-out parts take."""
    return SplitSizes(config.data.validation, config.data.calibration, config.data.test)


def read_splits(ledger: Ledger) -> dict[str, Any]:
    """Read what a run recorded of its splits; empty where it began before this was recorded."""
    return dict(json.loads(ledger.meta(META) or "{}"))


def recorded_choice(ledger: Ledger) -> ValidationFrom | None:
    """Return where a run took its validation pictures from; ``None`` where it has not begun."""
    if all(ledger.meta(name) is None for name in ("context", "context of the network")):
        return None
    # Runs that recorded no splits compared on the pictures that the data came with.
    record = read_splits(ledger)
    return cast(ValidationFrom, record["validation"]["from"]) if record else "own"


def drift_note(baseline: Mapping[str, float], record: Mapping[str, Any]) -> str:
    """Say where the dense network errs otherwise on validation pictures than on those that no choice has seen.

    Returns
    -------
    str
        Empty where the difference is within chance (99.9 %), or nothing was measured.
    """
    errors = [baseline.get(name) for name in ("validation_error_pct", "error_pct")]
    if None in errors or not record:
        return ""
    counts = [record[name]["pictures"] for name in ("validation", "test")]
    first, second = cast(list[float], errors)
    if not differ_by_more_than_chance(first, counts[0], second, counts[1]):
        return ""
    better = "better" if first < second else "worse"
    return (
        f"the dense network errs on {first:.2f} % of the {counts[0]:,} validation pictures and on {second:.2f} % of the"
        f" {counts[1]:,} test pictures that no choice has seen: more than chance (99.9 %), so that candidates look {better}"
        " while they are compared than they are; it may have learned one of the two, or they are of different kinds"
    )


def notes_of(record: Mapping[str, Any], baseline: Mapping[str, float]) -> list[str]:
    """Return all that reports say of a run's splits, a sentence each."""
    return [*record.get("notes", ()), *filter(None, [drift_note(baseline, record)])]


def trained_here(data: DataSet, recipe: Mapping[str, Any]) -> Provenance:
    """Return the provenance of a network that a run trains from random weights on the training pictures."""
    assert data.test is not None, "a search has test pictures"
    unseen = (digest_pictures(data.validation), digest_pictures(data.test))
    return Provenance(recipe, (digest_pictures(data.train),), unseen)


def trained_further(record: Mapping[str, Any], config: Config, recipe: Mapping[str, Any]) -> Provenance:
    """Return the provenance of a network that began as the run's dense network and was trained on its training pictures.

    Of what a network from elsewhere has not seen nothing is known, nor of what is made from it.

    Parameters
    ----------
    record
        Of the run's splits.
    """
    files = [entry for path in _weight_files(config) if (entry := read_provenance(path)) is not None]
    seen = {record["train"]["digest"], *(digest for entry in files for digest in entry.seen)}
    # Files speak of the pictures that are cut from the training split.
    is_sure = record["is_known"] and (not _weight_files(config) or record["validation"]["from"] != "testing")
    unseen = tuple(record[part]["digest"] for part in ("validation", "test")) if is_sure else ()
    return Provenance(recipe, tuple(sorted(seen)), unseen)


def describe_recipe(config: Config, **trainings: Any) -> dict[str, Any]:
    """Return network, data, seed and trainings as plain data, for the metadata of weights."""
    model, data = config.model, config.data
    return {
        "model": {"name": model.name, "arguments": dict(model.arguments)},
        "data": {"name": data.name, "validation": data.validation, "test": data.test, "limit": data.limit},
        "seed": config.seed,
        **trainings,
    }


def _describe(source: str, pictures: Pictures) -> dict[str, Any]:
    return {"from": source, "pictures": len(pictures), "digest": digest_pictures(pictures)}


def _choose(config: Config, data: DataSet, is_known: bool) -> ValidationFrom:
    choice = config.data.validation_from
    if choice in ("training", "testing"):
        return cast(ValidationFrom, choice)
    # Agreement with the dense network is no label: what it learned by heart does not make it agree with itself more.
    is_fair = is_known or config.quality == "agreement" or data.validation_from == "own"
    # Where test pictures were cut from the training split, it may have learned them just as well.
    return "own" if is_fair or data.test_from == "training" else "testing"


def _notes(config: Config, data: DataSet, is_known: bool) -> list[str]:
    if is_known or config.quality == "agreement":
        return []
    assert data.test is not None, "a search has test pictures"
    notes = []
    if data.validation_from == "testing":
        compared, last = len(data.validation), len(data.test)
        notes.append(
            "the network may have learned pictures of the training split: nothing says that its training left any out, so"
            f" candidates are compared on {compared:,} of the {compared + last:,} test pictures and read for the last time on"
            f" the other {last:,}; data.validation_from: training, testing or the name of a split chooses otherwise"
        )
    elif data.validation_from == "training" and (data.test_from == "own" or config.data.validation_from == "training"):
        notes.append(
            "data.validation_from: training: the network may have learned the pictures that candidates are compared on; all"
            " then look better than they are, and members may lose more on the test split than their budget allows"
        )
    if data.test_from == "training":
        notes.append(
            f"data set '{data.name}' has no test split of its own: the network may have learned the pictures that were cut from"
            " the training pictures to test it, and errors may be larger on new ones; give a test split"
        )
    return notes


def _is_known(config: Config, data: DataSet, is_handed_over: bool) -> bool:
    """Tell whether all weights that the run begins with were trained in it, or say that they left the pictures out."""
    has_recipe = config.model.weights is not None or config.model.train is not None
    if is_handed_over or not has_recipe:
        return False
    return all(_leaves_out(read_provenance(path), data) for path in _weight_files(config))


def _leaves_out(provenance: Provenance | None, data: DataSet) -> bool:
    if provenance is None or data.test is None or not provenance.left_out(data.validation):
        return False
    return data.test_from == "own" or provenance.left_out(data.test)


def _weight_files(config: Config) -> Sequence[Path]:
    """Files of weights that candidates are made from."""
    shape = config.space.shape
    files = [config.model.weights, None if shape is None else shape.supernet.weights]
    return [Path(name).expanduser() for name in files if name is not None]
