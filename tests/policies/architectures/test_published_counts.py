"""Parameters and multiply-adds of the families against the figures that their papers print."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from paretopress.evaluators.macs import Profile, profile
from paretopress.evaluators.models import build_model
from paretopress.policies.architectures.factorized import factorized_conv
from paretopress.policies.architectures.inception import TABLE, Inception, InceptionWidths
from torch import nn

torch.set_num_threads(1)

WIDTHS, SIDES = (1.0, 0.75, 0.5, 0.25), (224, 192, 160, 128)
# Million multiply-adds in the authors' list of the whole grid (tensorflow/models, research/slim, mobilenet_v1.md).
V1_GRID = {1.0: (569, 418, 291, 186), 0.75: (317, 233, 162, 104), 0.5: (150, 110, 77, 49), 0.25: (41, 34, 21, 14)}
V1_PARAMETERS = {1.0: (4.2, 4.24), 0.75: (2.6, 2.59), 0.5: (1.3, 1.34), 0.25: (0.5, 0.47)}
V2_SIDES = (224, 192, 160, 128, 96)
# The same for MobileNet V2 (research/slim, nets/mobilenet/README.md): million parameters, million multiply-adds.
V2_GRID = {
    1.4: (6.06, (582,)),
    1.3: (5.34, (509,)),
    1.0: (3.47, (300, 221, 154, 99, 56)),
    0.75: (2.61, (209, 153, 107, 69, 39)),
    0.5: (1.95, (97, 71, 50, 32, 18)),
    0.35: (1.66, (59, 43, 30, 20, 11)),
}
MIB = 4 / 2**20


@functools.cache
def network(name: str, **knobs: float | str | bool) -> nn.Module:
    """Without weights: counts need shapes alone."""
    with torch.device("meta"):
        return build_model(name, **knobs).eval()


@functools.cache
def counted(name: str, pixels: int = 224, **knobs: float | str | bool) -> Profile:
    found = profile(network(name, **knobs), torch.zeros(1, 3, pixels, pixels, device="meta"))
    assert found.unknown_operations == ()
    return found


def parameters(model: nn.Module, kinds: type[nn.Module] | tuple[type[nn.Module], ...] = nn.Module) -> int:
    modules = [module for module in model.modules() if isinstance(module, kinds)]
    return sum(p.numel() for module in modules for p in module.parameters(recurse=False))


def weights(model: nn.Module) -> int:
    """Of convolutions, without biases and batch norm: what the formulas count."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d))


def millions(count: float) -> int:
    return math.floor(count / 1e6 + 0.5)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("side", SIDES)
