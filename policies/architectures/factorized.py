"""Convolutions written as several smaller ones, each a drop-in for a full convolution with batch norm and ReLU.

With ``n`` for the kernel's side, ``c`` for channels that come in, ``f`` for filters and ``m = min(c, f)`` for what stands
between two convolutions, the weights of each kind:

==============  =================================================  ==================================
kind            what it is                                         weights
==============  =================================================  ==================================
``full``        n x n                                              c f n^2
``stacked``     s = (n - 1) / 2 of 3x3, one after the other        9 (c m + m f + (s - 2) m^2)
``asymmetric``  n x 1, then 1 x n                                  n m (c + f)
``flattened``   across channels, along columns, along rows         f (c + n + n)
``separable``   n x n depthwise, then 1x1                          c n^2 + c f
``extreme``     1x1, then n x n depthwise                          c f + f n^2
==============  =================================================  ==================================

``stacked`` and ``asymmetric`` are Inception v3's (1512.00567, sections 3.1 and 3.2), ``flattened`` that of 1412.5474,
``separable`` MobileNet's (1704.04861), ``extreme`` the extreme Inception module (1610.02357, figure 4).
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Literal

from torch import nn

from ..errors import ModelError
from .parts import conv_bn

Kind = Literal["full", "stacked", "asymmetric", "flattened", "separable", "extreme"]


def factorized_conv(kind: Kind, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Maps (N, channels_in, H, W) to (N, channels_out, H / stride, W / stride), each with batch norm and ReLU.

    Parameters
    ----------
    kernel
        Side of the full kernel, odd.

    Raises
    ------
    ModelError
        Where the kernel is even or too small to be factorized.
    """
    if kernel % 2 == 0 or kernel < 3:
        raise ModelError(f"kernel: expected an odd side of at least 3; got {kernel}")
    makers = {
        "full": _full,
        "stacked": _stacked,
        "asymmetric": _asymmetric,
        "flattened": _flattened,
        "separable": _separable,
        "extreme": _extreme,
    }
    return nn.Sequential(OrderedDict(makers[kind](channels_in, channels_out, kernel, stride)))


def _full(channels_in: int, channels_out: int, kernel: int, stride: int) -> dict[str, nn.Module]:
    return {"full": conv_bn(channels_in, channels_out, kernel, stride)}


def _stacked(channels_in: int, channels_out: int, kernel: int, stride: int) -> dict[str, nn.Module]:
    between = [min(channels_in, channels_out)] * ((kernel - 1) // 2 - 1)
    pairs = enumerate(itertools.pairwise([channels_in, *between, channels_out]))
    return {f"stack{i}": conv_bn(before, after, 3, 1 if i else stride) for i, (before, after) in pairs}


def _asymmetric(channels_in: int, channels_out: int, kernel: int, stride: int) -> dict[str, nn.Module]:
    between = min(channels_in, channels_out)
    return {
        "columns": conv_bn(channels_in, between, (kernel, 1), stride),
        "rows": conv_bn(between, channels_out, (1, kernel)),
    }


def _flattened(channels_in: int, channels_out: int, kernel: int, stride: int) -> dict[str, nn.Module]:
    f = channels_out
    return {
        "lateral": conv_bn(channels_in, f, 1, stride, activation=None),
        "columns": conv_bn(f, f, (kernel, 1), groups=f, activation=None),
        "rows": conv_bn(f, f, (1, kernel), groups=f),
    }


def _separable(channels_in: int, channels_out: int, kernel: int, stride: int) -> dict[str, nn.Module]:
    return {
        "depthwise": conv_bn(channels_in, channels_in, kernel, stride, groups=channels_in),
        "pointwise": conv_bn(channels_in, channels_out, 1),
    }


def _extreme(channels_in: int, channels_out: int, kernel: int, stride: int) -> dict[str, nn.Module]:
    return {
        "pointwise": conv_bn(channels_in, channels_out, 1),
        "depthwise": conv_bn(channels_out, channels_out, kernel, stride, groups=channels_out),
    }
