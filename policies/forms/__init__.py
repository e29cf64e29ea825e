"""Weights that keep their structure while they train: pruned, shared, hashed, in codewords or uniformly quantized; see ``base``.

To add a form: its file with ``stored`` and ``of_stored``, its line here, and a row in ``stored_layers.FORMS``; where none of
the tensors in ``coding.tensors`` holds it, one there and a row in ``coding.kinds.KINDS``.
"""

from .base import (
    WEIGHTED,
    Form,
    as_numpy,
    drop_form,
    form_of,
    mask_of,
    masked,
    per_channel,
    plain,
    round_through,
    set_form,
    significant,
    stored_weight,
    weighted_modules,
)
from .binary import BinaryWeight, weighted_scales
from .binary_input import is_input_binary, set_binary_input
from .generated import GeneratedWeight
from .hashed import HashedWeight
from .input_range import INPUT_RANGE, drop_input_range, is_input_quantized, set_input_range
from .masked import MaskedWeight
from .shared import SharedWeight
from .soft_shared import SoftSharedWeight
from .uniform import UniformWeight
from .vectors import VectorWeight

__all__ = [
    "INPUT_RANGE",
    "WEIGHTED",
    "BinaryWeight",
    "Form",
    "GeneratedWeight",
    "HashedWeight",
    "MaskedWeight",
    "SharedWeight",
    "SoftSharedWeight",
    "UniformWeight",
    "VectorWeight",
    "as_numpy",
    "drop_form",
    "drop_input_range",
    "form_of",
    "is_input_binary",
    "is_input_quantized",
    "mask_of",
    "masked",
    "per_channel",
    "plain",
    "round_through",
    "set_binary_input",
    "set_form",
    "set_input_range",
    "significant",
    "stored_weight",
    "weighted_modules",
    "weighted_scales",
]
