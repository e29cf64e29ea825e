"""Whether a network is a classifier of the pictures at hand, in evaluation mode and where it is to be trained."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..evaluators.data import DataSet
from ..evaluators.workbench import Workbench
from ..policies.errors import ModelError
from ..policies.export.onnx import export_onnx
from ..policies.state import tensors_of
from .comparing import check_file, check_repeatable, take_samples
from .config import Config

# Enough for batch norms, and a forward and backward pass of any network is soon done.
TRIED_PICTURES = 8
SHOWN_LAYERS = 3


def export_reference(model: nn.Module, data: DataSet) -> bytes:
    """Return a network's ONNX file once it is known to be a classifier that gives what its file gives.

    Raises
    ------
    ModelError
        Where the network gives no logits, other logits each time or for a picture alone, or its file gives others.
    """
    check_outputs(model, data)
    samples = take_samples(data)
    check_repeatable(model, samples)
    file = export_onnx(model, data.preprocess(data.calibration.images[:1]), calibration=None)
    check_file(model, file, samples)
    return file


def check_command(command: str, config: Config, bench: Workbench) -> list[str]:
    """Refuse a network that a command's trainings or measurements cannot work with, and return what to say of it.

    Raises
    ------
    ModelError
        Where it is to be trained and cannot be, or where gradients are needed and do not flow.
    """
    model, data, layers = bench.model, bench.data, bench.graph.layers
    notes = []
    if command == "search" and config.recovery.epochs:
        notes = check_training(model, data, config.recovery.batch_size, layers, "set recovery.epochs=0")
    if command == "exits" and config.exits.tuned:
        notes = check_training(model, data, config.exits.batch_size, layers, "set exits.tuned=false")
    if command == "profile" or (command == "search" and config.sampler == "bank"):
        check_slopes(model, data)
    return notes


def check_training(
    model: nn.Module, data: DataSet, batch_size: int, layers: Collection[str], otherwise: str
) -> list[str]:
    """Refuse a network that cannot be trained, and return what to say of layers that no gradient reaches.

    Parameters
    ----------
    model
        In evaluation mode; not changed, nor is the random state.
    batch_size
        Of the training.
    layers
        Names of those that the forward pass reaches in evaluation mode.
    otherwise
        What to do where the network is not to be trained.

    Raises
    ------
    ModelError
        Where a forward and backward pass in training mode fail, or logits of another shape or without gradients come.
    """
    part = data.train.take(slice(0, min(batch_size, TRIED_PICTURES)))
    x, labels = data.preprocess(part.images), torch.from_numpy(part.labels.astype(np.int64))
    trial = copy.deepcopy(model).requires_grad_(True)
    trial.train()
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        outputs = _in_training(trial, x, otherwise)
        with torch.no_grad():
            shape = model(x.clone()).shape
        if not isinstance(outputs, Tensor) or outputs.shape != shape:
            raise ModelError(
                f"expected logits {tuple(shape)} in training mode too, where the network gives {_described(outputs)};"
                f" give logits, or {otherwise}"
            )
        if not outputs.requires_grad:
            raise ModelError(
                "no gradient flows through the network in training mode, as under torch.no_grad(); mend forward, or"
                f" {otherwise}"
            )
        try:
            functional.cross_entropy(outputs, labels).backward()
        except Exception as error:
            raise ModelError(
                f"the network's gradients fail in training mode: {error}; mend that, or {otherwise}"
            ) from error
    return _unreached(trial, layers)


def _in_training(trial: nn.Module, x: Tensor, otherwise: str) -> Any:
    try:
        return trial(x)
    # The forward pass is the user's own code and may raise anything.
    except Exception as error:
        raise ModelError(
            f"the network fails in training mode on pictures of shape {tuple(x.shape)}: {error}; mend that, or {otherwise}"
        ) from error


def _described(outputs: Any) -> str:
    if isinstance(outputs, Tensor):
        return str(tuple(outputs.shape))
    count = f" of {len(outputs)}" if hasattr(outputs, "__len__") else ""
    return f"a {type(outputs).__name__}{count}"


def _unreached(trained: nn.Module, layers: Collection[str]) -> list[str]:
    """What to say of layers that run forwards, but that no gradient came back to."""
    parameters = {name: list(trained.get_submodule(name).parameters()) for name in layers}
    names = [name for name, own in parameters.items() if own and all(parameter.grad is None for parameter in own)]
    if not names:
        return []
    shown = ", ".join(names[:SHOWN_LAYERS]) + ", ..." * (len(names) > SHOWN_LAYERS)
    return [
        f"no gradient reaches {len(names)} of {len(layers)} layers in training mode ({shown}); recovery leaves them"
    ]


def check_slopes(model: nn.Module, data: DataSet) -> None:
    """Refuse a network through which no gradient reaches its input, by which layers' sensitivities are measured.

    Raises
    ------
    ModelError
        Where none does.
    """
    x = data.preprocess(data.calibration.images[:1]).requires_grad_(True)
    with torch.enable_grad():
        outputs = model(x.clone())
        slopes = torch.autograd.grad(outputs.sum(), x, allow_unused=True) if outputs.requires_grad else (None,)
    if slopes[0] is None:
        raise ModelError(
            "no gradient reaches the network's input in evaluation mode (torch.no_grad() or detach() in forward), but"
            " layers' sensitivities are measured by it; mend forward, or set search.sampler to another than bank"
        )


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
        if not isinstance(buffer, Tensor):
            raise ModelError(
                f"expected tensors alone in the network's state, {name} is a {type(buffer).__name__}, as where torch has"
                " quantized layers; give the network in float32"
            )
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
