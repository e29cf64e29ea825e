"""Pictures of techniques that work on one layer: the matrix before and after, and a panel of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from paretopress.policies.policy import Step

from .canvas import AFTER, BEFORE, MARK, Canvas
from .change import Change, Figures, changed, output_error
from .networks import Network
from .panels import Axes, legend, matrix

Draw = Callable[[Network], tuple[Canvas, Figures]]
Panel = Callable[[Canvas, Change], None]
SHOWN_POINTS = 3000
COLOURED_SHARE = 0.99
"""Of the weights' magnitudes; those beyond have the last colour."""


def on_layer(layer: str, steps: Sequence[Step], panel: Panel, window: tuple[int, int] = (40, 40)) -> Draw:
    """A layer's matrix before and after, of which ``window`` (rows, columns) is shown, and a third panel."""

    def draw(network: Network) -> tuple[Canvas, Figures]:
        change, canvas = changed(network, layer, *steps), Canvas()
        limit = colour_limit(change.before)
        for place, title, weights in ((0, "before", change.before), (1, "after", change.now)):
            matrix(canvas, place, title, flat(weights)[: window[0], : window[1]], limit, shown(weights, window, place))
        legend(canvas, limit)
        panel(canvas, change)
        return canvas, change.figures()

    return draw


def flat(weights: np.ndarray) -> np.ndarray:
    """(out, all that one output reads)."""
    return weights.reshape(len(weights), -1)


def colour_limit(weights: np.ndarray) -> float:
    return float(np.quantile(np.abs(weights), COLOURED_SHARE))


def shown(weights: np.ndarray, window: tuple[int, int], place: int = 0) -> str:
    """What part of the matrix is seen, below the first one."""
    rows, columns = flat(weights).shape
    seen = min(rows, window[0]), min(columns, window[1])
    return f"{seen[0]} x {seen[1]} of {rows} x {columns}" if place == 0 else ""


def kept_and_dropped(canvas: Canvas, change: Change) -> None:
    """Magnitudes of the weights, those that are zero now beside the others."""
    magnitudes, kept = np.abs(change.before).ravel(), change.now.ravel() != 0
    edges = np.linspace(0, np.quantile(magnitudes, 0.998), 41)
    both, left = (np.histogram(part, edges)[0] for part in (magnitudes, magnitudes[kept]))
    axes = Axes(canvas, (0, float(edges[-1])), (0, 1.05 * float(both.max())))
    axes.titled("which weights go", "magnitude before", "weights", y_ticks=False)
    axes.filled(edges, both, BEFORE)
    axes.filled(edges, left, AFTER)
    axes.key([("dropped", BEFORE), ("kept", AFTER)])


def each_weight(canvas: Canvas, change: Change) -> None:
    """A point for each weight: its value before and after."""
    limit = 1.02 * float(np.abs(change.before).max())
    limit = min(limit, 1.3 * float(np.quantile(np.abs(change.before), 0.999)))
    axes = Axes(canvas, (-limit, limit), (-limit, limit)).titled("each weight", "before", "after")
    axes.curve((-limit, limit), (-limit, limit), "#c5cbd0", 1.0)
    chosen = drawn_from(change.before.size)
    axes.points(change.before.ravel()[chosen], change.now.ravel()[chosen], AFTER, 1.0)


def each_weight_and_a_channel(canvas: Canvas, change: Change) -> None:
    """As ``each_weight``, with the output channel of the largest weight in another colour."""
    each_weight(canvas, change)
    before, now = flat(change.before), flat(change.now)
    channel = int(np.abs(before).max(1).argmax())
    limit = min(
        1.02 * float(np.abs(before).max()),
        1.3 * float(np.quantile(np.abs(before), 0.999)),
    )
    axes = Axes(canvas, (-limit, limit), (-limit, limit))
    axes.points(before[channel], now[channel], MARK, 1.4)
    axes.key([("one channel", MARK), ("all", AFTER)], axes.LEFT + 6)


def shared_values(canvas: Canvas, change: Change) -> None:
    """A histogram, and where the shared values stand."""
    weights = change.before.ravel()
    low, high = np.quantile(weights, [0.0005, 0.9995])
    values = np.unique(change.now)
    edges = np.linspace(min(low, values[0]), max(high, values[-1]), 61)
    counts = np.histogram(weights, edges)[0]
    axes = Axes(canvas, (float(edges[0]), float(edges[-1])), (0, 1.05 * float(counts.max())))
    axes.titled(f"{len(values)} shared values", "weight", "weights", y_ticks=False)
    axes.filled(edges, counts, "#c3c9ce")
    for value in values.tolist():
        axes.upright(value, AFTER, 1.4)


