"""Whether a network gives the same for the same pictures, and whether its exported file gives what it gives.

Everything that is measured is measured on files, which are traces: a value of a picture that became a number of Python's, a
branch that was taken for one picture, chance, or the statistics of a batch make the file another network than torch runs.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..evaluators.cores import available_cores
from ..evaluators.data import DataSet
from ..evaluators.runtime import logits as outputs_of
from ..evaluators.runtime import session
from ..policies.errors import CandidateError, ModelError

# Pictures of each of two splits; each is run alone and in a batch, by torch and by the runtime.
PICTURES = 6
# Of the logits' spread, root mean square over a picture's logits. 26 networks of timm and torchvision differ from their
# files, and from themselves one picture at a time, by 7e-7 at the median and 7e-6 at most; faults differ by 1e-2 and more.
TOLERANCE = 1e-4
# Pictures without contrast leave a normalisation little but rounding to divide by: more is allowed (2e-5 at most came).
UNUSUAL_TOLERANCE = 1e-2
SHOWN_LINES = 3


@dataclass(frozen=True)
class Samples:
    """Pictures on which networks and files are compared.

    Parameters
    ----------
    x
        (N, C, H, W), preprocessed.
    tolerances
        (N,) shares of the logits' spread.
    """

    x: Tensor
    tolerances: Tensor


def take_samples(data: DataSet) -> Samples:
    """Return some calibration and validation pictures, and unusual ones: black, white, inverted and noise."""
    real = np.concatenate([data.calibration.images[:PICTURES], data.validation.images[:PICTURES]])
    low, high = (0, 255) if real.dtype == np.uint8 else (float(real.min()), float(real.max()))
    first = real[:1].astype(np.float64)
    noise = np.random.default_rng(0).uniform(low, high, first.shape)
    unusual = [np.full_like(first, low), np.full_like(first, high), low + high - first, noise]
    if low < 0 < high:
        unusual.append(np.zeros_like(first))
    x = data.preprocess(np.concatenate([real, *(picture.astype(real.dtype) for picture in unusual)]))
    tolerances = torch.full((len(x),), UNUSUAL_TOLERANCE)
    tolerances[: len(real)] = TOLERANCE
    return Samples(x, tolerances)


def check_repeatable(model: nn.Module, samples: Samples) -> None:
    """Refuse a network in evaluation mode that gives other logits again, or others for a picture alone than in a batch.

    Raises
    ------
    ModelError
        With the cause, as far as it can be told.
    """
    watched = _Watch()
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    before = {name: value.detach().clone() for name, value in state.items()}
    with torch.no_grad():
        with watched:
            first = model(samples.x.clone())
        again = model(samples.x.clone())
    changed = _changes_undone(model, before)
    if changed:
        raise ModelError(
            f"the network changes {', '.join(changed[:3])} in evaluation mode: what a picture gives depends on the pictures"
            " before it; change it in training mode alone"
        )
    if (apart := _apart(first, again, samples)) is not None:
        raise ModelError(
            f"the network gives other logits for the same pictures each time, apart by {apart.distance:.2g} of their"
            f" spread{watched.cause()}; in evaluation mode nothing may be random (F.dropout takes training=self.training)"
        )
    with torch.no_grad():
        alone = torch.cat([model(x.clone()) for x in samples.x.split(1)])
    if (apart := _apart(first, alone, samples)) is not None:
        raise ModelError(
            f"the network gives other logits for a picture alone than for the same picture in a batch, apart by"
            f" {apart.distance:.2g} of their spread{_batch_cause(model)}; each picture must be judged by itself"
        )


def _changes_undone(model: nn.Module, before: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that are no longer as they were, which are put back."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    changed = [name for name, value in before.items() if not torch.equal(value, state[name])]
    with torch.no_grad():
        for name in changed:
            state[name].copy_(before[name])
    return changed


def check_file(model: nn.Module, file: bytes, samples: Samples) -> None:
    """Refuse a network whose exported file gives other logits, one picture at a time or in a batch.

    Raises
    ------
    ModelError
        With the lines at which tracing the network lost something.
    """
    with torch.no_grad():
        expected = model(samples.x.clone())
    for batch_size in (1, len(samples.x)):
        how = "alone" if batch_size == 1 else f"in a batch of {batch_size}"
        try:
            came = torch.from_numpy(outputs_of(session(file, available_cores()), samples.x.numpy(), batch_size))
        except CandidateError as error:
            raise ModelError(
                f"the network's ONNX file fails on pictures {how}: {error}{_lost(model, samples)}"
            ) from error
        if (apart := _apart(expected, came, samples)) is not None:
            is_usual = bool(samples.tolerances[apart.sample] == TOLERANCE)
            kind = "a picture" if is_usual else "an unusual picture (black, white, inverted or noise)"
            raise ModelError(
                f"the network's ONNX file gives other logits than the network for {kind} {how}, apart by"
                f" {apart.distance:.2g} of their spread{_lost(model, samples)}"
            )


@dataclass(frozen=True)
class _Apart:
    """The sample whose outputs lie furthest apart, and how far, in the logits' spread."""

    sample: int
    distance: float


