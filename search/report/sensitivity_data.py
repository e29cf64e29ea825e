"""What the page of sensitivity curves is made from, and what is read off it: units, curves, layers ranked. Pure.

A *unit* is a layer, or layers that are tied to one choice. The harm of each variant of a unit was measured with that unit
alone compressed, the rest of the network dense; its latency with all other units in the middle of their menus.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from ...spaces.precision import precision_step
from ...spaces.steps import REWRITES
from .data import Record
from .layers import code_bits

KNOBS = ("sparsity", "precision", "rank", "rewrite", "channels", "blocks")
NEUTRAL: Mapping[str, str | float] = {
    "sparsity": 0.0,
    "precision": "float32",
    "rank": 1.0,
    "rewrite": "keep",
    "channels": 1.0,
    "blocks": "keep",
}
RATIOS = (64, 48, 32, 24, 16, 12, 10, 8, 6, 5, 4, 3, 2, 1.5)
FLOAT_BYTES, FLOAT_BITS = 4, 32
# Above this the network has lost its function whichever layer is harmed, and the order of layers says little.
USABLE_KL = 0.1
COVERED = 0.8


@dataclass(frozen=True)
class Variant:
    """One way to compress one unit, measured with the rest of the network dense; a figure nobody measured is ``None``.

    Parameters
    ----------
    unit
        Name of the unit.
    layers
        Names of its layers.
    choices
        Knob -> option, such as ``{"sparsity": 0.9, "precision": "k16", "rank": 1.0}``; a knob that is no choice for the
        unit is absent.
    kl
        Kullback-Leibler divergence of the network's predictions from those of the dense network.
    relative_error
        Squared error of the layer's output, over the squared output.
    weighted_error
        Second-order estimate of the loss.
    stored_bytes, onnx_bytes
        Of the unit's layers alone.
    latency_ratio
        Of the whole network with all other units in the middle of their menus, against the dense network.
    dominated
        Whether another variant of the unit is at least as good throughout.
    failure
        Why there are no figures; ``None`` where there are.
    """

    unit: str
    layers: tuple[str, ...]
    choices: Mapping[str, str | float]
    kl: float | None
    relative_error: float | None
    weighted_error: float | None
    stored_bytes: float | None
    onnx_bytes: float | None
    latency_ratio: float | None
    dominated: bool
    failure: str | None


@dataclass(frozen=True)
class Profile:
    """All that the page shows.

    Parameters
    ----------
    run
        Title.
    network, data
        What was compressed, and what it was fed.
    dense
        Metrics of the dense network, by the names in ``METRICS``.
    pictures
        Calibration pictures behind each KL and output error.
    layers
        ``{"name", "kind", "weights", "shape"}`` of the dense network's layers, in order.
    variants
        Of every unit, in any order.
    seconds
        Wall-clock time of the bank in seconds.
    additivity
        How well sums over the bank predict whole policies: ``kl_spearman``, ``<metric>_median_error_pct`` and the number
        of ``policies`` that were measured; ``None`` where that was not looked at.
    notes
        What has to be known of the pictures, a sentence each.
    """

    run: str
    network: str
    data: str
    dense: Mapping[str, float]
    pictures: int
    layers: Sequence[Record]
    variants: Sequence[Variant]
    seconds: float
    additivity: Mapping[str, float] | None
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Unit:
    """A unit with its variants; ``weights`` is 0 where its layers are not known. ``variants`` are indices."""

    name: str
    layers: tuple[str, ...]
    weights: int
    variants: tuple[int, ...]

    @property
    def dense_bytes(self) -> float | None:
        """Bytes of its weights in float32."""
        return FLOAT_BYTES * self.weights if self.weights else None


@dataclass(frozen=True)
class Standing:
    """A unit's lowest KL among its variants that are stored small enough, and the index of that variant."""

    unit: Unit
    kl: float
    variant: int


@dataclass(frozen=True)
class Ranking:
    """Units from the most fragile to the most free, all stored at least ``ratio`` times smaller; ``beyond`` cannot be."""

    ratio: float | None
    standings: tuple[Standing, ...]
    beyond: tuple[Unit, ...]


def measured(value: float | None) -> float | None:
    """A finite figure, or ``None``."""
    return None if value is None or not math.isfinite(value) else float(value)


def figure_of(profile: Profile, index: int, quantity: str) -> float | None:
    """A figure of one variant, by the name of its field."""
    return measured(getattr(profile.variants[index], quantity))


