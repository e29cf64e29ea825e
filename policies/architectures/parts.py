"""Parts that several families are made of: convolutions with batch norm, heads, resizing, initialisation."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from .knobs import Knobs

Kernel = int | tuple[int, int]
HEAD_STD = 0.01


def conv_bn(
    channels_in: int,
    channels_out: int,
    kernel: Kernel,
    stride: int = 1,
    *,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
    padded: bool = True,
) -> nn.Sequential:
    """``conv``, ``bn`` and, where there is an activation, ``act``; padded so that stride 1 keeps the size."""
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (height // 2, width // 2) if padded else (0, 0)
    conv = nn.Conv2d(channels_in, channels_out, (height, width), stride, padding, groups=groups, bias=False)
    parts: dict[str, nn.Module] = {"conv": conv, "bn": nn.BatchNorm2d(channels_out)}
    if activation is not None:
        parts["act"] = activation()
    return nn.Sequential(OrderedDict(parts))


def pooled_head(channels: int, num_classes: int) -> nn.Sequential:
    """Global average pooling and one linear layer, in place of fully connected layers (1312.4400, section 3.2)."""
    parts = {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(channels, num_classes)}
    return nn.Sequential(OrderedDict(parts))


class Resize(nn.Module):
    """Pictures (N, C, H, W) scaled to (N, C, side, side), bilinear."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x, size=(self.side, self.side), mode="bilinear", align_corners=False)

    def extra_repr(self) -> str:
        return f"side={self.side}"


def resizing(knobs: Knobs) -> nn.Module:
    """What a network does to its pictures first: nothing, or scaling to the resolution."""
    return nn.Identity() if knobs.pixels == knobs.side else Resize(knobs.pixels)


def initialise(model: nn.Module) -> None:
    """He's initialisation (1502.01852) by what each output reads, which holds for depthwise layers too; a quiet classifier."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=HEAD_STD)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
