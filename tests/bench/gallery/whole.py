"""Pictures of techniques that change the shape of a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from paretopress.evaluators.accuracy import error_pct
from paretopress.evaluators.training.learned import Learned, Learning, learn
from paretopress.evaluators.training.loop import Recipe, train
from paretopress.evaluators.training.penalties.architecture import Architecture
from paretopress.policies.apply import CompressedModel
from paretopress.policies.importance import Importance
from paretopress.policies.policy import Step
from torch import Tensor, nn

from .canvas import AFTER, BEFORE, GRID, MARK, QUIET, Canvas
from .change import FLOAT_BYTES, Change, Figures, carried_out, changed, network_error, stored_bytes
from .layers import Draw, colour_limit, flat, shown
from .networks import Network
from .panels import PLACES, SIDE, TOP, Axes, legend, matrix

WINDOW = (64, 64)


def fewer_channels(layer: str, step: Step, score: str) -> Draw:
    """The layer with fewer rows, and the score by which they went."""

    def draw(network: Network) -> tuple[Canvas, Figures]:
        compressed, canvas = carried_out(network, {layer: (step,)}), Canvas()
        _rows(canvas, _weight(network.model, layer), _weight(compressed.model, layer))
        group = network.graph.group_of(layer)
        assert group is not None
        scores = np.sort(Importance(network.model, network.graph.groups, network.pictures).scores(group, score).numpy())
        gone = len(scores) - len(_weight(compressed.model, layer))
        axes = Axes(canvas, (0, len(scores)), (0, 1.05 * float(scores[-1])))
        axes.titled("which channels go", "channels, in order", "energy", y_ticks=False)
        axes.bars(scores.tolist(), [BEFORE if number < gone else AFTER for number in range(len(scores))])
        axes.key([("dropped", BEFORE), ("kept", AFTER)], axes.LEFT + 8)
        return canvas, _figures(network, compressed)

    return draw


def merged(layer: str, step: Callable[[float], Step], other: Callable[[float], Step], share: float) -> Draw:
    """The layer with fewer rows, and the network's error beside that of dropping without merging."""

    def draw(network: Network) -> tuple[Canvas, Figures]:
        compressed, canvas = carried_out(network, {layer: (step(share),)}), Canvas()
        before = _weight(network.model, layer)
        _rows(canvas, before, _weight(compressed.model, layer))
        axes = Axes(canvas, (0, len(before)), (0, 1.0))
        axes.titled("beside dropping alone", "neurons left", "relative output error")
        for make, colour in ((other, BEFORE), (step, AFTER)):
            kept, errors = [float(len(before))], [0.0]
            for sparsity in (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875):
                found = carried_out(network, {layer: (make(sparsity),)})
                kept.append(float(len(_weight(found.model, layer))))
                errors.append(network_error(network, found.model))
            axes.curve(kept, errors, colour)
            axes.points(np.array(kept), np.array(errors), colour, 2.4)
        axes.key([("smallest dropped", BEFORE), ("alike merged", AFTER)])
        return canvas, _figures(network, compressed)

    return draw


def emptied(layer: str, prune: Callable[[float], Step], drop: Step, sparsity: float, readers: Sequence[str]) -> Draw:
    """The pruned layer with and without rows that hold no weight, and how many are left at other sparsities."""

    def draw(network: Network) -> tuple[Canvas, Figures]:
        def dropped(share: float, *more: Step) -> CompressedModel:
            pruned = {name: (prune(share),) for name in readers}
            return carried_out(network, pruned | {layer: (prune(share), *more)})

        pruned, compressed, canvas = dropped(sparsity), dropped(sparsity, drop), Canvas()
        _rows(canvas, _weight(pruned.model, layer), _weight(compressed.model, layer), "pruned")
        shares = (0.86, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.975, 0.98, 0.985, 0.99)
        left = [len(_weight(dropped(share, drop).model, layer)) for share in shares]
        axes = Axes(canvas, (85, 100), (0, 68)).titled("neurons left", "weights pruned, %", "neurons")
        axes.curve([100 * share for share in shares], left, BEFORE)
        axes.points(100 * np.array(shares), np.array(left), BEFORE, 2.4)
        at = 100 * sparsity, float(len(_weight(compressed.model, layer)))
        axes.points(*(np.array([value]) for value in at), AFTER, 3.6)
        return canvas, _figures(network, compressed, pruned.model)

    return draw


def without_branch(step: Step) -> Draw:
    """Each residual branch that can be dropped, and the one that is missed least."""

    def draw(network: Network) -> tuple[Canvas, Figures]:
        branches, canvas = network.graph.branches, Canvas()
        found = {branch.root: carried_out(network, {branch.root: (step,)}) for branch in branches}
        errors = {root: network_error(network, compressed.model) for root, compressed in found.items()}
        gone = min(errors, key=lambda root: errors[root])
        before = _weight(network.model, gone)
        limit = colour_limit(before)
        window = min(40, len(before)), min(40, len(before))
        matrix(canvas, 0, f"before: {gone}", flat(before)[: window[0], : window[1]], limit, shown(before, window))
        canvas.text((PLACES[1], TOP - 9), "after", 11.5)
        canvas.rectangle((PLACES[1], TOP), (PLACES[1] + SIDE, TOP + SIDE), None, GRID)
        canvas.text((PLACES[1] + SIDE / 2, TOP + SIDE / 2), "no such layer", 11, "mm", QUIET)
        axes = Axes(canvas, (0, len(errors)), (0, 1.1 * max(errors.values())))
        axes.titled("without each branch", "branches, first to last", "relative output error", x_ticks=False)
        axes.bars(list(errors.values()), [AFTER if root == gone else BEFORE for root in errors])
        axes.key([("dropped", AFTER)], axes.LEFT + 8)
        return canvas, _figures(network, found[gone])

    return draw