def units(profile: Profile) -> list[Unit]:
    """The units in the order of the network."""
    order = {str(layer["name"]): i for i, layer in enumerate(profile.layers)}
    weights = {str(layer["name"]): int(layer["weights"]) for layer in profile.layers}
    members: dict[str, list[int]] = {}
    for index, variant in enumerate(profile.variants):
        members.setdefault(variant.unit, []).append(index)
    found = []
    for name, indices in members.items():
        layers = profile.variants[indices[0]].layers
        found.append(Unit(name, layers, sum(weights.get(layer, 0) for layer in layers), tuple(indices)))
    return sorted(found, key=lambda unit: min((order.get(layer, len(order)) for layer in unit.layers), default=0))


def knobs(profile: Profile) -> list[str]:
    """The knobs that are a choice for some unit."""
    return [knob for knob in KNOBS if any(knob in variant.choices for variant in profile.variants)]


# Parameters of a block of so many rows and columns over its size; Fastfood's block is the layer, here one of usual width.
_DIAGONALS = {"circulant": 1, "toeplitz": 2, "fastfood": 3}
_WIDTH = 512


def harshness(knob: str, option: str | float) -> float:
    """Options in order: larger takes more away, but for rewrites, which have an order of their own."""
    if knob == "blocks":
        return float(option == "drop")
    if knob == "rewrite":
        return float(list(REWRITES).index(str(option)))
    if knob == "precision":
        _, bits, order = precision(str(option))
        return -bits + 0.1 * order
    return float(option) if knob == "sparsity" else -float(option)


def precision(option: str) -> tuple[str, float, int]:
    """Family, bits a weight before entropy coding, and the family's place, of words such as ``w4``, ``k16`` or ``binary``."""
    step = next(precision_step(option), None)
    if step is None:
        return "float32", FLOAT_BITS, 0
    given = dict(step.parameters)
    if step.technique == "binarize":
        return "binary", 1.0, 5
    if step.technique in _DIAGONALS:
        return "few parameters", FLOAT_BITS * _DIAGONALS[step.technique] / int(str(given.get("block", _WIDTH))), 4
    shared = code_bits(step.technique, given)
    if shared is not None:
        return "shared values", shared, 2
    bits = int(str(given["bits"]))
    if step.technique == "fixed_point":
        return "fixed point", bits, 4
    return ("8-bit inputs", bits, 3) if given["activations"] == "int8" else ("uniform", bits, 1)


def curve(profile: Profile, unit: Unit, knob: str) -> list[int]:
    """Variants of a unit along one knob, mild to harsh, with its other knobs at the mildest that the unit has."""
    mildest: dict[str, str | float] = {}
    for index in unit.variants:
        for name, option in profile.variants[index].choices.items():
            if name not in mildest or harshness(name, option) < harshness(name, mildest[name]):
                mildest[name] = option
    found = {}
    for index in unit.variants:
        choices = profile.variants[index].choices
        if knob in choices and all(choices.get(name) == option for name, option in mildest.items() if name != knob):
            # Of options that take away as much, such as two ways to binary weights, none hides the other.
            found[harshness(knob, choices[knob]), str(choices[knob])] = index
    return [found[place] for place in sorted(found)]


def smaller(unit: Unit, variant: Variant) -> float | None:
    """How many times smaller a variant is stored than its unit's float32 weights."""
    stored = measured(variant.stored_bytes)
    return unit.dense_bytes / stored if stored and unit.dense_bytes else None


def ranking(profile: Profile) -> Ranking:
    """Units ranked by KL at the same compression.

    The compression is the largest of ``RATIOS`` that four units in five reach while half of them keep a KL of at most
    ``USABLE_KL``; failing that, the smallest that is reached.
    """
    all_units = units(profile)
    rankable = [unit for unit in all_units if any(_point(profile, unit, i) for i in unit.variants)]
    chosen: Ranking | None = None
    for ratio in RATIOS:
        found = [(unit, _at_least(profile, unit, ratio)) for unit in rankable]
        standings = [standing for _, standing in found if standing is not None]
        if not standings or len(standings) < COVERED * len(rankable):
            continue
        order = tuple(sorted(standings, key=lambda standing: -standing.kl))
        chosen = Ranking(ratio, order, tuple(unit for unit, standing in found if standing is None))
        if median(standing.kl for standing in standings) <= USABLE_KL:
            break
    return chosen or Ranking(None, (), tuple(rankable))


def _point(profile: Profile, unit: Unit, index: int) -> tuple[float, float] | None:
    variant = profile.variants[index]
    ratio, kl = smaller(unit, variant), measured(variant.kl)
    return None if ratio is None or kl is None else (ratio, kl)


def _at_least(profile: Profile, unit: Unit, ratio: float) -> Standing | None:
    points = [(point, index) for index in unit.variants if (point := _point(profile, unit, index)) is not None]
    fitting = [(kl, index) for (reached, kl), index in points if reached >= ratio]
    return None if not fitting else Standing(unit, *min(fitting))
