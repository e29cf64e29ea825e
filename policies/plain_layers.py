"""A network as it is compressed: what wraps its layers made plain where that is exact, what evaluation never reaches left out.

Weights that others compute (parametrizations, hooks of ``weight_norm`` and ``spectral_norm``, masks of pruning) become the
layers' own, as they come out in evaluation mode. So does a weight that a layer's own forward pass computes from its
parameters alone. What remains is compressed around; ``graph.ModelGraph`` says which layers that leaves alone, and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm

from .copying import private_copy, put_in_place
from .errors import ModelError
from .forms import weighted_modules
from .own_forward import calls_of, has_own_forward, plain_layer, why_left_alone
from .own_network import into_evaluation
from .ties import tied_names
from .unreached import left_out, unreached_parts

TOLERANCE = 1e-5
SHOWN = 3


@dataclass(frozen=True)
class PlainNetwork:
    """A network as it is compressed.

    Parameters
    ----------
    model
        In evaluation mode; the very network that came where nothing had to be changed, otherwise a changed copy.
    notes
        What was changed, a line each; none where nothing was.
    """

    model: nn.Module
    notes: tuple[str, ...]


def make_plain(model: nn.Module, example: Tensor) -> PlainNetwork:
    """Make layers plain and leave out what is not reached, on a copy.

    Parameters
    ----------
    model
        In evaluation mode; it is not changed.
    example
        (1, C, H, W).

    Raises
    ------
    ModelError
        Where the changed network would compute something else.
    """
    own = [name for name, module in weighted_modules(model) if has_own_forward(module)]
    wrapped = any(_is_wrapped(module) for module in model.modules())
    if not own and not wrapped and not unreached_parts(model, example):
        return PlainNetwork(model, _tie_notes(model))
    pictures = torch.cat([example, 0.5 * example.flip(-1) + 0.1])
    expected = _outputs(model, pictures)
    changed = into_evaluation(private_copy(model))
    plain: dict[str, list[str]] = {}
    for name, module in changed.named_modules():
        for reason in _unwrap(module):
            plain.setdefault(reason, []).append(name)
    for name, reason in _fuse(changed, pictures):
        plain.setdefault(reason, []).append(name)
    gone = left_out(changed, unreached_parts(changed, example), example)
    if not plain and not gone:
        return PlainNetwork(model, _tie_notes(model))
    distance = float((_outputs(changed, pictures) - expected).square().mean().sqrt())
    if not distance <= TOLERANCE * float(expected.std(correction=0)):
        raise ModelError(
            f"layers made plain ({', '.join(plain)}) and parts left out ({', '.join(gone) or 'none'}) change what the network"
            f" computes by {distance:.2g}, expected nothing; make its layers plain nn.Conv2d and nn.Linear first"
        )
    notes = [f"made plain, as they compute in evaluation: {shown(names)} ({reason})" for reason, names in plain.items()]
    return PlainNetwork(changed, (*notes, *_left_out_notes(model, gone), *_tie_notes(changed)))


def shown(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def left_alone_notes(reasons: Mapping[str, str]) -> tuple[str, ...]:
    """What is said of layers that are left as they are, a line a reason."""
    layers: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        layers.setdefault(reason, []).append(name)
    return tuple(f"left as they are: {shown(names)}: {reason}" for reason, names in layers.items())


def _left_out_notes(model: nn.Module, gone: Sequence[str]) -> tuple[str, ...]:
    if not gone:
        return ()
    named = dict(model.named_parameters())
    inside = [p.numel() for name, p in named.items() if any(f"{name}.".startswith(f"{part}.") for part in gone)]
    return (
        f"left out of all files and counts, since the forward pass never reaches it in evaluation: {shown(gone)}"
        f" ({sum(inside):,} of {sum(p.numel() for p in named.values()):,} parameters)",
    )


def _tie_notes(model: nn.Module) -> tuple[str, ...]:
    ties = [" = ".join(names) for names in tied_names(model)]
    if not ties:
        return ()
    return (
        f"shared by several layers: {shown(ties)}; stored once where a policy leaves these layers as they are, each layer gets"
        " its own where a policy changes one",
    )


def _outputs(model: nn.Module, pictures: Tensor) -> Tensor:
    with torch.no_grad():
        return cast(Tensor, model(pictures.clone()))


def _hooks(module: nn.Module) -> list[Any]:
    return list(module._forward_pre_hooks.values())


def _is_wrapped(module: nn.Module) -> bool:
    known = any(isinstance(hook, WeightNorm | SpectralNorm | prune.BasePruningMethod) for hook in _hooks(module))
    return known or parametrize.is_parametrized(module)


def _unwrap(module: nn.Module) -> Iterable[str]:
    """Make tensors that wrappers compute the module's own, in place; yields by what each was computed."""
    for hook in _hooks(module):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
            yield "weight_norm"
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
            _forget_loading(module)
            yield "spectral_norm"
        elif isinstance(hook, prune.BasePruningMethod):
            name = str(hook._tensor_name)
            prune.remove(module, name)
            yield "a mask of torch.nn.utils.prune"
    if parametrize.is_parametrized(module):
        yield from _deparametrize(module)
    _weight_first(module)


