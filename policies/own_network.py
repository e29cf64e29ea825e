"""The caller's network as one of our own: a copy, whose forward pass leaves its input alone and gives logits in both modes.

Networks differ in what a call does beside its result. What our passes share (the pictures of a calibration, the batch that a
student and its teacher both read) must not depend on it, so that each network is settled once, by hooks on the copy's root
which every further copy of it has too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .copying import private_copy
from .errors import ModelError

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def into_evaluation(model: AnyModule) -> AnyModule:
    """Put a network into evaluation mode and return it, whatever its own ``train`` returns.

    Raises
    ------
    ModelError
        Where it has none, as programs that were exported by torch have not.
    """
    try:
        model.eval()
    except NotImplementedError as error:
        raise ModelError(
            f"the network has no evaluation mode: {error}; give the nn.Module that it was made of"
        ) from error
    return model


def own_copy(model: nn.Module) -> nn.Module:
    """Return a copy with tensors of its own, in evaluation mode; the caller's network keeps its modes and weights.

    Raises
    ------
    ModelError
        Where the network cannot be copied, or has no evaluation mode.
    """
    try:
        copied = private_copy(model)
    # Objects refuse to be copied in ways of their own.
    except Exception as error:
        raise ModelError(
            f"the network cannot be copied ({type(error).__name__}: {error}); expected that copy.deepcopy(model) works"
        ) from error
    return into_evaluation(copied)


def settle_calls(model: nn.Module, pictures: Tensor) -> list[str]:
    """Make every call of a network safe, in place, and say what had to be done.

    A network that changes its input in place gets a copy of it. One that gives no logits in training mode, but several
    outputs, or asks for labels, is called as in evaluation while its layers train: what is trained is then what ships, and
    nothing runs that channels were never followed through.

    Parameters
    ----------
    model
        In evaluation mode, in which it gives logits.
    pictures
        (N, C, H, W), a few; not changed.
    """
    notes = []
    if _changes_input(model, pictures):
        model.register_forward_pre_hook(_pass_copies)
        notes.append("the network changes its input in place; each pass gets a copy of its pictures")
    with torch.no_grad():
        logits = model(pictures.clone())
    if _trains_to(model, pictures, logits):
        return notes
    for resting, which in (_root, "the network's own flag"), (_containers, "the flags of modules that hold others"):
        trial = _called_as_in_evaluation(copy.deepcopy(model), resting)
        if _trains_to(trial, pictures, logits):
            _called_as_in_evaluation(model, resting)
            notes.append(
                f"in training mode the network gives no logits alone; it is trained with {which} in evaluation"
            )
            break
    return notes


def _changes_input(model: nn.Module, pictures: Tensor) -> bool:
    if _is_changed(pictures, model):
        return True
    # What fails in training mode is said where the network is to be trained.
    with suppress(Exception):
        trial = copy.deepcopy(model)
        trial.train()
        with torch.random.fork_rng(devices=[]):
            return _is_changed(pictures, trial)
    return False


def _is_changed(pictures: Tensor, call: Callable[[Tensor], Any]) -> bool:
    x = pictures.clone()
    # Torch counts what overwrites a tensor or a view of it, even with the values it had; numpy's writing it does not see.
    version = x._version
    with torch.no_grad():
        call(x)
    return x._version != version or not torch.equal(x, pictures)


def _pass_copies(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.clone() if isinstance(value, Tensor) else value for value in arguments)


def _trains_to(model: nn.Module, pictures: Tensor, logits: Tensor) -> bool:
    """Whether a copy of the network gives logits of the same shape in training mode."""
    trial = copy.deepcopy(model)
    trial.train()
    with suppress(Exception), torch.random.fork_rng(devices=[]), torch.no_grad():
        outputs = trial(pictures.clone())
        return isinstance(outputs, Tensor) and outputs.shape == logits.shape
    return False


Resting = Callable[[nn.Module], list[nn.Module]]
"""From a network to its modules that are in evaluation mode while it is called."""


def _root(model: nn.Module) -> list[nn.Module]:
    return [model]


def _containers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if any(True for _ in module.children())]


def _called_as_in_evaluation(model: nn.Module, resting: Resting) -> nn.Module:
    model.register_forward_pre_hook(partial(_rest, resting=resting))
    model.register_forward_hook(_wake, always_call=True)
    return model


def _rest(model: nn.Module, _: tuple[Any, ...], resting: Resting) -> None:
    if model.training:
        # Found at each call: the hook is that of every copy, and layers are replaced by others.
        vars(model)["_at_rest"] = tuple(module for module in resting(model) if module.training)
        for module in vars(model)["_at_rest"]:
            module.training = False


def _wake(model: nn.Module, _: tuple[Any, ...], __: Any) -> None:
    for module in vars(model).pop("_at_rest", ()):
        module.training = True
