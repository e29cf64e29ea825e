"""A network's tensors by name, whatever else its state holds and whatever their types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .coding.floats import DTYPES
from .coding.tensors import DenseTensor

_STORED_TYPES = frozenset(map(str, DTYPES))
_EXTRA_STATE = "_extra_state"
"""How torch ends the name of what a module keeps by ``get_extra_state``, which may be anything."""


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers by name, as ``state_dict`` has them; what a module keeps besides is left out."""
    return {name: value for name, value in model.state_dict().items() if not is_extra(name)}


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load what ``tensors_of`` gave, in place; what a module keeps besides stays as it is.

    Raises
    ------
    RuntimeError
        Where names or shapes differ.
    """
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if not is_extra(name)]
    if missing or unexpected:
        raise RuntimeError(f"expected the network's own tensors; missing {missing[:5]}, unexpected {unexpected[:5]}")


def is_extra(name: str) -> bool:
    """Tell whether a name in a state dictionary is of something that is no parameter or buffer."""
    return name.rpartition(".")[2] == _EXTRA_STATE


def to_dense(tensor: Tensor) -> DenseTensor:
    """Return a tensor of any real type as it is stored: in its own type, or in a wider one where files have no such type.

    Loading the wider one into a tensor of the first type gives the values again.
    """
    return DenseTensor(to_array(tensor).copy())


def to_array(tensor: Tensor) -> np.ndarray:
    """Return a tensor of any real type as an array: in its own type, or in a wider one where files have no such type."""
    values = tensor.detach().cpu().contiguous()
    if str(values.dtype).removeprefix("torch.") not in _STORED_TYPES:
        values = values.float() if values.is_floating_point() else values.long()
    array: np.ndarray = values.numpy()
    return array


@contextmanager
def tensors_alone(model: nn.Module) -> Iterator[None]:
    """Meanwhile ``state_dict`` gives tensors alone, which is all that some of torch's own code expects of it."""

    def leave_out(_: nn.Module, state: dict[str, Any], *__: object) -> None:
        for name in [name for name in state if is_extra(name)]:
            del state[name]

    handle = model.register_state_dict_post_hook(leave_out)
    try:
        yield
    finally:
        handle.remove()


def to_bytes(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor's values in C order, whatever their type."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
