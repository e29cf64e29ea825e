"""The contract of the layer-local techniques, on plain layers of many geometries and on factorized ones."""

from __future__ import annotations

import pytest
import torch
from paretopress.policies import forms
from paretopress.policies.errors import PolicyError
from paretopress.policies.policy import Step
from paretopress.policies.techniques import TECHNIQUES, build
from paretopress.policies.techniques.base import Calibration, LayerInfo
from paretopress.policies.techniques.binarize import Binarize
from paretopress.policies.techniques.circulant import Circulant
from paretopress.policies.techniques.cp import CP
from paretopress.policies.techniques.fastfood import Fastfood
from paretopress.policies.techniques.fixed_point import FixedPoint
from paretopress.policies.techniques.hash_weights import HashWeights
from paretopress.policies.techniques.product_quantize import ProductQuantize
from paretopress.policies.techniques.prune_magnitude import PruneMagnitude
from paretopress.policies.techniques.prune_nm import PruneNM
from paretopress.policies.techniques.prune_obd import PruneOBD
from paretopress.policies.techniques.prune_obs import PruneOBS
from paretopress.policies.techniques.quantize_uniform import QuantizeUniform
from paretopress.policies.techniques.residual_quantize import ResidualQuantize
from paretopress.policies.techniques.rewrite_asymmetric import RewriteAsymmetric
from paretopress.policies.techniques.rewrite_flattened import RewriteFlattened
from paretopress.policies.techniques.rewrite_pooled import RewritePooled
from paretopress.policies.techniques.rewrite_separable import RewriteSeparable
from paretopress.policies.techniques.rewrite_stacked import RewriteStacked
from paretopress.policies.techniques.share_kmeans import ShareKMeans
from paretopress.policies.techniques.share_soft import ShareSoft
from paretopress.policies.techniques.svd_channel import SVDChannel
from paretopress.policies.techniques.svd_linear import SVDLinear
from paretopress.policies.techniques.svd_spatial import SVDSpatial
from paretopress.policies.techniques.toeplitz import Toeplitz
from paretopress.policies.techniques.tucker2 import Tucker2
from paretopress.tests.contracts.technique import (
    CONTRACT,
    Case,
    check_identity,
    check_the_cost_is_that_of_the_real_modules_and_falls,
    check_the_state_survives_a_file_bit_for_bit,
    layer_info,
)
from torch import nn

torch.set_num_threads(1)