def learned_width(layer: str, prices: Sequence[float], shown_price: float, recipe: Recipe) -> Draw:
    """The layer with the neurons that a training with switches leaves, and how many it leaves at other prices."""

    def draw(network: Network) -> tuple[Canvas, Figures]:
        def learned(price: float) -> Learned:
            learning = Learning("fc", Architecture(price), recipe)
            return learn(network.model, network.graph, network.data, learning, seed=0)

        found, canvas = {price: learned(price) for price in prices}, Canvas()
        chosen = found[shown_price]
        compressed = carried_out(network, dict(chosen.policy.layers))
        _rows(canvas, _weight(network.model, layer), _weight(chosen.model, layer))
        left = [float(found[price].widths[layer]) for price in prices]
        axes = Axes(canvas, (0, len(prices)), (0, 68))
        axes.titled("neurons left", f"price of a neuron, {prices[0]:g} to {prices[-1]:g}", "neurons", x_ticks=False)
        axes.bars(left, [AFTER if price == shown_price else BEFORE for price in prices])
        errors = (_test_error_pct(model, network) for model in (network.model, chosen.model))
        note = "test error {:.1f} % → {:.1f} %".format(*errors)
        return canvas, replace(_figures(network, compressed), network_error=None, note=note)

    return draw


def collapsed(layer: str, reader: str, step: Step) -> Draw:
    """A layer and the product of it and the next, and how many weights each has."""

    def draw(network: Network) -> tuple[Canvas, Figures]:
        compressed, canvas = carried_out(network, {layer: (step,)}), Canvas()
        weights = [_weight(network.model, layer), _weight(network.model, reader), _weight(compressed.model, reader)]
        _rows(canvas, weights[0], weights[2], f"before: {layer}")
        counts = [weight.size / 1000 for weight in weights]
        axes = Axes(canvas, (0, 3), (0, 1.15 * max(counts)))
        axes.titled("weights", f"{layer}, {reader}, the one in their place", "thousand weights", x_ticks=False)
        axes.bars(counts, [BEFORE, BEFORE, AFTER])
        return canvas, _figures(network, compressed)

    return draw


def trained_mixture(layer: str, step: Step, recipe: Recipe) -> Draw:
    """The layer after a training in which the mixture draws its weights together."""

    def draw(network: Network) -> tuple[Canvas, Figures]:
        start = changed(network, layer, step)
        compressed, canvas = carried_out(network, {layer: (step,)}), Canvas()
        train(compressed.model, network.data, recipe, seed=0)
        change = Change(network, layer, compressed.model, start.inputs)
        limit = colour_limit(change.before)
        for place, title, weights in ((0, "before", change.before), (1, "trained and collapsed", change.now)):
            matrix(canvas, place, title, flat(weights)[:40, :40], limit, shown(weights, (40, 40), place))
        legend(canvas, limit)
        _mixture(canvas, change.after)
        errors = (_test_error_pct(model, network) for model in (network.model, compressed.model))
        note = "test error {:.1f} % → {:.1f} %".format(*errors)
        return canvas, replace(change.figures(), layer_error=None, network_error=None, note=note)

    return draw


def _mixture(canvas: Canvas, layer: nn.Module) -> None:
    """Weights as they were trained, and the values that are left of them."""
    original = cast(Tensor, layer.get_submodule("parametrizations.weight").original).detach().numpy().ravel()
    values = np.unique(cast(Tensor, layer.weight).detach().numpy())
    low, high = min(original.min(), values[0]), max(original.max(), values[-1])
    edges = np.linspace(float(low), float(high), 81)
    counts = np.histogram(original, edges)[0] + 0.5
    axes = Axes(canvas, (float(low), float(high)), (0.5, 2.0 * float(counts.max())), log=True)
    axes.titled("weights after training", "weight", "weights")
    for value in values.tolist():
        axes.upright(value, MARK if value == 0 else AFTER, 1.0)
    axes.filled(edges, counts, BEFORE)


def _rows(canvas: Canvas, before: np.ndarray, after: np.ndarray, title: str = "before") -> None:
    limit = colour_limit(before[before != 0])
    rows = flat(after)[: WINDOW[0], : WINDOW[1]]
    empty = np.full((WINDOW[0] - len(rows), rows.shape[1]), np.nan)
    matrix(canvas, 0, title, flat(before)[: WINDOW[0], : WINDOW[1]], limit, shown(before, WINDOW))
    matrix(canvas, 1, f"after: {len(after)} rows", np.concatenate([rows, empty]), limit)
    legend(canvas, limit)


def _figures(network: Network, compressed: CompressedModel, beside: nn.Module | None = None) -> Figures:
    """Of the whole network, its outputs beside another's or the dense one's."""
    parameters = sum(parameter.numel() for parameter in network.model.parameters())
    error = network_error(network, compressed.model, beside)
    return Figures(FLOAT_BYTES * parameters, stored_bytes(compressed.model), None, error)


def _test_error_pct(model: nn.Module, network: Network) -> float:
    test = network.data.test
    assert test is not None
    with torch.no_grad():
        return error_pct(model.eval()(network.data.preprocess(test.images)).numpy(), test.labels)


def _weight(model: nn.Module, layer: str) -> np.ndarray:
    return cast(np.ndarray, cast(Tensor, model.get_submodule(layer).weight).detach().numpy())
