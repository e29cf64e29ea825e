"""The contract of a technique."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from types import MappingProxyType
from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor, nn


class Phase(IntEnum):
    """When a technique's turn comes on a layer; at most one technique of a phase on a layer."""

    REARCHITECT = 0
    DROP = 1
    FACTORIZE = 2
    PRUNE = 3
    QUANTIZE = 4
    CODE = 5


@dataclass(frozen=True)
class LayerInfo:
    """What a technique may know of a layer before a weight is touched.

    Parameters
    ----------
    name
        The module's dotted name.
    kind
        ``conv2d`` or ``linear``.
    weight_shape
        (out, in / groups, kernel height, kernel width) or (out, in).
    input_shape, output_shape
        Without the batch dimension.
    stride, padding, dilation
        Of a convolution; ``padding`` is a pair or the words torch takes.
    groups
        Of a convolution; 1 otherwise.
    read
        Its attributes that the network reads beside calling it, as ``weight``.
    calls
        How often one forward pass runs it: more than once where layers share their weights. Shapes are those of the first.
    later_outputs
        Output shapes of the calls after the first, which maps of other sizes may make others.
    positions
        Of a linear layer behind the flattening of a (C, H, W) map: H W, as many of its features in a row are one channel's;
        1 otherwise, and where the channels are not known.
    """

    name: str
    kind: Literal["conv2d", "linear"]
    weight_shape: tuple[int, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    has_bias: bool = True
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | str = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    read: tuple[str, ...] = ()
    calls: int = 1
    positions: int = 1
    later_outputs: tuple[tuple[int, ...], ...] = ()

    @property
    def weights(self) -> int:
        """Number of weights, without the bias."""
        count = 1
        for size in self.weight_shape:
            count *= size
        return count

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the first call for one picture (a linear layer may act on many positions)."""
        positions = 1
        for size in self.output_shape[1:] if self.kind == "conv2d" else self.output_shape[:-1]:
            positions *= size
        return self.weights * positions

    def each_call(self) -> tuple[LayerInfo, ...]:
        """Return the layer as each of its calls in a forward pass meets it, by its output's shape."""
        once = replace(self, calls=1, later_outputs=())
        return (once, *(replace(once, output_shape=shape) for shape in self.later_outputs))


@dataclass(frozen=True)
class LayerCost:
    """What a technique leaves of a layer, before entropy coding.

    Parameters
    ----------
    macs
        Multiply-accumulates for one picture, as the exported network computes them.
    weight_bits
        Bits of the kept weights in the technique's own form, positions of zeros and codebooks of single values left out;
        codebooks of vectors, which are large, are counted.
    """

    macs: int
    weight_bits: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a layer saw on calibration pictures.

    Parameters
    ----------
    inputs
        (N, ...) of the layer.
    gradients
        (N, ...) of each picture's loss with respect to the layer's output for the same inputs; ``None`` where no technique
        asked. Their squares are on average those of the cross-entropy with labels drawn from the network's own prediction.
    later
        The same of further calls for the same pictures, where one forward pass calls the layer more than once: maps of other
        sizes stand apart, and what is summed over a picture is summed over its calls.
    """

    inputs: Tensor
    gradients: Tensor | None = None
    later: tuple[Calibration, ...] = ()

    @classmethod
    def from_calls(cls, inputs: Sequence[Tensor], gradients: Sequence[Tensor] = ()) -> Calibration:
        """Join what each call saw, one tensor (N, ...) a call; gradients of all calls or of none."""
        each = [cls(*pair) for pair in zip(inputs, gradients, strict=True)] if gradients else [cls(x) for x in inputs]
        return cls(each[0].inputs, each[0].gradients, tuple(each[1:]))

    @property
    def calls(self) -> tuple[Calibration, ...]:
        """Every call by itself, in the order of the forward pass."""
        return (self, *self.later)


ADDED_LATER: Mapping[str, bool] = MappingProxyType({"added_later": True})
"""Metadata of a hyper-parameter that a technique got later: its default is not written out.

Policies from before it are spelled out as they were, so that their digest, by which ledgers, seeds and layers on disk are
known, stays the same.
"""

Reduction = Literal["stored bytes", "deployed bytes", "MACs", "latency"]


@dataclass(frozen=True)
class About:
    """What a technique is, for the list of techniques.

    Parameters
    ----------
    rows
        Kinds of technique it covers, as the documentation numbers them: ``P1`` to ``P13`` prune, ``Q1`` to ``Q16`` quantize
        and share, ``R1`` to ``R4`` factorize, ``A4`` to ``A7`` rewrite, ``A8`` learns the architecture.
    title
        In a few words.
    layers
        Which it takes.
    reduces
        What falls. ``latency`` stands only where a runtime gains without a special kernel.
    exports
        What stands in the ONNX file.
    paper
        First author, year and arXiv number.
    """

    rows: tuple[str, ...]
    title: str
    layers: str
    reduces: tuple[Reduction, ...]
    exports: str
    paper: str


@runtime_checkable
class Resumable(Protocol):
    """A technique that gives a layer more than its stored weights: how it trains on, or what it does to its inputs."""

    @property
    def binary_inputs(self) -> bool:
        """Whether the layer computes on the signs of its inputs."""
        ...

    def resume(self, module: nn.Module) -> None:
        """Give a module whose weights were read what else the technique gave it, in place."""
        ...


@runtime_checkable
class Technique(Protocol):
    """One way to compress a layer: a frozen dataclass of its hyper-parameters.

    The constructor raises ``PolicyError`` for a hyper-parameter out of its range.
    """

    name: ClassVar[str]
    about: ClassVar[About]
    phase: ClassVar[Phase]
    needs_calibration: ClassVar[bool]
    needs_gradients: ClassVar[bool]

    def check(self, layer: LayerInfo) -> str | None:
        """Why it cannot be applied to this layer, or ``None``."""
        ...

    def is_identity(self, layer: LayerInfo) -> bool:
        """Whether it would leave this layer as it is (full rank, sparsity 0); such a step is dropped from the policy."""
        ...

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        """The compressed module. The given one is the caller's copy and may be changed and returned.

        ``calibration`` holds inputs of the layer where ``needs_calibration`` says so, and gradients of its output where
        ``needs_gradients`` does (which asks for the inputs too). A module made by an earlier
        phase (two or three layers in place of one) is taken as well.
        """
        ...

    def cost(self, layer: LayerInfo) -> LayerCost:
        """What will be left of a layer that nothing else was done to."""
        ...


@runtime_checkable
class Clashing(Protocol):
    """A technique that others make no sense with on the same layer."""

    def clash(self, other: Technique) -> str | None:
        """Why the two exclude each other, or ``None``."""
        ...


@runtime_checkable
class Outlined(Protocol):
    """A technique whose result has shapes that can be told without its work, or without inputs."""

    def outline(self, module: nn.Module) -> nn.Module:
        """The layers that ``apply`` makes, their weights of no account."""
        ...


def outline(technique: Technique, module: nn.Module, calibration: Calibration | None = None) -> nn.Module:
    """Layers of the shapes that a technique leaves, in the cheapest way there is; their weights are of no account."""
    return technique.outline(module) if isinstance(technique, Outlined) else technique.apply(module, calibration)
