"""Lottery tickets of LeNet-300-100 on MNIST (1803.03635, figures 3 and 4): what a pruned network's start is worth.

Run by ``make bench-lottery``. Iterative magnitude pruning: each round trains, takes 36 % of the weights left of each layer
(19 % of the last one's) and sets the others back to where they began: two rounds of the paper's in one. At six of the
sparsities that this passes, the same masks are trained from newly drawn weights, then from the initial signs alone; the
supermask is the initial weights under the mask, untrained. Adam at 1.2e-3 and Glorot's normal start are the paper's; steps
are far fewer than its 50,000 of 60 pictures (430 of 128 an epoch), and the rate follows the one-cycle schedule of every
training here.

What is done is kept after each training in ``runs/lottery`` and not done again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paretopress.evaluators.accuracy import error_pct
from paretopress.evaluators.data import DataSet, SplitSizes
from paretopress.evaluators.models import build_model
from paretopress.evaluators.sources import load_data
from paretopress.evaluators.training.loop import Recipe, train
from paretopress.evaluators.training.lottery import (
    Masks,
    Origins,
    Start,
    all_kept,
    hold,
    iterative_pruning,
    thinned,
    ticket,
)
from safetensors.torch import load_file, save_file
from torch import nn

RUNS = Path(__file__).parents[2] / "runs" / "lottery"
FIGURES = "lottery.json"
SHOWN = (0, 2, 4, 6, 8, 9)
"""Rounds that are shown: 100, 41, 17, 6.9, 2.8 and 1.8 % of the weights left."""
SHARES = {"fc1": 0.36, "fc2": 0.36, "fc3": 0.19}
RECIPE = Recipe(batch_size=128, optimizer="adamw", lr=1.2e-3, weight_decay=0.0)
EARLY = 0.25
"""Share of the steps after which a training is looked at for the first time."""
TRAINED: tuple[Start, ...] = ("random", "signs")
"""The starts beside the ticket's own, all seeds of one before the next."""
NAMES = {
    "initial": "set back to the initial weights (winning ticket)",
    "signs": "initial signs, one magnitude",
    "random": "drawn anew",
}
COLOURS = {"initial": "#D55E00", "signs": "#009E73", "random": "#0072B2"}
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 420, 290, 44, 62, 40