def _apart(expected: Tensor, came: Tensor, samples: Samples) -> _Apart | None:
    """Where outputs (N, K) differ by more than they may; ``None`` where they do not."""
    if expected.shape != came.shape:
        return _Apart(0, float("inf"))
    real = expected[samples.tolerances == TOLERANCE].double()
    spread = real.std(correction=0).clamp_min(1e-6 * real.abs().max()).clamp_min(torch.finfo(torch.float32).tiny)
    difference = (came.double() - expected.double()).square().mean(1).sqrt() / spread
    # Both not a number, or both the same infinity, is alike.
    alike = torch.isclose(came, expected, rtol=1e-3, atol=0.0, equal_nan=True).all(1)
    difference = torch.where(alike, 0.0, difference.nan_to_num(nan=float("inf")))
    excess = difference / samples.tolerances
    worst = int(excess.argmax())
    return _Apart(worst, float(difference[worst])) if float(excess[worst]) > 1 else None


def _batch_cause(model: nn.Module) -> str:
    names = [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None
    ]
    if not names:
        return " (something in forward is taken over the batch, such as a maximum or a mean of all values)"
    return f" ({', '.join(names[:3])} without running statistics: use track_running_stats=True)"


def _lost(model: nn.Module, samples: Samples) -> str:
    """What torch's tracer says of values that became numbers, a line of the network's own code each."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            torch.jit.trace(model, (samples.x[:1],), check_trace=False)
        # The reason is a help: without it, that the file differs is still true.
        except Exception:
            return "; torch cannot trace it"
    lines = [
        f"{Path(w.filename).name}:{w.lineno}: {_first_sentence(str(w.message))}"
        for w in warned
        if issubclass(w.category, torch.jit.TracerWarning)
    ]
    # A loop over the pictures is seldom the reason, what stands in it often.
    ordered = sorted(dict.fromkeys(lines), key=lambda line: "Iterating over" in line)
    if not lines:
        return "; torch's exporter or ONNX Runtime computes one of its operators otherwise, expected others"
    return f"; a trace keeps what forward did with one picture ({'; '.join(ordered[:SHOWN_LINES])})"


def _first_sentence(text: str) -> str:
    return text.partition(". ")[0]


@dataclass
class _Watch(TorchDispatchMode):
    """Notes which operation that draws random numbers runs first, and where the network's code calls it."""

    random: str = ""
    place: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if not self.random and torch.Tag.nondeterministic_seeded in func.tags:
            self.random = str(func._overloadpacket).rpartition(".")[2]
            own = [frame for frame in traceback.extract_stack() if not _is_of_torch(frame.filename)]
            self.place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
        return func(*args, **(kwargs or {}))

    def cause(self) -> str:
        """What to add to a message."""
        return f" ({self.random} at {self.place})" if self.random else ""


def _is_of_torch(filename: str) -> bool:
    return filename == __file__ or Path(torch.__file__).parent in Path(filename).parents
