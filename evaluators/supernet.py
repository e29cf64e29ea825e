"""Weights for a searched shape: cut out of one trained network that holds all of them (1812.08928, 1903.05134)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from ..policies.apply import reestimate_statistics
from ..policies.architectures.shapes import network_of
from ..policies.policy import Scalar
from ..policies.subnetworks import Channels, Slices, sliced, slices_of


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

    def part(self, shape: Mapping[str, Scalar]) -> tuple[nn.Module, Slices]:
        """The network of a shape, freshly initialised, and where its weights lie in the largest one's.

        Raises
        ------
        PolicyError
            Where there is no network of this shape, or it is not contained in the largest.
        """
        network = network_of(shape, self.num_classes, self.example.shape[1])
        return network, slices_of(self._whole, Channels.of(network, self.example))

    def network(self, shape: Mapping[str, Scalar], calibration: Tensor) -> nn.Module:
        """The network of a shape with its weights, batch norms estimated anew on pictures (N, C, H, W).

        The statistics of one width are not those of another (1903.05134, section 3.3).

        Raises
        ------
        PolicyError
            As ``part`` does.
        """
        network, slices = self.part(shape)
        network.load_state_dict(sliced(self.model.state_dict(), slices))
        reestimate_statistics(network.eval(), calibration)
        return network

    @cached_property
    def _whole(self) -> Channels:
        return Channels.of(self.model, self.example)
