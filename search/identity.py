"""What a run's measurements hold for, part by part, so that a run that is taken up on something else can say on what."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np

from ..evaluators.data import DataSet

_MODULUS = 1 << 128


@dataclass(frozen=True)
class Identity:
    """Digests of what a run was started with.

    Parameters
    ----------
    release
        Of this package.
    weights
        Of the dense network.
    data
        Of all splits, in their order, and of the preprocessing.
    pictures
        Of the pictures with their labels, in whatever order and split.
    labels
        How many pictures there are of each class and shape.
    settings
        Of what the configuration says, the teachers and the supernet.
    """

    release: str
    weights: str
    data: str
    pictures: str
    labels: str
    settings: str

    @classmethod
    def from_text(cls, text: str) -> Identity:
        """The identity that ``to_text`` wrote."""
        return cls(**json.loads(text))

    def to_text(self) -> str:
        """JSON for the ledger."""
        return json.dumps(asdict(self), sort_keys=True)

    def differences(self, recorded: Identity) -> list[str]:
        """Return what differs from a recorded identity, in words; nothing where all is the same."""
        facts = []
        if self.release != recorded.release:
            facts.append(f"the release ({recorded.release} then, {self.release} now)")
        if self.weights != recorded.weights:
            facts.append("the network's weights")
        if self.data != recorded.data:
            facts.append(f"the data: {self._data_difference(recorded)}")
        if self.settings != recorded.settings:
            facts.append("teachers, supernet or settings")
        return facts

    def _data_difference(self, recorded: Identity) -> str:
        if self.pictures == recorded.pictures:
            return (
                "the same pictures, in another order or with another preprocessing (does the loader shuffle? give arrays, a"
                " torch DataLoader, or a loader that does not)"
            )
        if self.labels == recorded.labels:
            return (
                "as many pictures of each class, with other pixels (does the loader augment? give one that does not;"
                " recovery.augment does it in training)"
            )
        return "other pictures"


def pictures_digest(data: DataSet) -> str:
    """Return a digest of all pictures and labels that does not depend on their order or on how they are split."""
    total = 0
    # Calibration pictures are training pictures.
    for split in (data.train, data.validation, data.test):
        for image, label in zip(split.images, split.labels) if split is not None else ():
            sha = hashlib.blake2b(
                np.ascontiguousarray(image).data, digest_size=16, key=int(label).to_bytes(8, "big", signed=True)
            )
            total = (total + int.from_bytes(sha.digest(), "big")) % _MODULUS
    return f"{total:032x}"


def labels_digest(data: DataSet) -> str:
    """Return a digest of how many pictures there are of each class, and of their shape."""
    labels = np.concatenate([split.labels for split in (data.train, data.validation, data.test) if split is not None])
    counts: Mapping[str, int] = {str(label): int(count) for label, count in zip(*np.unique(labels, return_counts=True))}
    text = json.dumps([list(data.train.images.shape[1:]), str(data.train.images.dtype), counts])
    return hashlib.sha256(text.encode()).hexdigest()
