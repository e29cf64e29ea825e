"""What a file of weights says of its training: the recipe, and which pictures it did and did not see.

It stands in the metadata of the safetensors file, as JSON under one key, so that equal trainings give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from .data import Pictures

KEY = "paretopress"
FORMAT = 1


@dataclass(frozen=True)
class Provenance:
    """Where a network's weights come from.

    Parameters
    ----------
    recipe
        How it was trained, as the configuration says it.
    seen
        Digests of the sets of pictures that it was trained on.
    unseen
        Digests of the sets of pictures that neither it nor what it began with was trained on.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    seen: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()

    def left_out(self, pictures: Pictures) -> bool:
        """Tell whether these pictures, as a set, are among those that the network was not trained on."""
        return bool(self.unseen) and digest_pictures(pictures) in self.unseen

    def metadata(self) -> dict[str, str]:
        """Return what ``safetensors`` writes beside the tensors."""
        content = {"format": FORMAT, "recipe": self.recipe, "seen": self.seen, "unseen": self.unseen}
        return {KEY: json.dumps(content, sort_keys=True)}


def read_provenance(path: Path) -> Provenance | None:
    """Read what a file says of its training; ``None`` where it says nothing, or nothing that is understood."""
    try:
        with safe_open(path, "np") as file:
            content = json.loads((file.metadata() or {})[KEY])
        if content["format"] != FORMAT or not isinstance(content["recipe"], dict):
            return None
        return Provenance(content["recipe"], _digests(content["seen"]), _digests(content["unseen"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError):
        return None


def digest_pictures(pictures: Pictures) -> str:
    """Return the SHA-256 (hex) of a set of pictures, whatever their order and labels.

    A network that was trained on a picture has seen it under any label.
    """
    head = f"{pictures.images.shape[1:]}{pictures.images.dtype}".encode()
    each = sorted(hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in pictures.images)
    return hashlib.sha256(head + b"".join(each)).hexdigest()


def _digests(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(digest, str) for digest in value):
        raise TypeError("expected a list of digests")
    return tuple(value)
