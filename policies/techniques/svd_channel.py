"""A convolution through a bottleneck of channels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from .base import ADDED_LATER, About, Calibration, LayerCost, LayerInfo, Phase
from .factors import (
    Whitening,
    conv_reason,
    dearer_reason,
    factorized,
    factorized_cost,
    full_rank,
    require_plain,
    require_rank,
    require_whitening,
    unfilled,
)


@dataclass(frozen=True)
class SVDChannel:
    """A kh x kw convolution as one of fewer filters and a 1 x 1 one (Zhang 2016, 1505.06798, section 3.1).

    The factors are those of the weight as a matrix (out, in * kh * kw); stride, padding and dilation go to the first.

    Parameters
    ----------
    rank
        Channels between the two, at least 1; from min(out, in * kh * kw) on the layer stays as it is.
    whitening
        ``none``: the weights err least; ``activations``: the outputs do, on the calibration inputs (eq. 3 there, with the
        mean left in).
    """

    rank: int
    whitening: Whitening = field(default="none", metadata=ADDED_LATER)

    name: ClassVar[str] = "svd_channel"
    about: ClassVar[About] = About(
        ("R1", "R2"),
        "a convolution of fewer filters and a 1 x 1 one",
        "convolutions of one group, larger than 1 x 1",
        ("stored bytes", "deployed bytes", "MACs"),
        "smaller layers",
        "Zhang 2016, 1505.06798",
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
        return conv_reason(layer) or dearer_reason(self, layer)

    def is_identity(self, layer: LayerInfo) -> bool:
        return layer.kind == "conv2d" and self.rank >= full_rank(layer)

    def apply(self, module: nn.Module, calibration: Calibration | None) -> nn.Module:
        return factorized(
            self.name, require_plain(self.name, module, nn.Conv2d), self.rank, self.whitening, calibration
        )

    def outline(self, module: nn.Module) -> nn.Module:
        """The layers that ``apply`` makes, their weights of no account."""
        return unfilled(require_plain(self.name, module, nn.Conv2d), self.rank)

    def cost(self, layer: LayerInfo) -> LayerCost:
        return factorized_cost(layer, self.rank)
