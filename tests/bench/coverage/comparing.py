"""What the columns share: what a cell finds, the policy of a menu, outputs and how far they are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from paretopress.policies.graph import ModelGraph
from paretopress.policies.policy import Policy
from paretopress.spaces.layerwise import LayerwiseSpace, Menu, make_units
from torch import Tensor, nn

TEST_PICTURES = 4
TEST_SEED = 1
FLOAT_TOLERANCE = 1e-3
# An untrained network multiplies rounding, one more than the other: what 8 bit does to torch's own network is the measure.
INT8_TOLERANCE = 0.15
INT8_TIMES = 3.0


@dataclass(frozen=True)
class Finding:
    """What a cell found.

    Parameters
    ----------
    figures
        By name, with the unit in the name.
    complaints
        What is not as it should be; none where the cell passes.
    """

    figures: Mapping[str, float]
    complaints: tuple[str, ...] = field(default=())


def policy_of(graph: ModelGraph, menu: Menu) -> Policy:
    """A policy that treats every layer alike, as the menu says."""
    units = make_units(graph, "none", ())
    return LayerwiseSpace(graph, units, dict.fromkeys(units, menu)).policy({})


def outputs_of(model: nn.Module, x: Tensor) -> np.ndarray:
    """Of torch's network on pictures (N, C, H, W)."""
    with torch.no_grad():
        return model(x).numpy()


def distance_of(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square difference over the standard deviation of what is expected."""
    return float(np.sqrt(((found - expected) ** 2).mean()) / expected.std())