def test_mobilenet_v1_has_the_multiply_adds_of_the_whole_grid(width, side):
    macs = counted("family:mobilenet_v1", side, width=width).macs
    printed = V1_GRID[width][SIDES.index(side)]
    if width == 0.75:
        # The list's row leaves the first convolution out; the paper's table 6 has 325 where the list has 317.
        stem = 27 * 24 * (side // 2) ** 2
        assert millions(macs - stem) == printed
        assert side != 224 or millions(macs) == 325
    elif (width, side) == (0.25, 192):
        # A slip: 41 million at 224 pixels are 41 (192 / 224)^2 = 30 at 192, as all other rows scale.
        assert (millions(macs), printed) == (30, 34)
    elif (width, side) == (0.5, 224):
        # 149.497 million: the paper's table 6 prints 149, the list 150.
        assert (millions(macs), printed) == (149, 150)
    else:
        assert millions(macs) == printed


@pytest.mark.parametrize("width", WIDTHS)
def test_mobilenet_v1_has_the_parameters_of_the_table(width):
    paper, listed = V1_PARAMETERS[width]
    model = network("family:mobilenet_v1", width=width)
    assert round(parameters(model) / 1e6, 1) == paper
    # The list counts three numbers of batch norm a channel, one more than are trained.
    channels = parameters(model, nn.BatchNorm2d) // 2
    assert round((parameters(model) + channels) / 1e6, 2) == listed


def test_mobilenet_v1_of_table_7_the_shallow_one_of_table_5_and_the_small_one_of_table_9():
    # 290 of table 7 is 290.68 cut off; the authors' list rounds it to 291.
    assert [
        math.floor(counted("family:mobilenet_v1", side).macs / 1e6 + r) for side, r in zip(SIDES, (0.5, 0, 0, 0))
    ] == [
        569,
        418,
        290,
        186,
    ]
    shallow = counted("family:mobilenet_v1", repeats=0)
    assert (millions(shallow.macs), round(shallow.params / 1e6, 1)) == (307, 2.9)
    small = counted("family:mobilenet_v1", 160, width=0.5)
    assert (math.floor(small.macs / 1e6), round(small.params / 1e6, 2)) == (76, 1.33)


@pytest.mark.parametrize("width", V2_GRID)
def test_mobilenet_v2_has_the_counts_of_the_whole_grid(width):
    listed, printed = V2_GRID[width]
    macs = [counted("family:mobilenet_v2", side, width=width).macs for side in V2_SIDES[: len(printed)]]
    # The list cuts digits off, and leaves batch norm out of its parameters.
    assert tuple(math.floor(count / 1e6) for count in macs) == printed
    model = network("family:mobilenet_v2", width=width)
    assert round((parameters(model) - parameters(model, nn.BatchNorm2d)) / 1e6, 2) == listed


def test_mobilenet_v2_of_table_4():
    assert millions(counted("family:mobilenet_v2").macs) == 301  # printed: 300M
    # Printed for a width of 1.4: 6.9M and 585M. The authors' own list has 6.06M and 582M, which the network gives.
    assert (counted("family:mobilenet_v2", width=1.4).params, counted("family:mobilenet_v2", width=1.4).macs) == (
        6_108_776,
        582_195_824,
    )


def test_squeezenet_has_the_parameters_and_bytes_of_table_2():
    assert counted("family:squeezenet").params == 1_248_424
    assert round(1_248_424 * MIB, 1) == 4.8
    assert counted("family:squeezenet", bypass="simple").params == 1_248_424
    # Table 3 prints 7.7 MB for the complex bypass; 1x1 convolutions around the four modules whose channels change make 6.1,
    # around all eight 7.9.
    assert counted("family:squeezenet", bypass="complex").params == 1_248_424 + 96 * 128 + 128 * 256 + 256 * 384 + (
        384 * 512 + 128 + 256 + 384 + 512
    )


@pytest.mark.parametrize(
    ("knobs", "printed"),
    [
        ({"squeeze_ratio": 0.125}, 4.8),
        ({"squeeze_ratio": 0.5}, 13),
        ({"squeeze_ratio": 0.75}, 19),
        ({"squeeze_ratio": 0.5, "share_3x3": 0.99}, 21),
    ],
)
def test_squeezenet_has_about_the_sizes_of_figure_3(knobs, printed):
    # The figure's sizes are of files, which hold a little more than the weights, at two digits.
    assert 0.96 * printed < counted("family:squeezenet", **knobs).params * MIB <= printed


def test_the_inception_module_costs_six_and_a_half_times_less_than_the_naive_one():
    naive = weights(Inception(512, InceptionWidths(1024, 0, 1024, 0, 1024, 0)))
    reduced = weights(Inception(512, InceptionWidths(1024, 64, 1024, 64, 1024, 0)))
    assert naive == 35 * 512 * 1024 == 18_350_080
    assert reduced == 2_818_048
    assert round(naive / reduced, 2) == 6.51


def test_the_factorized_and_the_extreme_inception_module():
    c_in, c_int, c_out = 512, 64, 1024
    widths = InceptionWidths(c_out, c_int, c_out, c_int, c_out, 0)
    # The lecture's formula gives 2,359,296, 3.79x of the extreme module's 622,592; it prints 2,461,696 and 3.97x, a slip that
    # is not even consistent (3.95). Neither is what the module holds: its two 3x3 have the bottleneck's channels between them.
    formula = c_in * c_out + 27 * c_int * c_out + 2 * c_in * c_int
    assert formula == 2_359_296 != 2_461_696
    assert (round(formula / 622_592, 2), round(2_461_696 / 622_592, 2)) == (3.79, 3.95)
    between = 9 * c_int * c_int + 9 * c_int * c_out
    module = Inception(c_in, widths, "stacked")
    assert weights(module) == c_in * c_out + 2 * c_in * c_int + 9 * c_int * c_out + between == 1_806_336
    # 622,592, the lecture's figure for the extreme module, is a bottleneck and a full 3x3 convolution: the second branch.
    assert weights(module.three) == c_in * c_int + 9 * c_int * c_out == 622_592
    # Xception's own form of it, 1x1 then depthwise, has fewer.
    assert weights(factorized_conv("extreme", c_in, c_out, 3)) == c_in * c_out + 9 * c_out == 533_504


def test_googlenet_has_about_the_parameters_of_table_1():
    inputs = (192, 256, 480, 512, 512, 512, 528, 832, 832)
    printed_k = (159, 380, 364, 437, 463, 580, 840, 1072, 1388)
    rows = [InceptionWidths(*row) for stage in TABLE for row in stage]
    found = [weights(Inception(channels, row)) / 1024 for channels, row in zip(inputs, rows)]
    # The table's figures follow from its widths in some rows (a K is 1024) and in some do not, up to 463 for 497.5.
    assert [math.floor(count) for count in found][:2] == [159, 379]
    assert found == pytest.approx(printed_k, rel=0.08)


@pytest.mark.parametrize("channels", [16, 96])
def test_factorized_convolutions_have_the_ratios_of_their_formulas(channels):
    def ratio(kind: str, kernel: int) -> float:
        return weights(factorized_conv(kind, channels, channels, kernel)) / (channels * channels * kernel**2)

    assert ratio("full", 5) == 1
    assert ratio("stacked", 5) == pytest.approx(1 - 0.28)
    assert ratio("stacked", 7) == pytest.approx(27 / 49)
    assert ratio("asymmetric", 3) == pytest.approx(1 - 0.33, abs=0.01)
    assert ratio("asymmetric", 7) == pytest.approx(2 / 7)
    for kernel in (3, 5):
        assert ratio("flattened", kernel) == pytest.approx((channels + 2 * kernel) / (channels * kernel**2))
        assert ratio("separable", kernel) == pytest.approx(1 / channels + 1 / kernel**2)
        assert ratio("extreme", kernel) == ratio("separable", kernel)


def test_xception_has_the_parameters_of_table_3():
    assert counted("family:xception", 299).params == 22_855_952


@pytest.mark.parametrize(("groups", "printed"), [(1, 143), (2, 140), (3, 137), (4, 133), (8, 137)])
def test_shufflenet_has_the_multiply_adds_of_table_1(groups, printed):
    found = counted("family:shufflenet", groups=groups)
    classifier = network("family:shufflenet", groups=groups).head.fc.weight.numel()
    # The table leaves the classifier out.
    assert millions(found.macs - classifier) == printed


@pytest.mark.parametrize(("width", "printed", "off"), [(0.5, 38, 0.03), (1.5, 292, 0.03), (2.0, 524, 0.005)])
def test_shufflenet_of_other_widths_has_about_the_multiply_adds_of_tables_2_and_5(width, printed, off):
    # How channels and the stem are rounded at other widths the paper does not say.
    assert counted("family:shufflenet", width=width).macs / 1e6 == pytest.approx(printed, rel=off)


@pytest.mark.parametrize(
    ("depth", "growth", "compressed", "printed"),
    [
        (40, 12, False, 1.0),
        (100, 12, False, 7.0),
        (100, 24, False, 27.2),
        (100, 12, True, 0.8),
        (250, 24, True, 15.3),
        (190, 40, True, 25.6),
    ],
)
def test_densenet_has_the_parameters_of_table_2(depth, growth, compressed, printed):
    model = network(
        "family:densenet", depth=depth, growth=growth, bottleneck=compressed, compression=0.5 if compressed else 1.0
    )
    assert round(parameters(model) / 1e6, 1) == printed
