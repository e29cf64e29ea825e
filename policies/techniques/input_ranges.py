"""Ranges of a layer's 8-bit inputs, from what the inputs were on calibration pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import CandidateError, PolicyError
from ..watching import watching
from .base import Calibration

RangeMethod = Literal["minmax", "percentile", "mse"]

PERCENTILE = 99.9
_TAIL = (100 - PERCENTILE) / 200
_STEPS = 255
_SHARES = torch.linspace(1.0, 0.2, 33).tolist()
_MOST_VALUES = 1 << 17
"""Values that clipped ranges are chosen by; of more, as many are drawn by even steps."""


def input_range(inputs: Tensor | Sequence[Tensor], method: RangeMethod) -> tuple[float, float]:
    """Least and greatest input that can be told apart in 8 bit; beyond them inputs are clipped.

    Parameters
    ----------
    inputs
        Any shape; of a layer that is called more than once, the inputs of each call: one range holds them all.
    method
        ``minmax``: of all inputs; ``percentile``: the middle 99.9 % of them (Wu 2020, 2004.09602, section 3.2, there of
        magnitudes); ``mse``: the range around 0 of least squared error among 33 shares (1 down to 0.2) of ``minmax``.
    """
    if isinstance(inputs, Tensor):
        return _METHODS[method](inputs)
    return _METHODS[method](inputs[0] if len(inputs) == 1 else torch.cat([x.flatten() for x in inputs]))


def what_is_needed(method: RangeMethod) -> Callable[[Tensor], Tensor]:
    """Return what takes the place of inputs that are only kept for their range, which it leaves the same.

    The inputs of all layers of a network are many times what its pictures are.
    """
    return _extremes if method == "minmax" else _as_they_are


def input_ranges(
    technique: str, module: nn.Module, layers: Sequence[nn.Module], calibration: Calibration | None, method: RangeMethod
) -> list[tuple[nn.Module, float, float]]:
    """The range of each layer while the calibration inputs pass through the module.

    Raises
    ------
    PolicyError
        Without inputs.
    CandidateError
        Where inputs are not finite.
    """
    if calibration is None or calibration.inputs.numel() == 0:
        raise PolicyError(f"{technique}: activations int8 needs calibration inputs of the layer, got none")
    inputs: dict[nn.Module, list[Tensor]] = {}

    def record(layer: nn.Module, x: Tensor) -> None:
        if not x.isfinite().all():
            raise CandidateError(f"{technique}: expected finite calibration inputs, got nan or inf; check the network")
        inputs.setdefault(layer, []).append(x)

    for call in calibration.calls:
        if list(layers) == [module]:
            record(module, call.inputs)
        else:
            with watching({layer: layer for layer in layers}, record), torch.no_grad():
                module(call.inputs)
    return [(layer, *input_range(x, method)) for layer, x in inputs.items()]


def _minmax(inputs: Tensor) -> tuple[float, float]:
    low, high = inputs.aminmax()
    return float(low), float(high)


def _extremes(inputs: Tensor) -> Tensor:
    return torch.stack(inputs.aminmax())


def _as_they_are(inputs: Tensor) -> Tensor:
    return inputs


def _percentile(inputs: Tensor) -> tuple[float, float]:
    values = inputs.detach().flatten().sort().values
    last = len(values) - 1
    return float(values[round(_TAIL * last)]), float(values[round((1 - _TAIL) * last)])


def _mse(inputs: Tensor) -> tuple[float, float]:
    low, high = _minmax(inputs)
    low, high = min(low, 0.0), max(high, 0.0)
    values = inputs.detach().flatten()
    values = values[:: -(-len(values) // _MOST_VALUES)].double()
    return min(((low * share, high * share) for share in _SHARES), key=lambda limits: _error(values, *limits))


def _error(values: Tensor, low: float, high: float) -> float:
    """Squared error of values (n,) on 256 steps from low to high, 0 among them, as ``forms.set_input_range`` has them."""
    scale = max((high - low) / _STEPS, 1e-8)
    zero = round(-low / scale)
    return float(((values / scale).round().clamp(-zero, _STEPS - zero) * scale - values).square().sum())


_METHODS: Mapping[str, Callable[[Tensor], tuple[float, float]]] = {
    "minmax": _minmax,
    "percentile": _percentile,
    "mse": _mse,
}
