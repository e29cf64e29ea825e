"""A linear layer on a flattened map rewritten as global average pooling and a smaller one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..errors import PolicyError
from .base import About, Calibration, LayerCost, LayerInfo
from .factors import linear_factor, read_reason, require_plain
from .rewriting import Rewrite, own_bias, require_count, row_cost, settle


@dataclass(frozen=True)
class RewritePooled(Rewrite):
    """A linear layer on all of a flattened (c, h, w) map as one on the mean of each channel (Lin 2014, 1312.4400, section 3.2).

    Of ``n c h w`` weights ``n c`` are left, ``W'[o, i] = sum_p W[o, i, p]`` to start with: what the layer would make of a map
    that is even. For the outputs they are then regressed with the bias on the calibration inputs.

    Parameters
    ----------
    positions
        h w, at least 2: as many features of the layer in a row are one channel's.
    """

    positions: int

    name: ClassVar[str] = "rewrite_pooled"
    about: ClassVar[About] = About(
        ("A7",),
        "global average pooling in front of a smaller linear layer",
        "linear layers on a flattened map",
        ("stored bytes", "deployed bytes", "MACs"),
        "a mean and a smaller layer",
        "Lin 2014, 1312.4400",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count(self.name, "positions", self.positions, 2)

    def check(self, layer: LayerInfo) -> str | None:
        if layer.kind != "linear":
            return f"'{layer.name}' is a {layer.kind} layer; only linear layers on a flattened map can be pooled"
        if layer.positions == 1:
            return f"'{layer.name}' does not stand behind the flattening of a map whose channels are known"
        if layer.positions != self.positions:
            return f"'{layer.name}' reads {layer.positions} positions of each channel; got positions {self.positions}"
        return read_reason(layer)

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        layer = self._layer(module)
        sums = layer.weight.detach().unflatten(1, (-1, self.positions)).sum(2)
        parts = _two_parts(layer, self.positions, sums)
        if self.fit == "outputs":
            if calibration is None or calibration.inputs.numel() == 0:
                raise PolicyError(
                    f"{self.name}: fitting to the outputs needs calibration inputs of the layer, got none"
                )
            settle(parts, layer, [call.inputs for call in calibration.calls])
        return parts

    def outline(self, module: nn.Module) -> nn.Module:
        """The layers that ``apply`` makes, their weights of no account."""
        layer = self._layer(module)
        zeros = layer.weight.new_zeros(layer.out_features, layer.in_features // self.positions)
        return _two_parts(layer, self.positions, zeros)

    def cost(self, layer: LayerInfo) -> LayerCost:
        return row_cost([(layer.weights // self.positions, layer.output_shape[:-1])])

    def _layer(self, module: nn.Module) -> nn.Linear:
        layer = require_plain(self.name, module, nn.Linear)
        if layer.in_features % self.positions:
            raise PolicyError(
                f"{self.name}: expected a multiple of {self.positions} features, got {layer.in_features}; leave it out"
            )
        return layer


class MeanOfPositions(nn.Module):
    """The mean of each channel of a flattened map: (N, c * positions) to (N, c)."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.positions = positions

    def forward(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (-1, self.positions)).mean(-1)


def _two_parts(layer: nn.Linear, positions: int, weight: Tensor) -> nn.Sequential:
    return nn.Sequential(MeanOfPositions(positions), linear_factor(weight, layer, own_bias(layer))).train(
        layer.training
    )
