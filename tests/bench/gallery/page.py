"""The gallery as a page of Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paretopress.policies.techniques import TECHNIQUES

from .exhibits import EXHIBITS
from .networks import NETWORKS

COMMAND = "make gallery"
NAMES = {"resnet": "ResNet-20", "digits": "digits network", "lenet": "LeNet-5"}
assert NAMES.keys() == NETWORKS.keys()

INTRODUCTION = f"""# Gallery of techniques

What each technique does to real weights, written by `{COMMAND}` from three trained networks: ResNet-20 with the weights of
`configs/weights` (its layer `layer3.1.conv1`: 64 filters of 64 x 3 x 3), the quick start's network for scikit-learn's
digits (its layer `fc1`: 64 neurons of 1,024 inputs) and for a kernel of 5 x 5 LeNet-5 on MNIST (its layer `conv2`). Nothing is
trained afterwards, where the row does not say so.

Matrices have a row for each output and the inputs it reads as columns; a part of them is drawn, orange above zero, blue below.
*Error* is the difference of the outputs over their size, `|y' - y| / |y|`, on 256 training pictures: of the layer, and of the
network in which it was changed. *Bytes* are those of the float32 numbers and of a `.press` file with nothing else: of the
layer, or of the network where its shape changes. Which word of a configuration chooses a technique, and which tests show it:
[techniques.md](techniques.md).

| technique | before and after | measured |
|---|---|---|
"""


def render(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of the figures that the command keeps, techniques in the order of their phases."""
    ordered = sorted(TECHNIQUES.items(), key=lambda item: (item[1].phase, item[0]))
    return INTRODUCTION + "".join(_row(name, cls.about, figures[name]) for name, cls in ordered)


def _row(name: str, about: Any, measured: Mapping[str, Any]) -> str:
    exhibit = EXHIBITS[name]
    title = f"**`{name}`** ({', '.join(about.rows)})<br>{about.title}<br><br>{NAMES[exhibit.network]}. {exhibit.words}"
    picture = f'<img src="gallery/{name}.png" width="568" alt="{name}: weights before and after">'
    return f"| {title} | {picture} | {_measured(measured)} |\n"


def _measured(measured: Mapping[str, Any]) -> str:
    before, after = measured["bytes_before"], measured["bytes_after"]
    parts = [f"{before:,} B → {after:,} B", f"{before / after:.1f}x smaller"]
    errors = ((kind, measured[f"{kind}_error"]) for kind in ("layer", "network"))
    parts += [f"error of the {kind} {error:.3f}" for kind, error in errors if error is not None]
    return "<br>".join([*parts, *filter(None, [measured["note"]])])
