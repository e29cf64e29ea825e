"""The gallery of techniques: complete, as its command writes it, its figures those of the weights in this repository."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paretopress.evaluators.models import build_model, load_weights
from paretopress.policies.policy import Step
from paretopress.policies.techniques import TECHNIQUES, build
from paretopress.tests.bench.gallery.change import stored_bytes
from paretopress.tests.bench.gallery.exhibits import CONV, EXHIBITS
from paretopress.tests.bench.gallery.networks import WEIGHTS
from paretopress.tests.bench.gallery.page import render
from PIL import Image

DOCS = Path(__file__).parents[2] / "docs"
FIGURES = json.loads((DOCS / "gallery" / "figures.json").read_text())


@pytest.mark.parametrize("name", TECHNIQUES)
def test_every_technique_has_an_exhibit_a_picture_and_figures(name):
    assert name in EXHIBITS
    with Image.open(DOCS / "gallery" / f"{name}.png") as picture:
        assert picture.size == (1136, 432)
    assert 0 < FIGURES[name]["bytes_after"] < FIGURES[name]["bytes_before"]


def test_the_page_is_what_the_command_writes():
    page = (DOCS / "gallery.md").read_text()
    assert page == render(FIGURES), "run make gallery"
    assert all(f"**`{name}`**" in page and f"gallery/{name}.png" in page for name in TECHNIQUES)


def test_pictures_stay_small_and_there_are_no_others():
    pictures = list((DOCS / "gallery").glob("*.png"))
    assert {picture.stem for picture in pictures} == set(TECHNIQUES)
    assert sum(picture.stat().st_size for picture in pictures) < 1_000_000


@pytest.mark.parametrize(
    "step",
    [
        Step.of("prune_magnitude", sparsity=0.8),
        Step.of("quantize", bits=4),
        Step.of("fixed_point", bits=4),
        Step.of("binarize", method="mean"),
        Step.of("svd_spatial", rank=48),
    ],
    ids=lambda step: step.technique,
)
def test_stored_bytes_are_those_of_the_weights_in_this_repository(step):
    model = build_model("family:resnet20")
    load_weights(model, WEIGHTS)
    layer = build(step).apply(model.get_submodule(CONV), None)
    assert stored_bytes(layer) == pytest.approx(FIGURES[step.technique]["bytes_after"], rel=0.01)
