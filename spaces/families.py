"""The menus of each family of networks: the knobs its paper turns, from the largest network to the smallest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..policies.errors import ConfigError
from ..policies.policy import Scalar
from .shapes import ShapeSpace

RESOLUTION = "resolution"
MENUS: dict[str, dict[str, tuple[Scalar, ...]]] = {
    "densenet": {
        "depth": (40, 28, 22, 16),
        "growth": (24, 16, 12, 8),
        "bottleneck": (False, True),
        "compression": (1.0, 0.5),
    },
    "inception": {
        "width": (1.0, 0.75, 0.5, 0.25, 0.125),
        "bottleneck": (1.0, 0.75, 0.5),
        "spatial": ("full", "stacked", "asymmetric", "separable", "extreme"),
    },
    "mobilenet_v1": {"width": (1.0, 0.75, 0.5, 0.375, 0.25, 0.125), "repeats": (5, 3, 1, 0)},
    "mobilenet_v2": {"width": (1.4, 1.0, 0.75, 0.5, 0.35, 0.25), "expansion": (6, 4, 3)},
    "plain": {
        "width": (1.0, 0.75, 0.5, 0.25, 0.125),
        "blocks": (3, 2, 1),
        "kernel": (5, 3),
        "convolution": ("full", "stacked", "asymmetric", "flattened", "separable", "extreme"),
        "head": ("linear", "pooled"),
    },
    "pocket": {
        "stem": (16, 12, 8),
        "blocks": ("16-24-32", "16-16-24-24", "16-24-24", "12-16-16-16", "16-16"),
        "kernel": (5, 3),
        "norms": ("each", "pointwise"),
    },
    "shufflenet": {"width": (2.0, 1.5, 1.0, 0.5, 0.25), "groups": (1, 2, 3, 4, 8)},
    "squeezenet": {
        "width": (1.0, 0.75, 0.5, 0.25),
        "squeeze_ratio": (0.75, 0.5, 0.25, 0.125),
        "share_3x3": (0.75, 0.5, 0.25, 0.125),
        "bypass": ("complex", "simple", "none"),
    },
    "tied_resnet": {"width": (2.0, 1.5, 1.0, 0.75, 0.5, 0.25), "blocks": (5, 3, 2), "share": ("none", "stage")},
    "xception": {"width": (1.0, 0.75, 0.5, 0.25, 0.125), "middle": (8, 4, 2, 1, 0)},
}
"""Options of each knob. The resolution's follow from the pictures: all multiples of the strides down to half their side."""


def default_menus(family: str, side: int, downsampling: int) -> dict[str, tuple[Scalar, ...]]:
    """A family's own menus, that of the resolution among them.

    Raises
    ------
    ConfigError
        Where there is no such family.
    """
    if family not in MENUS:
        raise ConfigError(f"shapes: expected a family of {', '.join(MENUS)}; got '{family}'")
    return {**MENUS[family], RESOLUTION: tuple(range(side, side // 2 - 1, -downsampling))}


def family_space(
    family: str,
    side: int,
    downsampling: int,
    menus: Mapping[str, Sequence[Scalar]] | None = None,
    fixed: Mapping[str, Scalar] | None = None,
) -> ShapeSpace:
    """The space of a family on pictures of a given side.

    Parameters
    ----------
    side
        Of the pictures, in pixels.
    downsampling
        Product of the networks' strides: 4 or 8 for pictures of 28 or 32 pixels, the paper's 32 for 224.
    menus
        In place of the family's own for the knobs that it names; a menu of one option fixes its knob.
    fixed
        Knobs with a value of their own and no menu, such as ``batch_norm`` of a SqueezeNet.

    Raises
    ------
    ConfigError
        Where there is no such family, or what is left is no choice (see ``ShapeSpace``).
    """
    fixed = {"side": side, "downsampling": downsampling, **(fixed or {})}
    given = {**default_menus(family, side, downsampling), **(menus or {})}
    return ShapeSpace(family, {knob: options for knob, options in given.items() if knob not in fixed}, fixed)