def buckets(canvas: Canvas, change: Change) -> None:
    """Some of the groups of places that share a value: the weights before, and the value."""
    before, now = change.before.ravel(), change.now.ravel()
    values = np.unique(now)
    chosen = values[np.linspace(0, len(values) - 1, 24).astype(int)]
    limit = 1.1 * float(max(np.abs(before[np.isin(now, chosen)]).max(), np.abs(chosen).max()))
    axes = Axes(canvas, (0, 25), (-limit, limit))
    axes.titled("places that share a value", "24 of them, by their value", "weight", x_ticks=False)
    for number, value in enumerate(chosen.tolist(), 1):
        members = before[now == value]
        axes.points(np.full(len(members), float(number)), members, BEFORE, 1.3)
        axes.points(np.array([float(number)]), np.array([value]), AFTER, 2.6)
    axes.key([("before", BEFORE), ("shared", AFTER)], axes.LEFT + 6)


def pairs(canvas: Canvas, change: Change) -> None:
    """Neighbours in a row as points of the plane, and the codewords that they become."""
    before, now = (flat(weights).reshape(-1, 2) for weights in (change.before, change.now))
    limit = 1.2 * float(np.quantile(np.abs(before), 0.998))
    codewords = np.unique(now, axis=0)
    axes = Axes(canvas, (-limit, limit), (-limit, limit))
    axes.titled(f"{len(codewords)} points for pairs", "first weight of a pair", "second")
    chosen = drawn_from(len(before))
    axes.points(before[chosen, 0], before[chosen, 1], "#b9c0c6", 1.0)
    axes.points(codewords[:, 0], codewords[:, 1], AFTER, 2.6)


def singular_values(canvas: Canvas, change: Change) -> None:
    """Those of the matrix, in order, and which are kept."""
    values = np.linalg.svd(flat(change.before), compute_uv=False)
    kept = int((np.linalg.svd(flat(change.now), compute_uv=False) > 1e-4 * values[0]).sum())
    axes = Axes(canvas, (0, len(values)), (0, 1.05 * float(values[0])))
    axes.titled("singular values", "number", "value")
    axes.bars(values.tolist(), [AFTER if number < kept else BEFORE for number in range(len(values))])
    axes.key([("kept", AFTER), ("dropped", BEFORE)])


def outputs(canvas: Canvas, change: Change) -> None:
    """What the layer gives, before and after."""
    with torch.no_grad():
        before, now = (module.eval()(change.inputs).numpy().ravel() for module in (change.dense, change.after))
    chosen = drawn_from(len(before))
    limit = 1.1 * float(np.quantile(np.abs(before), 0.999))
    axes = Axes(canvas, (-limit, limit), (-limit, limit)).titled("outputs of the layer", "before", "after")
    axes.curve((-limit, limit), (-limit, limit), "#c5cbd0", 1.0)
    axes.points(before[chosen], now[chosen], AFTER, 1.0)


def sizes(*others: Step) -> Panel:
    """The output error of other settings of the technique over what is left to store; the shown one is the large point."""

    def panel(canvas: Canvas, change: Change) -> None:
        tried = [(left(change), output_error(change), True)]
        for step in others:
            other = changed(change.network, change.layer, step)
            tried.append((left(other), output_error(other), False))
        tried.sort()
        axes = Axes(canvas, (0, 100), (0, max(1.0, 1.05 * max(error for _, error, _ in tried))))
        axes.titled("other sizes", "numbers left, % of the weights", "relative output error")
        axes.curve([share for share, *_ in tried], [error for _, error, _ in tried], BEFORE)
        for share, error, here in tried:
            axes.points(np.array([share]), np.array([error]), AFTER if here else BEFORE, 3.6 if here else 2.4)

    return panel


def left(change: Change) -> float:
    """Trained numbers in place of the weights, in percent of them."""
    biases = sum(p.numel() for name, p in change.dense.named_parameters() if name == "bias")
    numbers = sum(parameter.numel() for parameter in change.after.parameters())
    return 100 * (numbers - biases) / change.before.size


def drawn_from(count: int) -> np.ndarray:
    """Which of so many points are drawn: the same every time."""
    return np.random.default_rng(0).permutation(count)[:SHOWN_POINTS]
