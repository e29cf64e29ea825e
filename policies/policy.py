"""What is done to a network, as data: small, canonical, hashable. No torch."""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import yaml

from .errors import PolicyError

POLICY_VERSION = 1
MAX_POLICY_BYTES = 1_000_000

Scalar = int | float | str | bool


@dataclass(frozen=True)
class Step:
    """One technique with its hyper-parameters, applied to one layer.

    Parameters
    ----------
    technique
        Name in the table of techniques, such as ``prune_magnitude``.
    parameters
        Hyper-parameters as sorted ``(name, value)`` pairs; values are JSON scalars.
    """

    technique: str
    parameters: tuple[tuple[str, Scalar], ...] = ()

    @classmethod
    def of(cls, technique: str, /, **parameters: Scalar) -> Step:
        """A step from keyword hyper-parameters, in canonical order."""
        return cls(technique, tuple(sorted(parameters.items())))

    def as_dict(self) -> dict[str, dict[str, Scalar]]:
        return {self.technique: dict(self.parameters)}


@dataclass(frozen=True)
class Policy:
    """What is done to each layer of a network.

    Parameters
    ----------
    layers
        Steps for each layer name. The order of the steps is of no account: techniques are ordered by their phase.
    version
        Version of this format.
    shape
        Of the network itself, where the policy sets it: ``family`` and its knobs (see ``architectures.shapes``). Empty: the
        network as it is given.
    exits
        Module -> the certainty from which a picture leaves the network behind it (see ``policies.exits``). Empty: none.
    """

    layers: Mapping[str, tuple[Step, ...]] = field(default_factory=dict)
    version: int = POLICY_VERSION
    shape: Mapping[str, Scalar] = field(default_factory=dict)
    exits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ordered = {name: tuple(sorted(steps, key=lambda s: s.technique)) for name, steps in sorted(self.layers.items())}
        object.__setattr__(self, "layers", MappingProxyType({n: s for n, s in ordered.items() if s}))
        object.__setattr__(self, "shape", MappingProxyType(dict(sorted(self.shape.items()))))
        object.__setattr__(self, "exits", MappingProxyType(dict(self.exits)))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Policy, (dict(self.layers), self.version, dict(self.shape), dict(self.exits)))

    def __hash__(self) -> int:
        return hash(self.digest)

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, ready for JSON or YAML."""
        layers = {name: [step.as_dict() for step in steps] for name, steps in self.layers.items()}
        # Written only where there is one: policies without a shape keep the digest they had before shapes came.
        shape = {"shape": dict(self.shape)} if self.shape else {}
        exits = {"exits": dict(self.exits)} if self.exits else {}
        return {"version": self.version, "layers": layers, **shape, **exits}

    def to_json(self) -> str:
        """Canonical JSON: sorted keys, no spaces."""
        return json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))

    def to_yaml(self) -> str:
        """The text that stands in ``policies/<id>.yaml``."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False, default_flow_style=None, width=120)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON. Normalise first (see ``plan``) where it is used as an identity."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @property
    def id(self) -> str:
        """The first 12 digits of the digest, used in file names and reports."""
        return self.digest[:12]

    @classmethod
    def from_dict(cls, data: object) -> Policy:
        """Read a policy from plain data.

        Raises
        ------
        PolicyError
            Where the data is not of the form that ``as_dict`` writes.
        """
        if not isinstance(data, dict):
            raise PolicyError(f"a policy is a mapping with 'version' and 'layers'; this is a {type(data).__name__}")
        unknown = sorted(set(data) - {"version", "layers", "shape", "exits"}, key=str)
        if unknown:
            raise PolicyError(
                "a policy has the keys 'version', 'layers', 'shape' and 'exits'; unknown:"
                f" {', '.join(map(_brief, unknown))}"
            )
        version = data.get("version", POLICY_VERSION)
        if type(version) is not int or version != POLICY_VERSION:
            raise PolicyError(
                f"this release reads policies of version {POLICY_VERSION}; this one says {_brief(version)}"
            )
        layers = {} if data.get("layers") is None else data["layers"]
        if not isinstance(layers, dict):
            raise PolicyError(f"'layers' maps layer names to lists of steps; this is a {type(layers).__name__}")
        steps = {name: _read_steps(name, steps) for name, steps in _named("'layers'", layers).items()}
        return cls(steps, shape=_read_shape(data.get("shape")), exits=_read_exits(data.get("exits")))

    @classmethod
    def from_text(cls, text: str) -> Policy:
        """Read a policy from YAML or JSON text of at most 1 MB.

        Raises
        ------
        PolicyError
            Where the text is too long, no YAML, or no policy.
        """
        size = len(text.encode(errors="surrogatepass"))
        if size > MAX_POLICY_BYTES:
            raise PolicyError(f"a policy has at most {MAX_POLICY_BYTES} bytes; this text has {size}")
        try:
            data = _parse(text)
        # A date such as 2024-99-99 is a ValueError of PyYAML's own, a tag on the wrong value an AttributeError.
        except (yaml.YAMLError, RecursionError, ValueError, AttributeError) as error:
            raise PolicyError(f"a policy is YAML or JSON; this text cannot be read: {error}") from error
        return cls.from_dict(data)


def _parse(text: str) -> object:
    # JSON is not quite a part of PyYAML's YAML: that takes 1e-05 for text.
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return yaml.safe_load(text)


def _read_shape(shape: object) -> dict[str, Scalar]:
    shape = {} if shape is None else shape
    if not isinstance(shape, dict) or not all(map(_is_plain, shape.values())):
        raise PolicyError(f"'shape' maps 'family' and knobs to plain, finite values; got {_brief(shape)}")
    return _named("'shape'", shape)


def _read_exits(exits: object) -> dict[str, float]:
    exits = {} if exits is None else exits
    if not isinstance(exits, dict) or not all(
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        for value in exits.values()
    ):
        raise PolicyError(f"'exits' maps module names to certainties in [0, 1]; got {_brief(exits)}")
    return {name: float(value) for name, value in _named("'exits'", exits).items()}


def _read_steps(layer: str, steps: object) -> tuple[Step, ...]:
    if not isinstance(steps, list):
        raise PolicyError(
            f"layer '{layer}': expected a list of steps such as [{{quantize: {{bits: 8}}}}], got {_brief(steps)}"
        )
    return tuple(_read_step(layer, step) for step in steps)


def _read_step(layer: str, step: object) -> Step:
    if not isinstance(step, dict) or len(step) != 1:
        raise PolicyError(f"layer '{layer}': a step is one technique with its parameters, got {_brief(step)}")
    ((technique, parameters),) = step.items()
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict) or not all(map(_is_plain, parameters.values())):
        raise PolicyError(
            f"layer '{layer}', {technique}: parameters are names with plain, finite values, got {_brief(parameters)}"
        )
    return Step.of(str(technique), **_named(f"layer '{layer}', {technique}:", parameters))


def _named(where: str, data: dict[Any, Any]) -> dict[str, Any]:
    named = {str(key): value for key, value in data.items()}
    if len(named) < len(data):
        raise PolicyError(f"{where} has the same name as text and as a number; keep one")
    return named


def _is_plain(value: object) -> bool:
    if isinstance(value, int):
        return abs(value) < 2**63
    return isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))


def _brief(value: object) -> str:
    # A few lines of YAML aliases can stand for a value whose full text fills the memory.
    try:
        return reprlib.repr(value)
    # Python prints no integer of more than 4300 digits.
    except ValueError:
        return f"a {type(value).__name__} with a number too long to print"