def network(seed: int) -> nn.Module:
    """LeNet-300-100 with Glorot's normal weights and biases of zero."""
    model = build_model("family:lenet300100", seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for name in SHARES:
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        nn.init.xavier_normal_(layer.weight, generator=generator)
        nn.init.zeros_(layer.bias)
    return model


def test_error(model: nn.Module, data: DataSet) -> float:
    """Per cent of the test pictures."""
    assert data.test is not None
    with torch.inference_mode():
        outputs = torch.cat([model(x) for x, _ in data.batches(data.test, 1000)])
    return error_pct(outputs.numpy(), data.test.labels)


@dataclass(frozen=True)
class Bench:
    """What all trainings share, and what they measured: seed -> round -> start -> figures, written after each.

    Parameters
    ----------
    data, recipe
        What is learned, and how.
    folder
        For masks and figures, of this number of epochs alone.
    seeds
        The figures.
    """

    data: DataSet
    recipe: Recipe
    folder: Path
    seeds: dict[str, dict[str, dict[str, Any]]]

    @classmethod
    def open(cls, data: DataSet, recipe: Recipe, folder: Path) -> Bench:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / FIGURES
        return cls(data, recipe, folder, json.loads(path.read_text()) if path.is_file() else {})

    def of(self, seed: int, number: int) -> dict[str, Any]:
        return self.seeds.setdefault(str(seed), {}).setdefault(str(number), {})

    def note(self, seed: int, number: int, **figures: Any) -> None:
        self.of(seed, number).update(figures)
        (self.folder / FIGURES).write_text(json.dumps(self.seeds, indent=1))
        print(f"seed {seed} round {number}: {figures}", file=sys.stderr, flush=True)

    def masks(self, seed: int, number: int) -> Path:
        return self.folder / f"masks-{seed}-{number}.safetensors"

    def train(self, model: nn.Module, seed: int, number: int) -> dict[str, float]:
        """Train in place, pictures in an order of the round; its test errors, and the seconds of this process."""
        figures: dict[str, float] = {}

        def look(step: int, steps: int) -> None:
            if step == round(EARLY * steps):
                figures["early_error_pct"] = test_error(model, self.data)

        start = time.process_time()
        train(model, self.data, self.recipe, seed=100 * seed + number, on_step=look)
        figures["error_pct"] = test_error(model, self.data)
        return {**figures, "seconds": round(time.process_time() - start, 1)}

    def run_seed(self, seed: int) -> None:
        """All rounds of one seed, from the first that is not done."""
        first = next((n for n in range(SHOWN[-1] + 1) if "initial" not in self.of(seed, n)), SHOWN[-1] + 1)
        masks = all_kept(network(seed)) if first == 0 else load_file(self.masks(seed, first))
        start, numbers, found = network(seed).state_dict(), itertools.count(first), {}

        def train_round(model: nn.Module) -> None:
            found.update(self.train(model, seed, next(numbers)))

        rounds = iterative_pruning(network(seed), start, masks, SHARES, train_round)
        # In this order: the endless rounds must not begin one more.
        for number, done in zip(range(first, SHOWN[-1] + 1), rounds):
            following = thinned(done.final, done.masks, SHARES)
            save_file(following, self.masks(seed, number + 1))
            empty = network(seed)
            hold(empty, ticket("supermask", Origins(initial=start, final=done.final), following), following)
            self.note(seed, number + 1, supermask={"error_pct": test_error(empty, self.data)})
            self.note(seed, number, kept=_kept(done.masks), initial=dict(found))

    def run_start(self, way: Start, seed: int) -> None:
        """Another start under the masks of the rounds that are shown, in the order of pictures that their trainings had."""
        for number in SHOWN[1:]:
            if way not in self.of(seed, number):
                drawn = network(1000 + 100 * seed + number).state_dict()
                origins = Origins(initial=network(seed).state_dict(), random=drawn)
                masks, model = load_file(self.masks(seed, number)), network(seed)
                hold(model, ticket(way, origins, masks), masks)
                self.note(seed, number, **{way: self.train(model, seed, number)})


def _kept(masks: Masks) -> float:
    """Share of the weights."""
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def curves(seeds: Mapping[str, Mapping[str, Any]], figure: str) -> dict[str, list[tuple[float, float, float, float]]]:
    """Start -> (share kept, mean, least, largest) of a figure over the seeds; the dense network is the first of all."""
    out: dict[str, list[tuple[float, float, float, float]]] = {}
    for way in NAMES:
        if any(way not in rounds.get(str(number), {}) for rounds in seeds.values() for number in SHOWN[1:]):
            continue
        for number in SHOWN:
            found = [rounds[str(number)] for rounds in seeds.values()]
            errors = [row[way if number else "initial"][figure] for row in found]
            kept = float(np.mean([row["kept"] for row in found]))
            out.setdefault(way, []).append((kept, float(np.mean(errors)), min(errors), max(errors)))
    return out


def panel(title: str, lines: Mapping[str, Sequence[tuple[float, float, float, float]]], x: int) -> Iterator[str]:
    """Mean and range of each start over what is left, evenly spaced, the dense network at the left."""
    highest = max(point[3] for points in lines.values() for point in points) * 1.05
    inner, tall = WIDTH - LEFT - 20, HEIGHT - TOP - BOTTOM
    ticks = next(step for step in (0.5, 1.0, 2.0, 5.0, 10.0, 20.0) if highest / step <= 7)

    def at(place: float, value: float) -> str:
        return f"{x + LEFT + inner * place / (len(SHOWN) - 1):.1f},{TOP + tall * (1 - value / highest):.1f}"

    yield f'<text x="{x + LEFT}" y="{TOP - 10}" font-weight="bold">{title}</text>'
    for value in np.arange(0, highest, ticks):
        left, y = at(0, value).split(",")
        yield f'<path d="M{left},{y}h{inner}" stroke="#DDDDDD"/>'
        yield f'<text x="{x + LEFT - 6}" y="{float(y) + 4:.1f}" text-anchor="end">{value:g}</text>'
    for place, (kept, *_) in enumerate(lines["initial"]):
        foot = at(place, 0).split(",")[0]
        yield f'<text x="{foot}" y="{HEIGHT - 22}" text-anchor="middle">{100 * kept:.3g} %</text>'
    yield f'<text x="{x + LEFT + inner / 2}" y="{HEIGHT - 6}" text-anchor="middle">weights left</text>'
    for way, points in lines.items():
        band = [at(i, p[3]) for i, p in enumerate(points)] + [at(i, p[2]) for i, p in reversed([*enumerate(points)])]
        yield f'<polygon points="{" ".join(band)}" fill="{COLOURS[way]}" fill-opacity="0.15"/>'
        mean = " ".join(at(i, p[1]) for i, p in enumerate(points))
        yield f'<polyline points="{mean}" fill="none" stroke="{COLOURS[way]}" stroke-width="1.8"/>'


def picture(seeds: Mapping[str, Mapping[str, Any]]) -> str:
    """The drawing as SVG: errors early in the training and in the end."""
    width = 2 * WIDTH
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}"'
        ' font-family="Helvetica, Arial, sans-serif" font-size="11" fill="#333333">',
        f'<rect width="{width}" height="{HEIGHT}" fill="#FFFFFF"/>',
    ]
    foot, last = LEFT, curves(seeds, "error_pct")
    for way in last:
        name = NAMES[way]
        lines.append(f'<path d="M{foot},14h18" stroke="{COLOURS[way]}" stroke-width="3"/>')
        lines.append(f'<text x="{foot + 24}" y="18">{name}</text>')
        foot += 50 + 6 * len(name)
    over = f"mean of {len(seeds)} seeds, shades: least to largest" if len(seeds) > 1 else "one seed"
    lines.append(f'<text x="{LEFT}" y="34">Test error in per cent; lines: {over}.</text>')
    lines += panel("after a quarter of the steps", curves(seeds, "early_error_pct"), 0)
    lines += panel("in the end", last, WIDTH)
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    """Train what is not trained yet, draw, and print the figures of the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--starts", nargs="*", default=list(TRAINED), choices=TRAINED)
    parser.add_argument("--svg", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("mnist", sizes=SplitSizes(5000, 64, 0.2), seed=0, report=lambda line: print(line, file=sys.stderr))
    bench = Bench.open(data, replace(RECIPE, epochs=given.epochs), RUNS / f"epochs-{given.epochs}")
    for seed in range(given.seeds):
        bench.run_seed(seed)
    for way in given.starts:
        for seed in range(given.seeds):
            bench.run_start(way, seed)
    shown = {str(seed): bench.seeds[str(seed)] for seed in range(given.seeds)}
    given.svg.write_text(picture(shown))
    print(json.dumps(curves(shown, "error_pct"), indent=1))


if __name__ == "__main__":
    main()
