"""The network itself out of what is wrapped around it, and whether it can be copied and sent to workers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any

from torch import jit, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from ..policies.copying import copies_of_computed, put_in_place, sharing_copy
from ..policies.errors import ModelError

_PARALLEL = (DataParallel, DistributedDataParallel)
_HOLDERS = (*_PARALLEL, AveragedModel)
_TIMM_HOLDERS = frozenset({"ModelEma", "ModelEmaV2", "ModelEmaV3"})


def unwrap(model: nn.Module) -> nn.Module:
    """Return the network that a wrapper stands around; one that has no wrappers is returned as it is.

    Taken off are ``torch.compile`` (of the whole or of parts, as a function or as a method), ``AveragedModel``, timm's
    averages of weights, and ``DataParallel`` and its like around parts. The caller's object is not changed; what
    is returned shares its tensors.

    Raises
    ------
    ModelError
        Where it is a TorchScript program, which has no layers that could be compressed, or spread over several devices.
    """
    while (inner := _held_by(model)) is not None:
        if isinstance(model, _PARALLEL):
            raise ModelError(
                f"the network is a {type(model).__name__}, which runs copies of it side by side; expected the network itself,"
                " give model.module"
            )
        model = inner
    scripts = [name for name, module in model.named_modules() if isinstance(module, jit.ScriptModule)]
    if scripts:
        what = f"its part '{scripts[0]}'" if scripts[0] else "the network"
        raise ModelError(
            f"{what} is a TorchScript program, whose layers cannot be changed; give the nn.Module that it was made of"
        )
    if not any(_held_by(module) is not None or _is_compiled(module) for module in model.modules()):
        return model
    # A copy leaves out what torch.compile has put beside the forward pass.
    model = sharing_copy(model)
    while wrapped := [(name, held) for name, m in model.named_modules() if (held := _held_by(m)) is not None]:
        put_in_place(model, *wrapped[0])
    return model


def _held_by(module: nn.Module) -> nn.Module | None:
    """The network inside a wrapper; ``None`` where the module is none."""
    kind, children = type(module), dict(module.named_children())
    if kind.__module__.startswith("torch.") and "_orig_mod" in children:
        return children["_orig_mod"]
    of_timm = kind.__name__ in _TIMM_HOLDERS and kind.__module__.startswith("timm.")
    return children["module"] if isinstance(module, _HOLDERS) or of_timm else None


def _is_compiled(module: nn.Module) -> bool:
    return getattr(module, "_compiled_call_impl", None) is not None


def check_copies(model: nn.Module, pickle: Callable[[Any], object] | None = None) -> None:
    """Refuse a network that cannot be copied, or not sent to other processes, by the attribute that is in the way.

    Parameters
    ----------
    pickle
        How workers in other processes get it, where there are any.

    Raises
    ------
    ModelError
        With the attribute's name and type, and the reason.
    """
    tensors = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())} | copies_of_computed(model)
    _check(model, lambda value: copy.deepcopy(value, dict(tensors)), "copied", "every candidate is a copy:")
    if pickle is not None:
        _check(model, pickle, "sent to workers", "give pool.kind: in-process, which sends nothing, or")


def _check(model: nn.Module, carry_out: Callable[[Any], Any], what: str, advice: str) -> None:
    try:
        carry_out(model)
    # Objects refuse to be copied in ways of their own.
    except Exception as error:
        place, reason = _culprit(model, carry_out) or ("", error)
        raise ModelError(
            f"the network cannot be {what}{place}: {type(reason).__name__}: {reason}; {advice}"
            " leave that attribute out of its state (__getstate__), or make it when it is first needed"
        ) from error


def _culprit(model: nn.Module, carry_out: Callable[[Any], Any]) -> tuple[str, Exception] | None:
    """The first attribute that alone cannot be carried out on, in words, and why."""
    for place, module in model.named_modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                carry_out(value)
            except Exception as error:
                where = f"{place}.{name}" if place else name
                return f": its attribute '{where}' is a {type(value).__name__}", error
    return None