def seeded(make):
    def factory(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return make()

    return factory


def sample(*shape):
    return torch.randn(4, *shape, generator=torch.Generator().manual_seed(7))


def words(value):
    """Of a parameter in a test's name; layers are numbered, since theirs would hold every input."""
    return None if isinstance(value, tuple) else str(value)


LINEAR = (seeded(lambda: nn.Linear(24, 20)), sample(24))
TOKENS = (seeded(lambda: nn.Linear(24, 20, bias=False)), sample(5, 24))
CONV = (seeded(lambda: nn.Conv2d(12, 16, 3, padding=1)), sample(12, 9, 8))
STRIDED = (seeded(lambda: nn.Conv2d(8, 12, (5, 3), stride=(2, 1), padding=(2, 0), bias=False)), sample(8, 11, 9))
DILATED = (
    seeded(lambda: nn.Conv2d(8, 12, 3, padding="same", dilation=(2, 1), padding_mode="reflect")),
    sample(8, 9, 7),
)
VALID = (seeded(lambda: nn.Conv2d(8, 12, 3, padding="valid", stride=(1, 2))), sample(8, 9, 9))
DEPTHWISE = (seeded(lambda: nn.Conv2d(8, 8, 3, groups=8, padding=1)), sample(8, 9, 9))
POINTWISE = (seeded(lambda: nn.Conv2d(16, 12, 1)), sample(16, 5, 5))
LARGE = (seeded(lambda: nn.Conv2d(8, 10, 5, padding=2)), sample(8, 11, 9))
LARGEST = (seeded(lambda: nn.Conv2d(6, 9, 7, padding=1, bias=False)), sample(6, 13, 13))

LAYERS = {
    "linear": LINEAR,
    "tokens": TOKENS,
    "conv": CONV,
    "strided": STRIDED,
    "dilated": DILATED,
    "valid": VALID,
    "depthwise": DEPTHWISE,
    "pointwise": POINTWISE,
}
ANY = (PruneMagnitude(0.7), QuantizeUniform(8), QuantizeUniform(3), QuantizeUniform(8, "int8"), ShareKMeans(5))
BINARY = (
    Binarize("sign"),
    Binarize("mean"),
    Binarize("loss_aware"),
    Binarize("connect"),
    Binarize("connect_stochastic", scaled=False),
)
FIXED = (FixedPoint(16), FixedPoint(6, "channel"), FixedPoint(4, "tensor", "stochastic", 3))
XNOR = Binarize("xnor")
FISHER = (PruneOBD(0.7),)
SECOND_ORDER = (
    PruneOBS(0.7),
    PruneOBD(0.7, "inputs"),
    QuantizeUniform(3, rounding="second_order"),
    QuantizeUniform(4, rounding="adaptive"),
    QuantizeUniform(8, "int8", "second_order"),
    ShareKMeans(5, "second_order"),
)
CODEBOOKS = (
    ShareKMeans(5, initial="density"),
    ShareKMeans(5, weighting="fisher"),
    ProductQuantize(3, 5),
    ProductQuantize(6, 2, "shared"),
    ResidualQuantize(4, 3, 5),
    HashWeights(0.125, seed=3),
)
SOFT = ShareSoft(5, strength=0.01)
SPLITS = (
    SVDSpatial(7),
    SVDChannel(6),
    SVDChannel(6, "activations"),
    CP(5),
    Tucker2(5, 6),
    Tucker2(3, 99),
    Tucker2(99, 6),
)
SVDS = (SVDLinear(6), SVDLinear(6, "activations"))
GENERATED = (Circulant(4), Circulant(5, 7), Toeplitz(6), Fastfood())
REWRITES = (
    RewriteSeparable(),
    RewriteSeparable(2, fit="weights"),
    RewriteAsymmetric(),
    RewriteAsymmetric(3, fit="weights"),
    RewriteFlattened(),
    RewriteFlattened(fit="weights"),
)
STACKS = (RewriteStacked(), RewriteStacked(5, fit="weights"))
POOLS = (RewritePooled(6), RewritePooled(6, fit="weights"))
GROUPS = (PruneNM(1, 3), PruneNM(2, 4, "second_order"))

PLAIN = {f"{t}-{name}": Case(t, *layer) for name, layer in LAYERS.items() for t in (*ANY, *FISHER)}
PLAIN |= {f"{t}-{name}": Case(t, *LAYERS[name]) for name in LAYERS if name != "depthwise" for t in SECOND_ORDER}
PLAIN |= {f"{t}-{name}": Case(t, *LAYERS[name]) for name in ("linear", "tokens", "pointwise") for t in SVDS}
PLAIN |= {
    f"{t}-{name}": Case(t, *LAYERS[name]) for name in ("linear", "conv", "strided") for t in (*GENERATED, *GROUPS)
}
PLAIN |= {
    f"{t}-{name}": Case(t, *LAYERS[name]) for name in ("tokens", "strided", "depthwise") for t in (*BINARY, *FIXED)
}
PLAIN |= {f"{XNOR}-{name}": Case(XNOR, *LAYERS[name]) for name in LAYERS if name not in ("dilated", "depthwise")}
PLAIN |= {f"{t}-{name}": Case(t, *LAYERS[name]) for name in ("conv", "strided", "dilated", "valid") for t in SPLITS}
PLAIN |= {f"{t}-{name}": Case(t, *LAYERS[name]) for name in ("conv", "strided", "dilated", "valid") for t in REWRITES}
PLAIN |= {f"{t}-{k}": Case(t, *layer) for k, layer in (("5 x 5", LARGE), ("7 x 7", LARGEST)) for t in STACKS}
PLAIN |= {f"{t}-{name}": Case(t, *LAYERS[name]) for name in ("linear", "conv") for t in CODEBOOKS}
PLAIN |= {f"{t}-depthwise": Case(t, *DEPTHWISE) for t in (CODEBOOKS[0], CODEBOOKS[5])}


def after(first, layer):
    make, inputs = layer
    return (lambda seed: first.apply(make(seed), Calibration(inputs))), inputs


PRUNED = {f"{t} after pruning": Case(t, *after(PruneMagnitude(0.6), CONV)) for t in (*ANY[1:], *SECOND_ORDER[2:])}
PRUNED |= {f"{t} after n of m": Case(t, *after(PruneNM(), CONV)) for t in (ANY[2], ANY[4], SECOND_ORDER[2])}
PRUNED |= {f"{t} after pruning by OBS": Case(t, *after(PruneOBS(0.6), CONV)) for t in (ANY[2], *SECOND_ORDER[2:])}
PRUNED |= {f"{t} after pruning": Case(t, *after(PruneMagnitude(0.6), CONV)) for t in (*BINARY, *FIXED, XNOR)}
FACTORIZED = {
    f"{t} after {f}": Case(t, *after(f, layer))
    for t in (*ANY, *FISHER, *SECOND_ORDER)
    for f, layer in ((SVDLinear(6), LINEAR), (SVDSpatial(7), CONV), (Tucker2(5, 6), CONV))
}
FACTORIZED |= {
    f"{t} after {f}": Case(t, *after(f, layer))
    for t in (ANY[2], ANY[4], GROUPS[0], GENERATED[0])
    for f, layer in (
        (SVDLinear(6, "activations"), LINEAR),
        (SVDChannel(6), CONV),
        (SVDLinear(6), POINTWISE),
        (CP(5), CONV),
    )
}
FACTORIZED |= {f"{t} after {SVDLinear(6)}": Case(t, *after(SVDLinear(6), LINEAR)) for t in (*BINARY, FIXED[2], XNOR)}
PRUNED |= {f"{t} after pruning": Case(t, *after(PruneMagnitude(0.6), CONV)) for t in (*CODEBOOKS, SOFT)}
FACTORIZED |= {f"{t} after {SVDSpatial(7)}": Case(t, *after(SVDSpatial(7), CONV)) for t in (*CODEBOOKS[2:], SOFT)}
REWRITTEN = {
    f"{t} after {f}": Case(t, *after(f, layer))
    for t in (ANY[0], ANY[2], ANY[4])
    for f, layer in (
        (REWRITES[0], CONV),
        (REWRITES[2], CONV),
        (REWRITES[4], CONV),
        (STACKS[0], LARGE),
        (POOLS[0], LINEAR),
    )
}
REWRITTEN |= {
    f"{t} after {f}": Case(t, *after(f, layer))
    for t in (SECOND_ORDER[0], SECOND_ORDER[2])
    for f, layer in ((REWRITES[2], CONV), (STACKS[0], LARGE), (POOLS[0], LINEAR))
}
# Of how many positions a linear layer's features are, only a graph tells.
FLAT = {f"{t}-{name}": Case(t, *LAYERS[name]) for name in ("linear", "tokens") for t in POOLS}
# How many weights a mixture draws to zero is not known before.
UNKNOWN = {f"{SOFT}-{name}": Case(SOFT, *LAYERS[name]) for name in ("linear", "conv")}
CASES = PLAIN | PRUNED | FACTORIZED | REWRITTEN | FLAT | UNKNOWN


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_contract(case, check):
    check(case)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_state_survives_a_file(case, tmp_path):
    check_the_state_survives_a_file_bit_for_bit(case, tmp_path)


@pytest.mark.parametrize("case", PLAIN.values(), ids=PLAIN)
def test_cost_is_that_of_the_real_modules(case):
    check_the_cost_is_that_of_the_real_modules_and_falls(case)


@pytest.mark.parametrize(
    ("technique", "layer"),
    [
        (PruneMagnitude(0.0), CONV),
        (PruneMagnitude(0.001), LINEAR),
        (PruneOBS(0.0), CONV),
        (PruneOBS(0.001), LINEAR),
        (PruneOBD(0.001), LINEAR),
        (HashWeights(0.9999), LINEAR),
        (SVDLinear(20), LINEAR),
        (SVDSpatial(36), CONV),
        (Tucker2(12, 16), CONV),
        (SVDLinear(12), POINTWISE),
        (SVDLinear(20, "activations"), LINEAR),
        (SVDChannel(16), CONV),
        (PruneNM(2, 4), DEPTHWISE),
    ],
    ids=words,
)
def test_a_step_without_effect_is_the_identity(technique, layer):
    make, inputs = layer
    check_identity(technique, make(0), inputs)


@pytest.mark.parametrize(
    ("technique", "layer", "reason"),
    [
        (ProductQuantize(8, 3), DEPTHWISE, "codes with the codebooks take 74 float32 values"),
        (ResidualQuantize(64, 4, 5), DEPTHWISE, "use fewer clusters"),
        (SVDLinear(4), CONV, "conv2d"),
        (SVDLinear(4), DEPTHWISE, "conv2d layer with a 3 x 3 kernel"),
        (SVDChannel(4), LINEAR, "linear"),
        (SVDChannel(4), DEPTHWISE, "8 groups"),
        (SVDChannel(4), POINTWISE, "svd takes it"),
        (SVDChannel(15), CONV, "takes 124416 MACs and its factors would take 133920"),
        (CP(4), LINEAR, "linear"),
        (CP(4), DEPTHWISE, "8 groups"),
        (CP(4), POINTWISE, "1 x 1"),
        (CP(60), CONV, "takes 124416 MACs and its factors would take 146880"),
        (CP(60), CONV, "the largest rank that helps is 50"),
        (Tucker2(11, 15), CONV, "the largest rank that helps is rank_in "),
        (Circulant(4), DEPTHWISE, "72 weights, which circulant would make from 72 parameters"),
        (Toeplitz(4), DEPTHWISE, "72 weights, which toeplitz would make from 72 parameters"),
        (PruneNM(1, 2, "second_order"), DEPTHWISE, "8 groups"),
        (SVDSpatial(4), LINEAR, "linear"),
        (SVDSpatial(4), DEPTHWISE, "8 groups"),
        (SVDSpatial(4), POINTWISE, "1 x 1"),
        (Tucker2(4, 4), LINEAR, "linear"),
        (Tucker2(4, 4), DEPTHWISE, "8 groups"),
        (Tucker2(4, 4), POINTWISE, "1 x 1"),
        (RewriteSeparable(), LINEAR, "linear"),
        (RewriteSeparable(), DEPTHWISE, "8 groups"),
        (RewriteSeparable(), POINTWISE, "1 x 1"),
        (RewriteSeparable(8), CONV, "the largest rank that helps is multiplier 5"),
        (RewriteAsymmetric(), DEPTHWISE, "8 groups"),
        (RewriteAsymmetric(37), CONV, "no more than 36 channels between a column and a row; got width 37"),
        (RewriteAsymmetric(30), CONV, "the largest rank that helps is width 20"),
        (RewriteFlattened(), POINTWISE, "1 x 1"),
        (RewriteStacked(), CONV, "3 x 3 kernel; 3 x 3 ones in a row make square odd kernels from 5 x 5 on"),
        (RewriteStacked(), STRIDED, "has a 5 x 3 kernel"),
        (RewriteStacked(13), LARGE, "the largest rank that helps is width 12"),
        (RewritePooled(6), CONV, "only linear layers on a flattened map can be pooled"),
        (RewritePooled(6), LINEAR, "does not stand behind the flattening of a map whose channels are known"),
        (XNOR, DEPTHWISE, "8 groups"),
        (XNOR, DILATED, "no dilation"),
        *((technique, DEPTHWISE, "8 groups, each with inputs and a Hessian of its own") for technique in SECOND_ORDER),
    ],
    ids=words,
)
def test_a_layer_that_does_not_fit_is_refused_with_the_reason(technique, layer, reason):
    make, inputs = layer
    answer = technique.check(layer_info(make(0), inputs))
    assert answer is not None
    assert reason in answer


@pytest.mark.parametrize("technique", [*SPLITS, *REWRITES, *SECOND_ORDER, XNOR], ids=str)
def test_a_convolution_that_pads_by_itself_is_refused(technique):
    class PadsItself(nn.Conv2d):
        def forward(self, x):
            return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))

    layer = LayerInfo("stem", "conv2d", (16, 3, 3, 3), (3, 32, 32), (16, 16, 16), True, (2, 2), (0, 0))
    assert "pads its input" in technique.check(layer)
    with pytest.raises(PolicyError, match=r"expected a torch Conv2d.*, got PadsItself"):
        technique.apply(PadsItself(3, 16, 3, stride=2), Calibration(torch.ones(1, 3, 32, 32)))