def _forget_loading(module: nn.Module) -> None:
    """Leave out what ``remove_spectral_norm`` overlooks: torch wraps the hook that it looks for."""
    for key, hook in list(module._load_state_dict_pre_hooks.items()):
        if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
            del module._load_state_dict_pre_hooks[key]


def _deparametrize(module: nn.Module) -> Iterable[str]:
    """Make all parametrized tensors the module's own, in place; yields by what each was computed."""
    wrappers = dict(cast(Any, module.parametrizations).items())
    values = {name: cast(Tensor, getattr(module, name)).detach().clone() for name in wrappers}
    # A copy has its original's class, from which `remove_parametrizations` would take the property for both.
    module.__class__ = module.__class__.__bases__[0]
    del module.parametrizations
    for name, wrapper in wrappers.items():
        originals = dict(wrapper.named_parameters(recurse=False))
        if originals:
            trained = any(original.requires_grad for original in originals.values())
            module.register_parameter(name, nn.Parameter(values[name], trained))
        else:
            module.register_buffer(name, values[name])
        yield f"parametrized by {', '.join(type(one).__name__.lstrip('_') for one in wrapper)}"


def _weight_first(module: nn.Module) -> None:
    """Parameters in the order in which a plain layer has them."""
    if "weight" in module._parameters:
        for name in [name for name in module._parameters if name != "weight"]:
            module._parameters[name] = module._parameters.pop(name)


def _fuse(model: nn.Module, pictures: Tensor) -> Iterable[tuple[str, str]]:
    """Put plain layers in the place of those whose forward pass computes the same, in place; yields names and kinds."""
    layers = {name: module for name, module in weighted_modules(model) if name and has_own_forward(module)}
    made: dict[nn.Parameter, nn.Parameter] = {}
    for name, calls in calls_of(model, layers, pictures).items() if layers else ():
        module = layers[name]
        hooked = bool(module._forward_pre_hooks or module._forward_hooks)
        if not calls or (why_left_alone(module, calls) is None and not hooked):
            continue
        layer = plain_layer(module, calls)
        if layer is not None:
            _tie_again(module, layer, made)
            put_in_place(model, name, layer)
            yield name, type(module).__name__


def _tie_again(module: nn.Module, layer: nn.Module, made: dict[nn.Parameter, nn.Parameter]) -> None:
    """Let a plain layer share its parameters with others, in place, where the layers that they stand for did and still can."""
    for name, old in module.named_parameters(recurse=False):
        new = layer._parameters.get(name)
        if new is not None and torch.equal(made.setdefault(old, new), new):
            setattr(layer, name, made[old])
