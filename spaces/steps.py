"""What the words and shares of a menu ask of a layer, as steps of a policy."""

from __future__ import annotations

from typing import get_args

from ..policies.policy import Step
from ..policies.techniques.base import LayerInfo
from ..policies.techniques.prune_channels import Score

DROPPERS: dict[str, tuple[str, dict[str, str]]] = {
    # The default is not written out: it came later than channel steps did.
    **{score: ("prune_channels", {} if score == "energy" else {"score": score}) for score in get_args(Score)},
    "merge": ("merge_neurons", {}),
}
PRUNERS: dict[str, tuple[str, dict[str, str]]] = {
    "magnitude": ("prune_magnitude", {}),
    "obd": ("prune_obd", {"curvature": "fisher"}),
    "obd_inputs": ("prune_obd", {"curvature": "inputs"}),
    "obs": ("prune_obs", {}),
}
REWRITES: dict[str, str | None] = {
    "keep": None,
    "separable": "rewrite_separable",
    "stacked": "rewrite_stacked",
    "asymmetric": "rewrite_asymmetric",
    "flattened": "rewrite_flattened",
    "pooled": "rewrite_pooled",
}
"""What stands in a layer's place, as the technique that puts it there."""


def pruning_step(word: str, sparsity: float) -> Step:
    """The step of a word of ``PRUNERS``."""
    technique, fixed = PRUNERS[word]
    return Step.of(technique, sparsity=sparsity, **fixed)


def rewrite_steps(layer: LayerInfo, word: str) -> tuple[Step, Step] | None:
    """The rewrite of a word of ``REWRITES``, fitted to the weights alone and to the outputs; ``None`` where the layer stays.

    A pooled layer is always fitted to the outputs: it has few inputs left, for which that costs next to nothing.
    """
    technique = REWRITES[word]
    if technique == "rewrite_pooled":
        step = Step.of(technique, positions=layer.positions)
        return (step, step) if layer.positions > 1 else None
    return None if technique is None else (Step.of(technique, fit="weights"), Step.of(technique))


def factor_step(layer: LayerInfo, share: float, factorize: str) -> Step:
    """The factorization whose factors hold about this share of the layer's weights, for the weights alone."""
    return factor_steps(layer, share, factorize)[0]


def factor_steps(layer: LayerInfo, share: float, factorize: str) -> tuple[Step, Step]:
    """The same, and that for the outputs where there is one.

    A linear layer and a 1 x 1 convolution are matrices, whatever convolutions are factorized by.
    """
    wanted = share * layer.weights
    out = layer.weight_shape[0]
    inputs = layer.weights // out
    if layer.kind == "linear" or layer.weight_shape[2:] == (1, 1):
        return _whitened("svd", wanted / (out + inputs))
    if factorize == "svd_channel":
        return _whitened("svd_channel", wanted / (out + inputs))
    into, height, width = layer.weight_shape[1:]
    if factorize == "svd_spatial":
        step = Step.of("svd_spatial", rank=_grid(wanted / (into * height + out * width)))
    elif factorize == "cp":
        step = Step.of("cp", rank=_grid(wanted / sum(layer.weight_shape)))
    else:
        a, b = out * into * height * width, out * out + into * into
        scale = (-b + (b * b + 4 * a * wanted) ** 0.5) / (2 * a)
        step = Step.of("tucker2", rank_in=_grid(scale * into), rank_out=_grid(scale * out))
    return step, step


def _whitened(technique: str, rank: float) -> tuple[Step, Step]:
    return (
        Step.of(technique, rank=_grid(rank)),
        Step.of(technique, rank=_grid(rank), whitening="activations"),
    )


def _grid(rank: float) -> int:
    return max(1, round(rank)) if rank < 12 else round(rank / 8) * 8