REFUSING = [*ANY, *SECOND_ORDER, *BINARY, *FIXED, XNOR, *CODEBOOKS, SOFT, SVDLinear(2), *SPLITS, *GENERATED, *GROUPS]
REFUSING += [*REWRITES, *STACKS, *POOLS]


@pytest.mark.parametrize("technique", REFUSING, ids=str)
def test_a_module_without_weights_is_refused(technique):
    with pytest.raises(PolicyError, match=r"expected a .*, got ReLU"):
        technique.apply(nn.ReLU(), Calibration(torch.ones(1)))


def test_every_technique_in_the_table_goes_by_its_own_name():
    assert {name: cls.name for name, cls in TECHNIQUES.items()} == {name: name for name in TECHNIQUES}


def test_a_policy_step_becomes_its_technique():
    assert build(Step.of("quantize")) == QuantizeUniform(8, "float32")
    assert build(Step.of("quantize", bits=4, activations="int8")) == QuantizeUniform(4, "int8", "nearest")
    assert build(Step.of("share", clusters=4, rounding="second_order")) == ShareKMeans(4, "second_order")
    pruning = build(Step.of("prune_magnitude", sparsity=0))
    assert pruning == PruneMagnitude(0.0)
    assert isinstance(pruning.sparsity, float)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Step.of("prune_magnitud", sparsity=0.5), "did you mean 'prune_magnitude'"),
        (Step.of("zzz"), "unknown technique 'zzz'; known: .*quantize"),
        (Step.of("quantize", bit=4), "unknown parameter 'bit'; did you mean 'bits'.*activations"),
        (Step.of("tucker2", rank_in=4), "parameter 'rank_out' is missing; it takes rank_in, rank_out"),
        (Step.of("quantize", bits=True), "bits is of type int, got True"),
        (Step.of("quantize", bits=4.0), "bits is of type int, got 4.0"),
        (Step.of("quantize", activations=8), "activations is of type str, got 8"),
        (Step.of("quantize", activations="int4"), "expected activations float32 or int8, got 'int4'"),
        (Step.of("quantize", rounding="up"), "expected rounding nearest or second_order or adaptive, got 'up'"),
        (Step.of("quantize", activations="int8", calibration="max"), "expected calibration minmax or .*, got 'max'"),
        (Step.of("quantize", calibration="mse"), "calibration mse is of 8-bit inputs; give activations: int8"),
        (Step.of("quantize", bits=1), "from 2 to 8, got 1"),
        (Step.of("prune_obd", sparsity=1.0), "prune_obd: expected 0 <= sparsity < 1, got 1.0"),
        (Step.of("prune_obs", sparsity=1.0), "prune_obs: expected 0 <= sparsity < 1, got 1.0"),
        (Step.of("share", clusters=4, rounding="up"), "share: expected rounding nearest or second_order, got 'up'"),
        (
            Step.of("share", clusters=4, initial="even"),
            "expected initial as one of linear, density, random, got 'even'",
        ),
        (Step.of("share", clusters=4, weighting="hessian"), "expected weighting as one of none, fisher, got 'hessian'"),
        (Step.of("share", clusters=4, entropy=-0.1), "expected entropy of at least 0 .0 is off., got -0.1"),
        (Step.of("share", clusters=4, entropy=0.1, rounding="second_order"), "takes no account of entropy"),
        (Step.of("share_soft", clusters=1), "clusters as a whole number from 2 to 256, got 1"),
        (Step.of("share_soft", clusters=4, zero=1.0), "expected 0 < zero < 1, got 1.0"),
        (Step.of("share_soft", clusters=4, strength=0.0), "expected a strength above 0, got 0.0"),
        (Step.of("product_quantize", clusters=1), "clusters as a whole number from 2 to 65536, got 1"),
        (Step.of("product_quantize", clusters=4, codebooks="one"), "expected codebooks each or shared, got 'one'"),
        (Step.of("residual_quantize", clusters=4, stages=9), "stages as a whole number from 1 to 8, got 9"),
        (Step.of("residual_quantize", clusters=4, dimension=0), "dimension as a whole number from 1 to 4096, got 0"),
        (Step.of("hash_weights", share=1.0), "expected 0 < share < 1, got 1.0"),
        (Step.of("hash_weights", share=0.5, seed=-1), "expected a seed from 0 to 2.31 - 2, got -1"),
        (Step.of("prune_magnitude", sparsity="most"), "sparsity is of type float, got 'most'"),
        (Step.of("prune_magnitude", sparsity=False), "sparsity is of type float, got False"),
        (Step.of("prune_magnitude", sparsity=1.0), "0 <= sparsity < 1, got 1.0"),
        (Step.of("prune_magnitude", sparsity=float("nan")), "0 <= sparsity < 1, got nan"),
        (Step.of("share", clusters=1), "from 2 to 256, got 1"),
        (Step.of("share", clusters=257), "from 2 to 256, got 257"),
        (Step.of("prune_nm", n=4), "expected whole numbers 1 <= n < m <= 64, got n 4 and m 4"),
        (Step.of("prune_nm", saliency="random"), "expected saliency magnitude or second_order, got 'random'"),
        (Step.of("circulant", block=1), r"circulant: expected block as a whole number of \[2, 2\^31\), got 1"),
        (Step.of("circulant", block=4, seed=-1), "circulant: expected seed as"),
        (Step.of("toeplitz", block=0), "toeplitz: expected block as"),
        (Step.of("fastfood", seed=0), "fastfood: expected seed as"),
        (Step.of("svd", rank=3, whitening="all"), "svd: expected whitening none or activations, got 'all'"),
        (Step.of("svd_channel", rank=3, whitening="all"), "svd_channel: expected whitening none or activations"),
        (Step.of("svd_channel", rank=0), "rank as a whole number of at least 1, got 0"),
        (Step.of("cp", rank=0), "rank as a whole number of at least 1, got 0"),
        (Step.of("rewrite_separable", multiplier=0), "multiplier as a whole number of at least 1, got 0"),
        (Step.of("rewrite_separable", fit="all"), "rewrite_separable: expected fit outputs or weights, got 'all'"),
        (Step.of("rewrite_stacked", width=-1), "width as a whole number of at least 0, got -1"),
        (Step.of("rewrite_asymmetric", fit="all"), "rewrite_asymmetric: expected fit outputs or weights, got 'all'"),
        (Step.of("rewrite_flattened", fit="all"), "rewrite_flattened: expected fit outputs or weights, got 'all'"),
        (Step.of("rewrite_pooled", positions=1), "positions as a whole number of at least 2, got 1"),
        (Step.of("binarize", method="half"), "expected method sign, mean, xnor, .*, got 'half'"),
        (Step.of("binarize", method="mean", scaled=False), "the method mean is its scale.*goes with sign, connect"),
        (Step.of("fixed_point", bits=17), "from 2 to 16, got 17"),
        (Step.of("fixed_point", exponents="row"), "expected exponents tensor or channel, got 'row'"),
        (Step.of("fixed_point", rounding="up"), "expected rounding nearest or stochastic, got 'up'"),
        (Step.of("fixed_point", seed=-1), "seed of at least 0, got -1"),
        (Step.of("svd", rank=0), "rank as a whole number of at least 1, got 0"),
        (Step.of("svd_spatial", rank=-3), "at least 1, got -3"),
        (Step.of("tucker2", rank_in=0, rank_out=2), "rank_in as a whole number"),
    ],
    ids=words,
)
def test_a_wrong_step_is_refused_by_name(step, message):
    with pytest.raises(PolicyError, match=message):
        build(step)


def test_a_stem_of_three_channels_gets_no_layer_that_mixes_them():
    factors = Tucker2(3, 4).apply(nn.Conv2d(3, 8, 3), None)
    assert [tuple(layer.weight.shape) for _, layer in forms.weighted_modules(factors)] == [(4, 3, 3, 3), (8, 4, 1, 1)]
