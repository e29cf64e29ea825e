"""Whether a network is a classifier of the pictures at hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..evaluators.data import DataSet
from ..policies.errors import ModelError
from ..policies.state import tensors_of


def check_outputs(model: nn.Module, data: DataSet) -> None:
    """Refuse a network in evaluation mode that does not give finite float32 logits (N, classes) for any N pictures.

    Raises
    ------
    ModelError
        With what came instead.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise ModelError(f"expected weights in float32, {name} is {_name(parameter.dtype)}; give model.float()")
    for name, buffer in tensors_of(model).items():
        if buffer.is_complex() or buffer.is_quantized or buffer.layout is not torch.strided:
            raise ModelError(
                f"expected buffers of real values, {name} is {_name(buffer.dtype)}, {_name(buffer.layout)}; store real values"
            )
    outputs = _outputs(model, data, 1)
    highest = int(data.train.labels.max(initial=0))
    if outputs.shape[1] <= highest:
        raise ModelError(
            f"the network has {outputs.shape[1]} outputs but the data has the label {highest}; set model.num_classes"
        )
    if outputs.dtype != torch.float32:
        raise ModelError(f"expected logits in float32; the network gives {_name(outputs.dtype)}")
    if not bool(torch.isfinite(outputs).all()):
        raise ModelError(f"expected finite logits; the network gives {_first(outputs)}{_broken(model)}")
    _outputs(model, data, 2)


def _outputs(model: nn.Module, data: DataSet, count: int) -> Tensor:
    x = data.preprocess(data.train.images[:count])
    try:
        with torch.no_grad():
            outputs = model(x)
    except Exception as error:
        advice = (
            "check data.image_size and the channels" if count == 1 else "it must take any number of pictures at once"
        )
        raise ModelError(f"the network fails on pictures of shape {tuple(x.shape)}: {error}; {advice}") from error
    if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(x):
        came = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        given = "" if count == 1 else f" for pictures of shape {tuple(x.shape)}"
        raise ModelError(f"expected a classifier that gives logits (N, classes); the network gives {came}{given}")
    return outputs


def _first(outputs: Tensor) -> str:
    shown = ", ".join(f"{value:.3g}" for value in outputs.flatten()[:3].tolist())
    return f"[{shown}, ...]"


def _broken(model: nn.Module) -> str:
    """Which of its weights are not finite."""
    names = [name for name, value in tensors_of(model).items() if not bool(torch.isfinite(value).all())]
    return f"; {', '.join(names[:3])} hold{'s' * (len(names) == 1)} NaN or infinity" if names else "; check its weights"


def _name(kind: torch.dtype | torch.layout) -> str:
    return str(kind).removeprefix("torch.")
