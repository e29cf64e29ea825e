"""What is shown of each technique: one row each, in the order of the phases."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from paretopress.evaluators.training.augment import Augment
from paretopress.evaluators.training.loop import Recipe
from paretopress.policies.policy import Step

from . import layers, whole
from .layers import Draw, on_layer

CONV, LINEAR = "layer3.1.conv1", "fc1"
"""64 filters of 64 x 3 x 3 in ResNet-20; 64 neurons of 1,024 inputs in the digits network."""


@dataclass(frozen=True)
class Exhibit:
    """A technique on real weights.

    Parameters
    ----------
    network
        A key of ``NETWORKS``.
    words
        What was done, and what to see.
    draw
        Carries it out; picture and figures.
    """

    network: str
    words: str
    draw: Draw


def _on_conv(words: str, step: Step, panel: layers.Panel) -> Exhibit:
    return Exhibit("resnet", words, on_layer(CONV, (step,), panel))


_svd_spatial = partial(Step.of, "svd_spatial")
_svd_channel = partial(Step.of, "svd_channel", whitening="activations")
_tucker = partial(Step.of, "tucker2")
_cp = partial(Step.of, "cp")
_circulant = partial(Step.of, "circulant")
_toeplitz = partial(Step.of, "toeplitz")

EXHIBITS: dict[str, Exhibit] = {
    "collapse": Exhibit(
        "digits",
        "The ReLU behind the layer is left out, and the layer and the next are one: the product of their matrices.",
        whole.collapsed(LINEAR, "fc2", Step.of("collapse")),
    ),
    "drop_branch": Exhibit(
        "resnet",
        "The residual branch whose loss moves the outputs least is gone. The bars are the other branches that could go.",
        whole.without_branch(Step.of("drop_branch")),
    ),
    "keep_channels": Exhibit(
        "digits",
        "30 epochs with a switch on each neuron, which its price turns off: the policy names those that are left.",
        whole.learned_width(
            LINEAR,
            (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
            3e-4,
            Recipe(epochs=30, batch_size=64, optimizer="adamw", lr=1e-3, weight_decay=0.0, augment=Augment(shift=1)),
        ),
    ),
    "merge_neurons": Exhibit(
        "digits",
        "Half of the neurons are merged into others with nearly the same weights, which take over what they gave to the"
        " next layer. No picture is needed.",
        whole.merged(
            LINEAR,
            lambda share: Step.of("merge_neurons", sparsity=share),
            lambda share: Step.of("prune_channels", sparsity=share, score="magnitude"),
            0.5,
        ),
    ),
    "prune_channels": Exhibit(
        "resnet",
        "Half of a block's inner channels go, with the filters that make them and the weights that read them.",
        whole.fewer_channels(CONV, Step.of("prune_channels", sparsity=0.5), "energy"),
    ),
    "cp": _on_conv(
        "Rank 64: 1 x 1, a column, a row and 1 x 1 in place of 3 x 3.",
        _cp(rank=64),
        layers.sizes(_cp(rank=24), _cp(rank=128), _cp(rank=192)),
    ),
    "svd": Exhibit(
        "digits",
        "Rank 12 of 64: two thin layers.",
        on_layer(LINEAR, (Step.of("svd", rank=12),), layers.singular_values),
    ),
    "svd_channel": _on_conv(
        "32 filters and a 1 x 1 convolution, chosen by what the outputs miss least.",
        _svd_channel(rank=32),
        layers.sizes(*(_svd_channel(rank=rank) for rank in (8, 16, 24, 44, 54))),
    ),
    "svd_spatial": _on_conv(
        "Rank 48: a column of 3 and a row of 3 in place of 3 x 3.",
        _svd_spatial(rank=48),
        layers.sizes(*(_svd_spatial(rank=rank) for rank in (12, 24, 36, 72, 92))),
    ),
    "tucker2": _on_conv(
        "36 channels in and out of the 3 x 3 convolution, between two 1 x 1 ones.",
        _tucker(rank_in=36, rank_out=36),
        layers.sizes(*(_tucker(rank_in=rank, rank_out=rank) for rank in (8, 16, 26, 46, 54))),
    ),
    "circulant": Exhibit(
        "digits",
        "Blocks of 4 x 4, each row the one above shifted: the nearest such matrix. Training starts from here.",
        on_layer(
            LINEAR,
            (_circulant(block=4),),
            layers.sizes(*(_circulant(block=block) for block in (2, 3, 8, 16))),
            (16, 16),
        ),
    ),
    "drop_dead": Exhibit(
        "digits",
        "After 98 % of the weights were pruned by magnitude, neurons without an incoming or outgoing weight go;"
        " the outputs stay as they are.",
        whole.emptied(
            LINEAR,
            lambda share: Step.of("prune_magnitude", sparsity=share),
            Step.of("drop_dead"),
            0.98,
            ("fc2",),
        ),
    ),
    "fastfood": _on_conv(
        "Three diagonals between fixed Hadamard transforms, fitted to the weights. Too few numbers to hold a trained matrix:"
        " training starts from here.",
        Step.of("fastfood"),
        layers.outputs,
    ),
    "prune_magnitude": _on_conv(
        "The 80 % smallest weights of the layer go.",
        Step.of("prune_magnitude", sparsity=0.8),
        layers.kept_and_dropped,
    ),
    "prune_nm": Exhibit(
        "digits",
        "2 of every 4 inputs of a neuron stay, the larger ones.",
        on_layer(LINEAR, (Step.of("prune_nm", n=2, m=4),), layers.kept_and_dropped, (16, 16)),
    ),
    "prune_obd": _on_conv(
        "80 % go, by curvature of the loss times square: some large ones that the loss does not feel, and not all small ones.",
        Step.of("prune_obd", sparsity=0.8),
        layers.kept_and_dropped,
    ),
    "prune_obs": _on_conv(
        "80 % go, and those that stay move to make up for them: at the same sparsity the output errs least.",
        Step.of("prune_obs", sparsity=0.8),
        layers.each_weight,
    ),
    "toeplitz": Exhibit(
        "digits",
        "Blocks of 4 x 4 that are constant along diagonals: the nearest such matrix. Training starts from here.",
        on_layer(
            LINEAR,
            (_toeplitz(block=4),),
            layers.sizes(*(_toeplitz(block=block) for block in (2, 3, 8, 16))),
            (16, 16),
        ),
    ),
    "binarize": _on_conv(
        "The sign of each weight, times the mean magnitude of its filter.",
        Step.of("binarize", method="mean"),
        layers.each_weight_and_a_channel,
    ),
    "fixed_point": _on_conv(
        "4 bit with one exponent for the layer: steps of a power of two.",
        Step.of("fixed_point", bits=4),
        layers.each_weight,
    ),
    "hash_weights": _on_conv(
        "A hash gives each place one of 4,608 values, so that 8 places share one.",
        Step.of("hash_weights", share=0.125),
        layers.buckets,
    ),
    "product_quantize": _on_conv(
        "Each pair of weights becomes the nearest of 16 codewords: 2 bit a weight.",
        Step.of("product_quantize", clusters=16, dimension=2, codebooks="shared"),
        layers.pairs,
    ),
    "quantize": _on_conv(
        "4 bit with a scale for each filter: steps as fine as its largest weight allows.",
        Step.of("quantize", bits=4),
        layers.each_weight_and_a_channel,
    ),
    "residual_quantize": _on_conv(
        "Each pair becomes the sum of one of 8 codewords and one of 8 more for what is left: 3 bit a weight.",
        Step.of("residual_quantize", clusters=8, stages=2, dimension=2, codebooks="shared"),
        layers.pairs,
    ),
    "share": _on_conv(
        "16 values by k-means, denser where weights are.",
        Step.of("share", clusters=16),
        layers.shared_values,
    ),
    "share_soft": Exhibit(
        "digits",
        "30 epochs with a mixture prior of a spike at zero and 8 more values, then each weight takes its component's mean.",
        whole.trained_mixture(
            LINEAR,
            Step.of("share_soft", clusters=8, zero=0.9, strength=1e-4),
            Recipe(epochs=30, batch_size=64, optimizer="adamw", lr=2e-3, weight_decay=0.0, augment=Augment(shift=1)),
        ),
    ),
}
