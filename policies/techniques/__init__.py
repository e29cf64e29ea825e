"""Techniques: one file each, behind the contract in ``base``. To add one: its file, and its row in ``TECHNIQUES``."""

from __future__ import annotations

import difflib
import functools
from dataclasses import MISSING, fields
from typing import Any, cast, get_type_hints

from ..errors import PolicyError
from ..policy import Scalar, Step
from .base import About, Calibration, LayerCost, LayerInfo, Phase, Technique
from .binarize import Binarize
from .circulant import Circulant
from .collapse import Collapse
from .cp import CP
from .drop_branch import DropBranch
from .drop_dead import DropDead
from .fastfood import Fastfood
from .fixed_point import FixedPoint
from .hash_weights import HashWeights
from .keep_channels import KeepChannels
from .merge_neurons import MergeNeurons
from .product_quantize import ProductQuantize
from .prune_channels import PruneChannels
from .prune_magnitude import PruneMagnitude
from .prune_nm import PruneNM
from .prune_obd import PruneOBD
from .prune_obs import PruneOBS
from .quantize_uniform import QuantizeUniform
from .residual_quantize import ResidualQuantize
from .rewrite_asymmetric import RewriteAsymmetric
from .rewrite_flattened import RewriteFlattened
from .rewrite_pooled import RewritePooled
from .rewrite_separable import RewriteSeparable
from .rewrite_stacked import RewriteStacked
from .share_kmeans import ShareKMeans
from .share_soft import ShareSoft
from .svd_channel import SVDChannel
from .svd_linear import SVDLinear
from .svd_spatial import SVDSpatial
from .toeplitz import Toeplitz
from .tucker2 import Tucker2

ChannelTechnique = PruneChannels | MergeNeurons | KeepChannels
"""What drops channels of a coupled group: it says how many are kept (``keep``) and how they are chosen (``chosen_by``)."""

WholeTechnique = Collapse | DropBranch | DropDead
"""What is done to the network around a layer."""

TECHNIQUES: dict[
    str,
    type[Technique]
    | type[Collapse]
    | type[DropBranch]
    | type[DropDead]
    | type[KeepChannels]
    | type[MergeNeurons]
    | type[PruneChannels],
] = {
    "binarize": Binarize,
    "circulant": Circulant,
    "collapse": Collapse,
    "cp": CP,
    "drop_branch": DropBranch,
    "drop_dead": DropDead,
    "fastfood": Fastfood,
    "fixed_point": FixedPoint,
    "hash_weights": HashWeights,
    "keep_channels": KeepChannels,
    "merge_neurons": MergeNeurons,
    "product_quantize": ProductQuantize,
    "prune_channels": PruneChannels,
    "prune_magnitude": PruneMagnitude,
    "prune_nm": PruneNM,
    "prune_obd": PruneOBD,
    "prune_obs": PruneOBS,
    "quantize": QuantizeUniform,
    "residual_quantize": ResidualQuantize,
    "rewrite_asymmetric": RewriteAsymmetric,
    "rewrite_flattened": RewriteFlattened,
    "rewrite_pooled": RewritePooled,
    "rewrite_separable": RewriteSeparable,
    "rewrite_stacked": RewriteStacked,
    "share": ShareKMeans,
    "share_soft": ShareSoft,
    "svd": SVDLinear,
    "svd_channel": SVDChannel,
    "svd_spatial": SVDSpatial,
    "toeplitz": Toeplitz,
    "tucker2": Tucker2,
}

__all__ = [
    "TECHNIQUES",
    "About",
    "Calibration",
    "ChannelTechnique",
    "Collapse",
    "DropBranch",
    "DropDead",
    "KeepChannels",
    "LayerCost",
    "LayerInfo",
    "MergeNeurons",
    "Phase",
    "PruneChannels",
    "Technique",
    "WholeTechnique",
    "build",
    "spelled_out",
]


def build(step: Step) -> Technique | WholeTechnique | ChannelTechnique:
    """The technique that a step of a policy names, with its hyper-parameters.

    Raises
    ------
    PolicyError
        Where the technique is unknown, a parameter is unknown, missing, of the wrong type or out of its range.
    """
    cls = TECHNIQUES.get(step.technique)
    if cls is None:
        raise PolicyError(f"unknown technique '{step.technique}'{_nearest(step.technique, list(TECHNIQUES))}")
    given: dict[str, Any] = dict(step.parameters)
    known = _parameters(step.technique)
    for name in given:
        if name not in known:
            raise PolicyError(f"{step.technique}: unknown parameter '{name}'{_nearest(name, list(known))}")
    for name, (kind, required) in known.items():
        if name in given:
            given[name] = _typed(f"{step.technique}: {name}", given[name], kind)
        elif required:
            raise PolicyError(f"{step.technique}: parameter '{name}' is missing; it takes {', '.join(known)}")
    return cls(**given)


def spelled_out(technique: Technique | WholeTechnique | ChannelTechnique) -> Step:
    """The step with every hyper-parameter, so that a default left out makes no other candidate.

    Hyper-parameters that were added later are left out at their default, see ``base.ADDED_LATER``.
    """
    given = {f.name: (getattr(technique, f.name), f) for f in fields(cast(Any, technique))}
    later = {name for name, (value, f) in given.items() if f.metadata.get("added_later") and value == f.default}
    return Step.of(technique.name, **{name: value for name, (value, _) in given.items() if name not in later})


@functools.cache
def _parameters(technique: str) -> dict[str, tuple[type, bool]]:
    """The type of each hyper-parameter (``str`` for a choice of words), and whether it must be given."""
    declared: Any = TECHNIQUES[technique]
    hints = get_type_hints(declared)
    kinds = {f.name: (hints[f.name], f.default is MISSING) for f in fields(declared)}
    return {name: (kind if isinstance(kind, type) else str, required) for name, (kind, required) in kinds.items()}


def _typed(what: str, value: Scalar, kind: type) -> Scalar:
    # A bool is an int in Python; as a count of bits it is a mistake.
    if isinstance(value, bool) is (kind is bool):
        if isinstance(value, kind):
            return value
        if kind is float and isinstance(value, int):
            return float(value)
    raise PolicyError(f"{what} is of type {kind.__name__}, got {value!r} ({type(value).__name__})")


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else ";"
    return f"{hint} known: {', '.join(known)}"
