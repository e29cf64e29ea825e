"""Weights for a searched shape: cut out of one trained network that holds all of them (1812.08928, 1903.05134)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from torch import Tensor, nn

from ..policies.architectures.shapes import network_of
from ..policies.batch_norms import reestimate_statistics
from ..policies.errors import PolicyError
from ..policies.policy import Scalar
from ..policies.subnetworks import Channels, Slices, sliced, slices_of


@dataclass(frozen=True)
class Part:
    """A network of a shape inside a larger one.

    Parameters
    ----------
    shape
        Its family and knobs.
    network
        Freshly initialised.
    slices
        Where its tensors lie in the larger one's.
    """

    shape: Mapping[str, Scalar]
    network: nn.Module
    slices: Slices


@dataclass(frozen=True)
class Supernet:
    """A network of a family, and the smaller ones in it.

    Parameters
    ----------
    model
        The largest; trained for all (see ``training.sandwich``).
    example
        A picture (1, C, H, W), preprocessed.
    num_classes
        Of all networks.
    """

    model: nn.Module
    example: Tensor
    num_classes: int

    def part(self, shape: Mapping[str, Scalar]) -> Part:
        """The network of a shape in the largest one.

        Raises
        ------
        PolicyError
            Where there is no network of this shape, or it is not contained in the largest.
        """
        network = network_of(shape, self.num_classes, self.example.shape[1])
        return Part(shape, network, slices_of(self._whole, Channels.of(network, self.example)))

    def network(self, shape: Mapping[str, Scalar], calibration: Tensor) -> nn.Module:
        """The network of a shape with its weights, batch norms estimated anew on pictures (N, C, H, W).

        The statistics of one width are not those of another (1903.05134, section 3.3).

        Raises
        ------
        PolicyError
            As ``part`` does.
        """
        part = self.part(shape)
        part.network.load_state_dict(sliced(self.model.state_dict(), part.slices))
        reestimate_statistics(part.network.eval(), calibration)
        return part.network

    def slimmable(self, shapes: Sequence[Mapping[str, Scalar]], calibration: Tensor) -> Slimmable:
        """One module that is as wide as it is told to be at run time (1812.08928), for these shapes.

        Weights are views of the largest network's, but for layers that read joined maps (a fire module's after the first, an
        inception's): their inputs lie in several places, and they are copied.

        Raises
        ------
        PolicyError
            As ``part`` does, or where no shape is given.
        """
        if not shapes:
            raise PolicyError("a slimmable network needs one shape or more; got none")
        return Slimmable([self._sharing(shape, calibration) for shape in shapes], shapes)

    def _sharing(self, shape: Mapping[str, Scalar], calibration: Tensor) -> nn.Module:
        """The network of a shape, its weights views of the largest one's where they can be; statistics are its own."""
        part = self.part(shape)
        network, weights = part.network, dict(self.model.named_parameters())
        shared = sliced(weights, {name: index for name, index in part.slices.items() if name in weights})
        for name, value in shared.items():
            layer, _, tensor = name.rpartition(".")
            setattr(network.get_submodule(layer), tensor, nn.Parameter(value.detach(), requires_grad=False))
        reestimate_statistics(network.eval(), calibration)
        return network

    @cached_property
    def _whole(self) -> Channels:
        return Channels.of(self.model, self.example)


class Slimmable(nn.Module):
    """A network whose shape is chosen at run time; all shapes share one set of weights.

    Parameters
    ----------
    parts
        The network of each shape.
    shapes
        Their shapes, in the same order. The first is used until another is chosen.
    """

    def __init__(self, parts: Sequence[nn.Module], shapes: Sequence[Mapping[str, Scalar]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.shapes = tuple(dict(shape) for shape in shapes)
        self.chosen = 0
        self.eval()

    def use(self, number: int) -> Slimmable:
        """Go on as the shape of this number in ``shapes``.

        Raises
        ------
        PolicyError
            Where there is none.
        """
        if not 0 <= number < len(self.shapes):
            raise PolicyError(f"expected the number of a shape, 0 to {len(self.shapes) - 1}; got {number}")
        self.chosen = number
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of pictures (N, C, H, W), by the shape that was chosen."""
        return cast(Tensor, self.parts[self.chosen](x))
