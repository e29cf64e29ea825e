"""Truncated SVD of a linear layer or a 1 x 1 convolution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from .base import ADDED_LATER, About, Calibration, LayerCost, LayerInfo, Phase
from .factors import (
    Whitening,
    dearer_reason,
    dense_reason,
    factorized,
    factorized_cost,
    full_rank,
    read_reason,
    require_plain,
    require_rank,
    require_whitening,
    unfilled,
)


@dataclass(frozen=True)
class SVDLinear:
    """A layer (in -> out) as two (in -> rank -> out), by truncated SVD (Denton 2014, 1404.0736, section 3.2).

    The Frobenius error is the root sum of the squared singular values that were dropped: the least at this rank. Stride
    and padding of a 1 x 1 convolution go to the first factor.

    Parameters
    ----------
    rank
        Width between the two layers, at least 1; from min(in, out) on the layer stays as it is.
    whitening
        ``none``: the weights err least; ``activations``: the outputs do, on the calibration inputs (``whitened_svd``).
    """

    rank: int
    whitening: Whitening = field(default="none", metadata=ADDED_LATER)

    name: ClassVar[str] = "svd"
    about: ClassVar[About] = About(
        ("R1",),
        "two thin layers in place of one",
        "linear layers, 1 x 1 convolutions",
        ("stored bytes", "deployed bytes", "MACs"),
        "smaller layers",
        "Denton 2014, 1404.0736; whitened: Zhang 2016, 1505.06798",
    )
    phase: ClassVar[Phase] = Phase.FACTORIZE
    needs_calibration: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_rank(self.name, "rank", self.rank)
        require_whitening(self.name, self.whitening)
        # The need depends on a hyper-parameter: the instance's answer stands before the class's.
        object.__setattr__(self, "needs_calibration", self.second_order)

    @property
    def second_order(self) -> bool:
        """Whether it wants the inputs' second moment."""
        return self.whitening == "activations"

    def check(self, layer: LayerInfo) -> str | None:
        if layer.kind == "linear":
            return read_reason(layer) or dearer_reason(self, layer)
        if layer.weight_shape[2:] != (1, 1):
            size = " x ".join(map(str, layer.weight_shape[2:]))
            return (
                f"'{layer.name}' is a {layer.kind} layer with a {size} kernel; svd takes linear layers and 1 x 1"
                " convolutions (svd_spatial, svd_channel, cp or tucker2 may fit)"
            )
        return dense_reason(layer) or dearer_reason(self, layer)

    def is_identity(self, layer: LayerInfo) -> bool:
        return self.rank >= full_rank(layer)

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        return factorized(self.name, self._layer(module), self.rank, self.whitening, calibration)

    def outline(self, module: nn.Module) -> nn.Module:
        """The layers that ``apply`` makes, their weights of no account."""
        return unfilled(self._layer(module), self.rank)

    def cost(self, layer: LayerInfo) -> LayerCost:
        return factorized_cost(layer, self.rank)

    def _layer(self, module: nn.Module) -> nn.Conv2d | nn.Linear:
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            return require_plain(self.name, module, nn.Conv2d)
        return require_plain(self.name, module, nn.Linear)
